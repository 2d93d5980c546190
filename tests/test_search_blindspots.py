"""Harmless changes against closed forms, and the search against every change of a fine grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import advnb
from advnb import Attack, OnManifold, Pixels, Split
from advnb.blindspots import (
    FAMILIES,
    Blur,
    Change,
    Gamma,
    Gradient,
    Light,
    Scaled,
    Warp,
    defences,
    find_blindspot,
    scale_shift,
    table,
)
from advnb.models import CNN

from .conftest import refused

ENDS = [end for ends in FAMILIES.values() for end in ends]
NAMES = [str(end) for end in ENDS]


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=advnb.stats.generator(0))


# --- changes


@pytest.mark.parametrize("end", ENDS, ids=NAMES)
@pytest.mark.parametrize("shape", [(2, 1, 9, 7), (2, 3, 4, 11)])
def test_changes_keep_images_valid(end: Change, shape: tuple[int, ...]) -> None:
    x = random(*shape)
    x[0], x[-1, :, : shape[2] // 2] = x[0].round(), 0  # black and white as well
    kept, sizes = x.clone(), []
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
        changed = end.part(strength)(x)
        assert changed.shape == x.shape
        assert changed.dtype == x.dtype
        assert changed.min() >= 0
        assert changed.max() <= 1
        sizes.append((changed - x).norm().item())
    assert torch.equal(x, kept)
    assert sizes[0] <= 1e-6
    assert end.part(1) == end
    if not isinstance(end, Warp):  # which may lead back to a like place
        assert sizes == sorted(sizes)
    assert sizes[-1] > 1e-3
    pixel = random(2, 1, 1, 1)
    if not isinstance(end, Warp):
        assert end(pixel).shape == pixel.shape


@given(strength=st.floats(0, 1), k=st.integers(0, len(ENDS) - 1))
def test_a_path_is_straight(strength: float, k: int) -> None:
    end, none = ENDS[k], type(ENDS[k])()
    change = end.part(strength)
    for f in fields(end):
        value, start, stop = (getattr(c, f.name) for c in (change, none, end))
        if f.kw_only:
            assert value == stop
        else:
            assert value == pytest.approx(start + strength * (stop - start), abs=1e-12)


def test_no_two_paths_are_one() -> None:
    x = random(3, 1, 8, 8).double()
    images = torch.stack([end(x) for end in ENDS]).flatten(1)
    apart = torch.cdist(images, images) + torch.eye(len(ENDS))
    assert apart.min() > 1e-3


def pixels(x: Tensor, f: Callable[[float, float, float], float]) -> Tensor:
    """f(value, column, row) at every pixel, places from -1 to 1."""
    n, c, h, w = x.shape
    out = torch.empty_like(x)
    for i, k, r, s in np.ndindex(n, c, h, w):
        out[i, k, r, s] = f(x[i, k, r, s].item(), 2 * s / (w - 1) - 1, 2 * r / (h - 1) - 1)
    return out


@given(level=st.floats(0, 1), width=st.floats(0.1, 3), power=st.floats(1, 5))
def test_light_at_each_pixel(level: float, width: float, power: float) -> None:
    x = random(1, 2, 3, 4).double()

    def lit(v: float, column: float, row: float) -> float:
        spot = math.exp(-(column**2 + row**2) / (2 * width**2))
        return min(v + level * spot * (1 - v) ** power, 1.0)

    assert torch.allclose(Light(level, width=width, shadows=power)(x), pixels(x, lit))
    assert torch.allclose(Light(level)(x), scale_shift(x, 1 - level, level / 2) if level < 1 else
                          torch.ones_like(x))  # fmt: skip


@given(level=st.floats(-1, 1), angle=st.floats(-360, 360))
def test_gradient_at_each_pixel(level: float, angle: float) -> None:
    x, turn = random(1, 2, 3, 4).double(), math.radians(angle)

    def lit(v: float, column: float, row: float) -> float:
        far = abs(math.cos(turn)) + abs(math.sin(turn))  # in the corner ahead
        share = abs(level) * ((math.cos(turn) * column - math.sin(turn) * row) / far + 1) / 2
        return v + share * ((1 if level > 0 else 0) - v)

    assert torch.allclose(Gradient(level, angle=angle)(x), pixels(x, lit))


def test_gradient_grows_where_it_says() -> None:
    black = torch.zeros(1, 1, 5, 5)
    right, top = (Gradient(0.5, angle=angle)(black)[0, 0] for angle in (0, 90))
    assert right[2].tolist() == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])
    assert top[:, 2].tolist() == pytest.approx([0.5, 0.375, 0.25, 0.125, 0], abs=1e-6)


def test_blur_is_scipys() -> None:
    from scipy.ndimage import gaussian_filter

    x = random(2, 3, 21, 17).double()
    for sigma in (0.4, 1.0, 2.0):
        expected = gaussian_filter(
            x.numpy(), (0, 0, sigma, sigma), mode="mirror", radius=math.ceil(3 * sigma)
        )
        # scipy's axes of no blur need no radius
        assert torch.allclose(Blur(sigma)(x), torch.from_numpy(expected), atol=1e-6)


def test_gamma_and_warp() -> None:
    x = random(2, 1, 6, 6)
    assert torch.allclose(Gamma(2)(x), x * x)
    assert torch.allclose(Warp(rotation=math.pi / 2)(x), x.rot90(1, (2, 3)), atol=1e-5)
    assert torch.equal(Scaled(0.8, 0.05)(x), scale_shift(x, 0.8, 0.05))


def test_texts_tell_the_parameters() -> None:
    told = [str(Scaled(0.9, 0.02)), str(Gamma(1.3)), str(Warp(rotation=0.1, t_x=0.2))]
    assert told == ["scaled by 0.9, shifted by 0.02", "gamma 1.3", "warp (t_x 0.2, rotation 0.1)"]
    assert len(set(NAMES)) == len(ENDS)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Scaled(0.9, 0.06), "beta must be a number from -0.05 to 0.05"),
        (lambda: Scaled(1.1), "alpha must be a number in"),
        (lambda: Gamma(0), "gamma must be a positive number"),
        (lambda: Blur(-1), "sigma must be a number >= 0"),
        (lambda: Gradient(1.5), "level must be a number from -1 to 1"),
        (lambda: Gradient(0.5, angle=math.nan), "angle must be a number of degrees"),
        (lambda: Light(-0.1), "level must be a number from 0 to 1"),
        (lambda: Light(0.1, width=0), "width must be a positive number or None"),
        (lambda: Light(0.1, shadows=0.5), "shadows must be a number >= 1"),
        (lambda: Warp(scale=0), "scale must be a positive number"),
        (lambda: Warp(t_x=math.inf), "t_x must be a number"),
        (lambda: Gamma(2).part(1.5), "strength must be a number from 0 to 1"),
    ],
)
def test_bad_changes(make: Callable[[], object], words: str) -> None:
    with refused(words):
        make()


# --- the search


class Middle(nn.Module):
    """Two classes by the mean brightness; the nearer an image is to `edge`, the easier to fool."""

    def __init__(self, edge: float = 0.5) -> None:
        super().__init__()
        self.edge = nn.Parameter(torch.tensor(edge))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1) - self.edge
        return torch.stack([-mean, mean], 1)


ATTACK = Attack(Pixels(0.1), steps=8, lr=0.05, optimizer="sign", start="zero")


def grey(n: int = 60, low: float = 0.68, high: float = 0.8) -> Split:
    """Images of one bright class, with means from `low` to `high` and a texture."""
    x = low + (high - low) * random(n, 1, 1, 1) + 0.05 * (random(n, 1, 6, 6) - 0.5)
    return Split(x, torch.ones(n, dtype=torch.int64))


def judged(split: Split, change: Change) -> tuple[float, float, float]:
    """Size, accuracy and success in closed form: all pixels lower by 0.1, or black."""
    x = change(split.x)
    mean = x.flatten(1).mean(1)
    right = mean > 0.5
    fooled = ((x - 0.1).clamp_min(0).flatten(1).mean(1) < 0.5)[right].double().mean().item()
    size = (x - split.x).flatten(1).pow(2).sum(1).sqrt().mean().item()
    return size, right.double().mean().item(), fooled


def exhaustive(split: Split, ends: list[Change], drop: float, success: float) -> float:
    """The smallest size among 100 changes on each path."""
    best, before = math.inf, judged(split, Scaled())[1]
    for end in ends:
        for strength in np.linspace(0, 1, 101)[1:]:
            size, right, fooled = judged(split, end.part(float(strength)))
            if fooled >= success and before - right <= drop + 1e-9:
                best = min(best, size)
                break
    return best


DARKER: list[Change] = [Scaled(0.6, -0.2), Scaled(0.5, 0.0), Gamma(2.5), Gradient(-0.6, angle=90),
                        Light(0.2), Warp(t_x=0.9)]  # fmt: skip


@pytest.mark.parametrize("success", [0.2, 0.5, 0.7])
def test_the_smallest_of_all(success: float) -> None:
    split = grey()
    found = find_blindspot(
        Middle(), split, 0.05, attack=ATTACK, success=success, changes=DARKER, progress=False
    )
    size, right, fooled = judged(split, found.transform or Scaled())
    best = exhaustive(split, DARKER, 0.05, success)
    assert found
    assert 0.95 * best <= found.size <= 1.021 * best
    assert found.size == pytest.approx(size)
    assert found.accuracy.value == pytest.approx(right)
    assert found.success.value == pytest.approx(fooled)
    assert found.success.value >= success
    assert found.success.n == round(found.accuracy.value * len(split))
    assert str(found.transform) in str(found)


def test_accuracy_is_kept() -> None:
    split, ends = grey(80, 0.56, 0.85), [Scaled(0.6, -0.2)]  # the dark ones soon are lost
    found = {}
    for drop in (0.0, 0.1, 0.4):
        found[drop] = find_blindspot(
            Middle(), split, drop, attack=ATTACK, changes=ends, progress=False
        )
        best = exhaustive(split, ends, drop, 0.5)
        assert bool(found[drop]) == math.isfinite(best)
        assert found[drop].accuracy.value >= 1 - drop - 1e-9
        assert 0.95 * best <= found[drop].size <= 1.021 * best
    assert not found[0.0]
    assert found[0.4].accuracy.value < 1


def test_everything_tried_is_told_and_the_same_twice() -> None:
    split = grey()
    runs = [
        find_blindspot(Middle(), split, attack=ATTACK, changes=DARKER, progress=False)
        for _ in range(2)
    ]
    found, table = runs[0], runs[0].table
    assert runs[0] == runs[1]
    assert table.equals(runs[1].table)
    assert set(table.columns) == {
        "family", "change", "parameters", "size", "accuracy", "success", "images",
    }  # fmt: skip
    for row in table.itertuples():
        assert row.size == pytest.approx(judged(split, row.change)[0])
        _, right, fooled = judged(split[: row.images], row.change)
        assert row.accuracy.value == pytest.approx(right)
        assert row.success.value == pytest.approx(fooled)
        assert row.parameters == row.change.parameters
    whole = table[table.images == len(split)]
    good = whole[
        [s.value >= 0.5 and a.value >= 0.99 for s, a in zip(whole.success, whole.accuracy)]
    ]
    assert found.size == good["size"].min()
    assert len(table) < 60


def test_none_needed_and_none_there() -> None:
    split = grey()
    easy = find_blindspot(Middle(0.8), split, attack=ATTACK, changes=DARKER, progress=False)
    assert easy.size == 0
    assert easy.transform == Scaled()
    lighter = [Light(0.2), Gamma(0.5)]
    none = find_blindspot(Middle(), split, attack=ATTACK, changes=lighter, progress=False)
    assert not none
    assert none.transform is None
    assert none.size == math.inf
    assert "no blind spot" in str(none)
    unchanged = judged(split, Scaled())
    assert (none.accuracy.value, none.success.value) == pytest.approx(unchanged[1:])


@dataclass(frozen=True)
class Dimmed(Change):
    """A reader's own."""

    by: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return x * (1 - self.by)


def test_an_own_change_and_the_models_own_attack() -> None:
    split = grey(60)
    found = find_blindspot(Middle(), split, attack=ATTACK, changes=[Dimmed(0.5)], progress=False)
    assert isinstance(found.transform, Dimmed)
    assert found.size <= 1.021 * exhaustive(split, [Dimmed(0.5)], 0.01, 0.5)
    assert set(found.table.family) == {"dimmed", "scale and shift"}  # no change is the latter
    usual = find_blindspot(Middle(), split, changes=[Dimmed(0.5)], progress=False)
    assert usual.size == pytest.approx(found.size, rel=0.03)  # 0.1 for data of no name


@dataclass(frozen=True)
class Lost(Change):
    """Its default is a change, so no path to it begins at none."""

    level: float = 0.5

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.level


@dataclass(frozen=True)
class Bare(Change):
    level: float

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.level


def test_a_model_lent_in_train_mode(fonts: advnb.Dataset) -> None:
    trained = advnb.zoo.load("fonts-cnn-normal")
    attack = Attack(Pixels(0.02), steps=2, lr=0.01, optimizer="sign")
    split, ends = fonts.test(20), [Light(0.3), Gamma(2.0)]
    evaluated = find_blindspot(trained, split, attack=attack, changes=ends, progress=False)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    trained.train()
    with pytest.warns(advnb.AttackWarning, match="train mode"):
        lent = find_blindspot(trained, split, attack=attack, changes=ends, progress=False)
    assert trained.training
    assert lent == evaluated
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())


def test_defences_against_the_closed_form() -> None:
    split, models = grey(), {"one": Middle(), "other": Middle(0.6)}
    changes = {"none": Gamma(), "darker": Gamma(1.4)}
    table = defences(models, split, changes, ATTACK, progress=False)
    assert list(table.columns) == ["defence", "change", "size", "accuracy", "success"]
    pairs = [(d, t) for d in models for t in changes]
    assert list(zip(table.defence, table.change)) == pairs
    for row in table[table.defence == "one"].itertuples():
        size, right, fooled = judged(split, changes[row.change])
        assert row.size == pytest.approx(size)
        assert row.accuracy.value == pytest.approx(right)
        assert row.success.value == pytest.approx(fooled)
    harder, easier = (table[table.defence == name].success.iloc[0].value for name in models)
    assert easier > harder
    listed = defences({"one": Middle()}, split, list(changes.values()), ATTACK, progress=False)
    assert list(listed.change) == ["gamma 1", "gamma 1.4"]


def test_changes_that_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = advnb.blindspots.search
    sized, size = [], module.size_of
    monkeypatch.setattr(module, "size_of", lambda c, x: sized.append(c) or size(c, x))
    split, models = grey(20), {"one": Middle(), "other": Middle(0.6)}
    table = defences(models, split, (Gamma(by) for by in (1.0, 1.4)), ATTACK, progress=False)
    assert list(table.change) == ["gamma 1", "gamma 1.4"] * 2
    assert sized == [Gamma(1.0), Gamma(1.4)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accuracy_drop": -0.1}, "accuracy_drop must be a number from 0 to 1"),
        ({"success": 0}, "success must be a number above 0"),
        ({"attack": Pixels(0.1)}, "an Attack is needed"),
        ({"changes": []}, "changes must be a list of changes"),
        ({"changes": Gamma(2)}, "changes must be a list of changes"),
        ({"changes": [lambda x: x]}, "changes must be a list of changes"),
        ({"changes": [Lost(0.4)]}, "the defaults of Lost must be no change at all"),
        ({"changes": [Bare(0.4)]}, "the defaults of Bare must be no change at all"),
    ],
)
def test_bad_searches(options: dict, words: str) -> None:
    with refused(words):
        find_blindspot(Middle(), grey(5), **options)


def test_other_bad_input() -> None:
    with refused("model must be a torch.nn.Module"):
        find_blindspot(lambda x: x, grey(5))  # type: ignore[arg-type]
    with refused("a Split is needed"):
        find_blindspot(Middle(), grey(5).x)  # type: ignore[arg-type]
    with refused("models must be a mapping"):
        defences([Middle()], grey(5), [Gamma(2)])  # type: ignore[arg-type]
    with refused("model must be a torch.nn.Module"):
        defences({"one": Gamma(2)}, grey(5), [Gamma(2)])  # type: ignore[dict-item]
    with refused("changes must be a list"):
        defences({"one": Middle()}, grey(5), {})
    letters = advnb.load("fonts").test(4)
    along = Attack(OnManifold(letters.dataset.manifold, 0.3))
    for search in (
        lambda: find_blindspot(CNN(), letters, attack=along),
        lambda: defences({"one": CNN()}, letters, [Gamma(2)], along),
        lambda: table(CNN(), letters, along),
    ):
        with refused("have no code on the manifold: attack their pixels"):
            search()
