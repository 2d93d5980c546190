"""Tables at full strength: cells that agree with `table`, and rows that ship for today's models."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

import advnb
from advnb import blindspots, sweeps, zoo
from advnb.__main__ import main
from advnb.blindspots import runs

from .conftest import real, refused

WEAK = partial(advnb.CarliniWagner, searches=3, steps=4)
FONTS = "fonts-cnn-adversarial"


@pytest.fixture
def weak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "CarliniWagner", WEAK)


@pytest.mark.usefixtures("weak")
def test_cells_agree_with_the_table(fonts: advnb.Dataset, tmp_path: Path) -> None:
    model, split = zoo.load(FONTS), fonts.test(12)
    done = runs.run(runs.wanted(FONTS, 12), cache=tmp_path, progress=False)
    found = runs.as_table(done)
    expected = blindspots.table(model, split, WEAK("linf"), progress=False)
    pd.testing.assert_frame_equal(found, expected)
    row = done.iloc[0]
    result = WEAK("linf")(model, split)
    sizes = result.distances[:, result.correct]
    assert row["success_noise"] == (sizes[0] <= 0.1).double().mean()
    assert row["success_gray"] == (sizes[1] <= 0.1).double().mean()
    assert row["success"] >= max(row["success_noise"], row["success_gray"])
    assert row["norm_50"] == pytest.approx(sizes.amin(0).quantile(0.5).item())
    assert row["n"] == int(result.correct.sum())


@pytest.mark.parametrize(("kind", "restarts"), [("pgd", 2), ("pgd-5", 5)])
def test_cells_of_pgd(fonts: advnb.Dataset, tmp_path: Path, kind: runs.Run, restarts: int) -> None:
    cells = runs.wanted(FONTS, 8, kind)[:2]
    found = runs.as_table(runs.run(cells, cache=tmp_path, progress=False))
    pairs = [(cell.alpha, cell.beta) for cell in cells]
    attack = zoo.pgd(0.1, restarts=restarts)
    expected = blindspots.table(zoo.load(FONTS), fonts.test(8), attack, pairs, progress=False)
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.usefixtures("weak")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.csv"
    command = ["blindspots", FONTS, "--images", "4", "--cache", str(tmp_path), "--out", str(out)]
    assert main(command) == 0
    assert len(pd.read_csv(out)) == 5
    assert FONTS in capsys.readouterr().out


def test_the_command_when_every_column_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*settings: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(runs, "shifted", broken)
    assert main(["blindspots", FONTS, "--images", "4", "--cache", str(tmp_path)]) == 2
    assert "5 of 5 columns failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [(("--images", "0"), "images must be a whole number >= 1"), (("--device", "tpu"), "'tpu'")],
)
def test_what_fits_no_column_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: tuple[str, ...], told: str
) -> None:
    assert main(["blindspots", FONTS, "--cache", str(tmp_path), *wrong]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert told in line


def test_which_table() -> None:
    assert {name: runs.defence(name) for name in ("mnist-wrm", "fashion-small-certified")} == {
        "mnist-wrm": "wrm", "fashion-small-certified": "certified",
    }  # fmt: skip
    assert runs.defence("mnist-madry") == runs.defence("mnist-cnn-cured") == "adversarial"
    assert set(runs.MODELS) <= set(zoo.ENTRIES)


def test_bad_input() -> None:
    with refused("cells must be a list of Column"):
        runs.run([1])  # type: ignore[list-item]
    with refused("did you mean 'mnist-wrm'"):
        runs.wanted("mnist-wmr")
    with refused("attack must be cw, pgd, pgd-5"):
        runs.wanted(FONTS, 4, "fgsm")  # type: ignore[arg-type]


def test_what_ships_is_of_the_models_that_ship() -> None:
    table = sweeps.shipped("blindspots")
    assert not table.duplicated(["model", "alpha", "beta", "images", "attack"]).any()
    for model, rows in table.groupby("model"):
        real(zoo.entry(str(model)).data)
        starts = rows[["success_noise", "success_gray"]].max(axis=1)  # C&W's; PGD has none
        assert list(starts.isna()) == list(rows.attack != "cw")
        assert (rows.success >= starts.fillna(0)).all()
        assert (rows.success_scaled <= rows.success).all()
        if zoo.made(str(model)):  # else a retrained model would show another's numbers
            fields = ["model", "alpha", "beta", "images", "attack"]
            for row in rows.to_dict("records"):
                cell = runs.Column(*(row[name] for name in fields))
                assert row["key"] == sweeps.key(cell, runs.Measure())


def test_what_ships_is_not_told_of_a_network_that_was_trained_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ships, asked, card = sweeps.shipped("blindspots"), [], zoo.card

    def run(cells: list[str], **settings: Any) -> pd.DataFrame:
        asked.append((cells, settings))
        return ships[:2]

    monkeypatch.setattr(runs, "wanted", lambda model, attack: [model, attack])
    monkeypatch.setattr(runs, "run", run)
    assert len(runs.measured("mnist-wrm")) == len(runs.measured("fashion-madry")) == 5
    monkeypatch.setattr(zoo, "card", lambda name: card(name) | {"checksum": "of other weights"})
    assert len(runs.measured("fashion-madry")) == 5, "which cannot be told"
    assert not asked
    assert len(runs.measured("mnist-wrm", device="cuda")) == 2
    assert asked == [(["mnist-wrm", "cw"], {"device": "cuda"})]


@pytest.mark.usefixtures("weak")
def test_columns_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shift = runs.shifted

    def below(alphas: float) -> pd.DataFrame:
        """Two columns, of which those of smaller alphas fail."""

        def broken(split: advnb.Split, alpha: float, beta: float) -> advnb.Split:
            if alpha < alphas:
                raise OSError("no room")
            return shift(split, alpha, beta)

        monkeypatch.setattr(runs, "shifted", broken)
        return runs.run(runs.wanted(FONTS, 4)[:2], cache=tmp_path, progress=False)

    for alphas, count in ((2, 2), (1, 1)):
        with refused(f"^{count} of 2 columns failed: OSError: no room$"):
            runs.as_table(below(alphas))
    done = below(0)
    assert len(runs.as_table(done)) == 2
    done.to_csv(tmp_path / "table.csv", index=False)  # where no error is NaN
    assert len(runs.as_table(pd.read_csv(tmp_path / "table.csv"))) == 2


@pytest.mark.parametrize(
    ("images", "expected"),
    [(5, [0.012, 0.02, 0.03, 0.04, 0.048]), (9, [0.014, 0.03, 0.05, math.inf, math.inf]),
     (10, [0.0145, 0.0325, math.inf, math.inf, math.inf])],
)  # fmt: skip
def test_quantiles_where_nothing_fools_some_images(
    images: int, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = torch.full((2, images), math.inf)
    sizes[1, :5] = torch.arange(1, 6) / 100
    right = torch.ones(images, dtype=torch.bool)

    class Fake:
        starts = ("noise", "gray")

        def __call__(self, *_: object) -> SimpleNamespace:
            return SimpleNamespace(distances=sizes, correct=right)

    monkeypatch.setattr(runs, "CarliniWagner", lambda norm: Fake())
    made = runs.Measure()(runs.Column(FONTS, 1.0, 0.0, images))
    found = [made[f"norm_{q}"] for q in (5, 25, 50, 75, 95)]
    assert found == pytest.approx(expected)
    sizes, right = sizes[:, :0], right[:0]
    made = runs.Measure()(runs.Column(FONTS, 1.0, 0.0, images))
    assert made["n"] == 0
    assert math.isnan(made["success"])
    assert "norm_50" not in made, "of no image that was right"
