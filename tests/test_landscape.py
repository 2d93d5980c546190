"""The landscape of blind spots: every pair against an attack of its own, what is kept, and where
things lie in its picture."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import advnb
from advnb import Attack, Pixels, blindspots, plots
from advnb.blindspots import Landscape, Printed, landscape
from advnb.blindspots.landscape import ALPHAS, SHIFTS, beta_of, one_start, shift_of
from advnb.live.landscape import MapFigure
from advnb.stats import Rate

from .conftest import refused

GRID: dict[str, Any] = {"alphas": [1.0, 0.9, 0.95], "shifts": [1.0, -1.0, 0.25]}
PGD = Attack(Pixels(0.05), steps=3, lr=0.03, optimizer="sign", start="uniform", restarts=2)


@pytest.fixture(scope="module")
def robust() -> nn.Module:
    return advnb.zoo.load("fonts-cnn-adversarial")


@pytest.fixture(scope="module")
def letters(fonts: advnb.Dataset) -> advnb.Split:
    return fonts.test(20)


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch) -> list[Attack]:
    """Every attack that is begun."""
    begun, iterate = [], Attack.iterate

    def noted(self: Attack, *args: Any) -> Iterator[Any]:
        begun.append(self)
        yield from iterate(self, *args)

    monkeypatch.setattr(Attack, "iterate", noted)
    return begun


@pytest.fixture
def found(robust: nn.Module, letters: advnb.Split, tmp_path: Path) -> Callable[..., pd.DataFrame]:
    """The landscape of the small grid, kept in this test's folder."""

    def find(
        model: nn.Module = robust, split: advnb.Split = letters, attack: Attack = PGD, **how: Any
    ) -> pd.DataFrame:
        settings = GRID | {"cache": tmp_path, "progress": False} | how
        return landscape(model, split, attack, **settings)

    return find


def test_every_pair_has_the_numbers_of_an_attack_of_its_own(
    found: Callable, robust: nn.Module, letters: advnb.Split, attacks: list
) -> None:
    table = found()
    assert len(attacks) == 2 * 3 + 1, "at alpha = 1 all shifts are one"
    assert [*table.columns] == ["alpha", "shift", "beta", "accuracy", "success"]
    pairs = [(a, s) for a in (0.9, 0.95, 1.0) for s in (-1.0, 0.25, 1.0)]
    assert list(zip(table.alpha, table["shift"])) == pairs
    assert table.beta.tolist() == pytest.approx([s * (1 - a) / 2 for a, s in pairs])
    own = blindspots.table(robust, letters, PGD, zip(table.alpha, table.beta), progress=False)
    assert own.accuracy.tolist() == table.accuracy.tolist()
    assert own.success.tolist() == table.success.tolist()
    assert len({rate.value for rate in table.success}) > 2, "a flat landscape would show nothing"
    for row in table.itertuples():  # and by hand
        moved = letters.with_x((row.alpha * (letters.x - 0.5) + row.beta + 0.5).clamp(0, 1))
        with torch.no_grad():
            right = robust(moved.x).argmax(1) == letters.y
            wrong = [robust(x).argmax(1) != letters.y for x in PGD(robust, moved).x]
        hits = (torch.stack(wrong).any(0) & right).sum().item()
        assert abs(row.success.value * row.success.n - hits) <= 1  # a pixel may round differently
        assert row.success.n == right.sum().item()


@pytest.mark.parametrize("keep", ["first", "strongest", "smallest"])
def test_whatever_an_attack_keeps(
    found: Callable, robust: nn.Module, letters: advnb.Split, keep: Any
) -> None:
    attack = replace(PGD, keep=keep)
    table = found(attack=attack, shifts=[-1, 0.5])
    for row in table.itertuples():
        moved = blindspots.shifted(letters, row.alpha, row.beta)
        assert row.success == attack(robust, moved).success_rate("images")


def test_the_default_grid_and_attack(
    robust: nn.Module, letters: advnb.Split, tmp_path: Path
) -> None:
    land = Landscape(robust, letters, cache=tmp_path)
    assert (land.alphas, land.shifts, land.eps) == (ALPHAS, SHIFTS, 0.1)
    assert np.allclose(ALPHAS, np.linspace(0.5, 1, 21))
    assert np.allclose(SHIFTS, np.linspace(-1, 1, 21))
    assert land.known.shape == (21, 21)
    assert not land.known.any()
    assert land.table().empty
    assert one_start(0.3).lr * 40 >= 2 * 0.3, "no corner of the ball is out of reach"


@given(alpha=st.floats(0.01, 0.999), shift=st.floats(-1, 1))
def test_betas_are_valid_and_come_back_as_shifts(alpha: float, shift: float) -> None:
    beta = beta_of(alpha, shift)
    low, high = advnb.valid_shift(alpha)
    assert low - 1e-6 <= beta <= high + 1e-6
    assert shift_of(alpha, beta) == pytest.approx(shift, abs=1e-6 / (1 - alpha) + 1e-9)
    assert (beta_of(1.0, shift), shift_of(1.0, 0.0)) == (0, 0)


# what is kept -------------------------------------------------------------------------------------


def test_what_was_found_is_there_at_once(found: Callable, attacks: list) -> None:
    table = found()
    attacks.clear()
    assert found().to_dict() == table.to_dict()
    batched = found(attack=replace(PGD, batch_size=7))
    assert batched.to_dict() == table.to_dict(), "a batch size decides nothing"
    some = found(alphas=[0.9, 1])
    assert some.to_dict("records") == table[table.alpha != 0.95].to_dict("records")
    assert not attacks
    found(alphas=[0.9, 0.7])
    assert len(attacks) == 3, "only the new alpha"


def test_whatever_decides_it_is_attacked_anew(
    found: Callable, letters: advnb.Split, attacks: list
) -> None:
    one = {"alphas": [0.9], "shifts": [0.5]}
    found(**one)
    other = advnb.zoo.load("fonts-cnn-adversarial")
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1e-3
    stronger = nn.Sequential(advnb.zoo.load("fonts-cnn-adversarial"), nn.Softmax(1))
    relabelled = advnb.Split(letters.x, (letters.y + 1) % 10)
    changes: list[dict[str, Any]] = [
        {"model": other},
        {"model": stronger.eval()},
        {"split": letters[:19]},
        {"split": letters[torch.arange(19, -1, -1)]},
        {"split": relabelled},
        *({"attack": replace(PGD, **{name: value})} for name, value in (
            ("seed", 1), ("steps", 4), ("lr", 0.02), ("set", Pixels(0.06)), ("loss", "margin"),
            ("restarts", 1), ("start", "zero"), ("optimizer", "adam"), ("keep", "strongest"),
        )),
        {"shifts": [0.2]},
    ]  # fmt: skip
    for change in changes:
        attacks.clear()
        with pytest.warns(advnb.AttackWarning) if "Softmax" in str(change) else nullcontext():
            found(**(one | change))
        assert len(attacks) == 1, change
    attacks.clear()
    found(**one)
    assert not attacks, "and the first one is still there"


def test_a_run_that_is_cut_short_goes_on(
    found: Callable, attacks: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterate = Attack.iterate

    def cut(self: Attack, *args: Any) -> Iterator[Any]:
        if len(attacks) == 5:
            raise KeyboardInterrupt
        yield from iterate(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Attack, "iterate", cut)
        with pytest.raises(KeyboardInterrupt):
            found()
    attacks.clear()
    table = found()
    assert len(attacks) == 3, "two of the three alphas were finished"
    assert len(table) == 9


def test_a_search_that_is_given_up_goes_on_where_it_was(
    robust: nn.Module, letters: advnb.Split, tmp_path: Path, attacks: list
) -> None:
    land = Landscape(robust, letters, PGD, cache=tmp_path, **GRID)
    seen = [int(land.known.sum())]
    while not land.known.all():
        for steps, _ in enumerate(land.search()):
            if steps == 2:
                break  # in the middle of an attack
        seen.append(int(land.known.sum()))
    assert seen == sorted(seen)
    assert len(seen) > 9
    assert len(attacks) == 7, "no attack was begun twice"
    again = landscape(robust, letters, PGD, cache=tmp_path, progress=False, **GRID)
    assert land.table().to_dict() == again.to_dict()


def test_a_search_that_is_interrupted_can_be_begun_again(
    robust: nn.Module, letters: advnb.Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    land = Landscape(robust, letters, PGD, cache=tmp_path, **GRID)
    with monkeypatch.context() as patch:
        patch.setattr(Attack, "iterate", stop)
        with pytest.raises(KeyboardInterrupt):
            next(land.search())
    assert not land.known.any()
    list(land.search())
    assert land.known.all()


def test_letters_are_known_again_once_they_were_drawn(
    robust: nn.Module, fonts: advnb.Dataset, tmp_path: Path
) -> None:
    letters, grid = fonts.test(10), {"alphas": [1.0], "shifts": [0.0]}
    list(Landscape(robust, letters, PGD, cache=tmp_path, **grid).search())
    for again in (letters, fonts.test(10), fonts.test(20)[:10]):
        assert Landscape(robust, again, PGD, cache=tmp_path, **grid).known.all()


@pytest.mark.parametrize("bad", ["empty", "cut", "flipped", "other"])
def test_damage_is_noticed(found: Callable, tmp_path: Path, attacks: list, bad: str) -> None:
    table = found()
    path, *others = sorted(tmp_path.iterdir())
    content = bytearray(path.read_bytes())
    assert len(others) == 2
    if bad == "other":
        advnb.files.save_tensors(path, {"right": torch.ones(3, 20, dtype=torch.bool)})
    else:
        content[-1] ^= 1
        path.write_bytes({"empty": b"", "cut": content[:-9], "flipped": bytes(content)}[bad])
    attacks.clear()
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged: alpha = .* attacked again"):
        assert found().to_dict() == table.to_dict()
    assert len(attacks) in (1, 3), "one alpha"
    attacks.clear()
    found()
    assert not attacks, "it was written anew"


def test_a_folder_that_cannot_be_written(found: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="outcomes are not kept"):
        assert len(found(cache=tmp_path / "file")) == 9


def test_functions_are_not_kept(found: Callable, tmp_path: Path, attacks: list) -> None:
    by_name = found(attack=replace(PGD, loss="margin"))
    kept = len([*tmp_path.iterdir()])
    for _ in range(2):
        attacks.clear()
        table = found(attack=replace(PGD, loss=advnb.search.margin))
        assert table.to_dict() == by_name.to_dict()
        assert len(attacks) == 7
    assert len([*tmp_path.iterdir()]) == kept


def test_a_model_lent_in_train_mode(found: Callable) -> None:
    model = advnb.zoo.load("fonts-cnn-adversarial")
    table = found(model)
    model.train()
    table_again = found(model)
    assert table_again.to_dict() == table.to_dict()
    assert all(module.training for module in model.modules())


def test_bad_input(found: Callable, robust: nn.Module, fonts: advnb.Dataset) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"alphas": []}, "alphas must be a list of one or more"),
        ({"alphas": 0.9}, "alphas must be a list"),
        ({"alphas": [0.9, 1.1]}, r"alphas must be .*\(0, 1\]; got 1.1"),
        ({"alphas": ["a"]}, "alphas must be .* got 'a'"),
        ({"shifts": [math.nan]}, r"shifts must be .*\[-1, 1\]; got nan"),
        ({"shifts": [-2]}, r"shifts must be .*\[-1, 1\]; got -2"),
        ({"attack": Pixels(0.1)}, "an Attack on pixels is needed"),
        ({"attack": Attack(advnb.Affine(0.1))}, "an Attack on pixels is needed"),
        ({"attack": advnb.CarliniWagner("linf")}, "an Attack on pixels is needed"),
        ({"model": len}, "must be a torch.nn.Module"),
        ({"split": fonts}, "a Split is needed"),
    ]
    for how, words in bad:
        with refused(words):
            found(**how)


# the picture --------------------------------------------------------------------------------------


def made(success: Callable[..., float], accuracy: Callable[..., float]) -> pd.DataFrame:
    rows = [
        {"alpha": a, "shift": s, "accuracy": Rate(accuracy(a, s), 0, 1, 9),
         "success": Rate(success(a, s), 0, 1, 9)}
        for a in (0.5, 0.6, 0.8, 1.0) for s in (-1.0, 0.0, 0.5, 1.0)
    ]  # fmt: skip
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_where_things_lie_in_the_picture() -> None:
    table = made(lambda a, s: 1.2 - a + 0.1 * s, lambda a, s: a)
    printed = [Printed(0.8, 0.1, 0.9, 0.7), Printed(1.0, 0.0, 0.9, 0.1), Printed(0.3, 0, 0.9, 0)]
    picture = plots.landscape(table, printed, marker=(0.6, -0.1), eps=0.3, title="T", alt="A")
    axes, bar = picture.axes
    mesh, *contours, low, diamonds = axes.collections
    edges = mesh.get_coordinates()
    for row in table.to_dict("records"):
        inside = (edges[0, :-1, 0] < row["alpha"]) & (row["alpha"] < edges[0, 1:, 0])
        across = (edges[:-1, 0, 1] < row["shift"]) & (row["shift"] < edges[1:, 0, 1])
        (value,) = np.asarray(mesh.get_array())[np.ix_(across, inside)].ravel()
        assert value == row["success"].value
    assert mesh.get_clim() == (0, 1)
    places = [path.vertices[:, 0] for lines in contours for path in lines.get_paths()]
    assert [np.unique(x.round(6)).tolist() for x in places] == [[0.99], [0.95]]
    (corners,) = [path.get_extents().get_points() for path in low.get_paths()]
    assert corners.round(6).tolist() == [[0.5, -1], [0.95, 1]], "hatched: too many are wrong"
    assert diamonds.get_offsets().tolist() == [[0.8, 1.0], [1.0, 0.0]]
    assert diamonds.get_array().tolist() == [0.7, 0.1]
    (ring,) = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert ring.get_xydata().tolist() == [[0.6, pytest.approx(-0.5)]]
    (grey,) = [line for line in axes.lines if "no defence" in str(line.get_label())]
    assert grey.get_xdata() == [0.6, 0.6]
    told = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert told == [
        "accuracy 50.0 % to 100.0 %", "accuracy 99.0 %", "accuracy 95.0 % (hatched: less)",
        "α < 2 ε: no defence",
        "printed, same colours", "your α and β",
    ]  # fmt: skip
    assert axes.get_title() == "T"
    assert repr(picture) == "Picture: A"
    assert bar.get_title(loc="left") == "success"


def test_a_picture_of_less(recwarn: pytest.WarningsRecorder) -> None:
    table = made(lambda a, s: 0.5, lambda a, s: 0.9)
    flat = plots.landscape(table)
    assert len(flat.axes[0].collections) == 1, "no contour where accuracy stays"
    assert [t.get_text() for t in flat.legends[0].get_texts()] == ["accuracy 90.0 %"]
    part = plots.landscape(table[(table.alpha > 0.6) | (table["shift"] == 0)])
    assert np.ma.getmaskarray(part.axes[0].collections[0].get_array()).sum() == 6
    one = plots.landscape(table[:1])
    for picture in (flat, part, one):
        assert Image.open(io.BytesIO(picture.png())).size == (720, 460)
    nan = plots.landscape(made(lambda a, s: math.nan, lambda a, s: 0.0))
    assert np.ma.getmaskarray(nan.axes[0].collections[0].get_array()).all()
    assert not recwarn.list


@pytest.mark.parametrize("table", [pd.DataFrame(), made(lambda a, s: 1, lambda a, s: 1)[:0]])
def test_a_picture_of_nothing(table: pd.DataFrame) -> None:
    with refused("the table is empty: give blindspots.landscape's"):
        plots.landscape(table)


values = st.lists(st.integers(0, 40), min_size=2, max_size=5, unique=True)


@settings(max_examples=3)
@given(alphas=values, shifts=values)
def test_a_cell_is_where_its_ring_is_drawn(alphas: list[int], shifts: list[int]) -> None:
    grid: dict[str, Any] = {
        "alphas": [0.5 + n / 80 for n in alphas],
        "shifts": [n / 20 - 1 for n in shifts],
    }
    split = advnb.Split(torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64))
    land = Landscape(Flat(), split, **grid)
    figure = MapFigure()
    assert figure.cell(0.5, 0.5) is None, "nothing is drawn yet"

    def drawn(alpha: float, beta: float) -> np.ndarray:
        png = figure.draw(land, alpha, beta, (), "title")
        return np.asarray(Image.open(io.BytesIO(png)), dtype=int)

    empty = drawn(-9, 0)
    for alpha in land.alphas:
        for shift in land.shifts if alpha < 1 else (0.0,):
            marked = np.abs(drawn(alpha, beta_of(alpha, shift)) - empty).sum(2)
            down, across = (p.mean() + 0.5 for p in marked.nonzero())
            height, width = marked.shape
            cell = figure.cell(across / width, down / height)
            assert cell is not None
            assert cell[0] == alpha
            if alpha < 1:
                assert cell[1] == shift
    for x, y in ((0.01, 0.5), (0.99, 0.5), (0.5, 0.01), (0.5, 0.99), (-1, -1)):
        assert figure.cell(x, y) is None


class Flat(nn.Module):
    """Everything is of class 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2] * 0 + torch.tensor([1.0, 0.0])


def test_nothing_is_kept_of_a_model_that_was_trained_meanwhile(
    letters: advnb.Split, robust: nn.Module, tmp_path: Path
) -> None:
    model = advnb.models.CNN(0)
    found = Landscape(model, letters, PGD, alphas=[1.0], shifts=[0.0], cache=tmp_path)
    model.load_state_dict(robust.state_dict())
    with pytest.warns(UserWarning, match="weights have changed since"):
        list(found.search())
    again = Landscape(advnb.models.CNN(0), letters, PGD, alphas=[1.0], shifts=[0.0], cache=tmp_path)
    assert not again.known.any()
