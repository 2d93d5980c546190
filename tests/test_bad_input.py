"""Bad input gets one clear line: a table of calls, each with words that its message must hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import advnb
from advnb import Attack, Pixels, Split, recipes
from advnb.blindspots import table
from advnb.stats import generator
from tests.conftest import refused

MODEL = advnb.models.CNN(0).eval()
FONTS = advnb.load("fonts")
TEN = FONTS.test(10)


def frozen() -> nn.Module:
    model = advnb.models.CNN(0)
    return model.requires_grad_(False)


class Half(nn.Module):
    """A model whose output is cut off from its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return MODEL(x).detach()


def wide(n: int) -> Split:
    return Split(torch.rand(n, 3, 32, 32), torch.zeros(n, dtype=torch.int64))


CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "a tensor for the split": (lambda: advnb.accuracy(MODEL, TEN.x), "Split is needed"),
    "a data set for the split": (lambda: advnb.accuracy(MODEL, FONTS), r"\.test\(n\)"),
    "nothing for the split": (lambda: Attack(Pixels(0.1))(MODEL, None), "Split is needed"),
    "arguments swapped": (lambda: Attack(Pixels(0.1))(TEN, MODEL), "torch.nn.Module"),
    "a function for the model": (lambda: advnb.accuracy(lambda x: x, TEN), "torch.nn.Module"),
    "images of another size": (lambda: advnb.accuracy(MODEL, wide(4)), "cannot read .* 3x32x32"),
    "a batch of none": (lambda: advnb.accuracy(MODEL, TEN, batch_size=0), "batch_size"),
    "no recipe": (lambda: advnb.fit(MODEL, TEN, None), "Recipe"),
    "a recipe not called": (lambda: advnb.fit(MODEL, TEN, recipes.normal), "Recipe"),
    "a frozen model": (lambda: advnb.fit(frozen(), TEN, recipes.normal()), "requires_grad"),
    "a model of no parameters": (
        lambda: advnb.fit(nn.Flatten(), TEN, recipes.normal()),
        "no parameter",
    ),
    "a folder for a checkpoint": (
        lambda: advnb.fit(MODEL, TEN, recipes.normal(), checkpoint=Path(__file__).parent),
        "folder",
    ),
    "no attack": (lambda: recipes.adversarial(None), "Attack"),
    "a set for an attack": (lambda: recipes.adversarial(Pixels(0.1)), "Attack"),
    "half an image a batch": (lambda: recipes.normal(batch_size=2.5), "batch_size"),
    "a warm-up before the start": (lambda: recipes.normal(warmup=-1), "warmup"),
    "no seed": (lambda: generator(None), "seed"),
    "a class for a set": (lambda: Attack(Pixels), "perturbation set"),
    "a list for a loss": (lambda: Attack(Pixels(0.1), loss=["ce"]), "loss must be"),
    "a truth value for lr": (lambda: Attack(Pixels(0.1), lr=True), "lr must be"),
    "a loss of one number": (
        lambda: Attack(Pixels(0.1), loss=lambda o, y: o.mean())(MODEL, TEN),
        "per image",
    ),
    "a loss cut off from the image": (
        lambda: Attack(Pixels(0.1), loss=lambda o, y: o.detach()[:, 0])(MODEL, TEN),
        "way back",
    ),
    "a model cut off from the image": (lambda: Attack(Pixels(0.1))(Half(), TEN), "way back"),
    "a loss of NaN": (
        lambda: Attack(Pixels(0.1), loss=lambda o, y: o[:, 0] * float("nan"))(MODEL, TEN),
        "loss",
    ),
    "a number for a data set": (lambda: advnb.load(3), "named by a string"),
    "an unknown fall-back": (lambda: advnb.load("fonts", offline="zz"), "offline"),
    "a number for a zoo model": (lambda: advnb.zoo.load(3), "no model 3"),
    "an invalid late pair": (
        lambda: table(MODEL, TEN, Attack(Pixels(0.1)), [(1, 0), (0.9, 0.2)]),
        "beta = 0.2",
    ),
    "an array to scale": (lambda: advnb.scale_shift(np.zeros((1, 1, 2, 2)), 0.9, 0), "tensor"),
    "words for alpha": (lambda: advnb.valid_shift("a"), "alpha must lie"),
    "images without channels": (
        lambda: Split(torch.rand(2, 0, 3, 3), torch.zeros(2, dtype=torch.int64)),
        "no pixels",
    ),
    "arrays for a split": (lambda: Split(np.zeros((1, 1, 2, 2)), np.zeros(1)), "float tensor"),
    "a panel above its sliders": (lambda: advnb.live.BlindspotPanel(MODEL, TEN, eps=2), "eps"),
    "a panel with an invalid shift": (
        lambda: advnb.live.BlindspotPanel(MODEL, TEN, alpha=0.9, beta=0.2),
        "beta",
    ),
    "a panel of no images": (lambda: advnb.live.BlindspotPanel(MODEL, TEN, images=0), "images"),
    "a panel without a split": (lambda: advnb.live.AttackPanel(MODEL, None), "Split is needed"),
    "a panel past its images": (lambda: advnb.live.AttackPanel(MODEL, TEN, image=99), "image"),
}


@pytest.mark.parametrize("call", CALLS)
def test_one_clear_line(call: str) -> None:
    act, words = CALLS[call]
    with refused(words):
        act()


@pytest.mark.parametrize("key", [[], ["a"], [None], [0.5], [[0, 1], [2, 3]], slice(5, 5)])
def test_an_index_that_selects_nothing_sound(key: object) -> None:
    with refused("split", IndexError):
        TEN[key]  # type: ignore[index]


def test_backwards_and_other_libraries_numbers() -> None:
    assert torch.equal(TEN[::-1].y, TEN.y.flip(0))
    assert Attack(Pixels(np.float32(0.1)), steps=np.int64(2)).steps == 2


def test_a_checkpoint_knows_the_images_and_not_only_their_codes(tmp_path: Path) -> None:
    path = tmp_path / "run"
    split = FONTS.train(100)
    advnb.fit(
        advnb.models.CNN(0), split, recipes.normal(), epochs=1, checkpoint=path, progress=False
    )
    grey = split.with_x(advnb.scale_shift(split.x, 0.7, 0.1))
    with refused("another run"):
        advnb.fit(
            advnb.models.CNN(0), grey, recipes.normal(), epochs=1, checkpoint=path, progress=False
        )
