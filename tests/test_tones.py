"""Scaled and shifted images as a set: every code is a valid image, and the search stays inside."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import advnb
from advnb import Attack, Pixels, Split, scale_shift
from advnb.stats import generator
from advnb.tones import ScaleShift

from .conftest import refused


def images(n: int = 6, dtype: torch.dtype = torch.float32) -> Split:
    x = torch.rand(n, 2, 4, 5, generator=generator(n)).to(dtype)
    x[:2] = x[:2].round()  # black and white
    return Split(x, torch.arange(n) % 3)


def read(tones: ScaleShift, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, beta [N] and delta [N, pixels], by the docstring."""
    alpha = 1 - (1 - tones.lowest) * code[:, 0] / tones.eps
    low, high = tones.shifts
    place = (code[:, 1] / tones.eps + 1) / 2
    return alpha, (low + place * (high - low)) * (1 - alpha) / 2, code[:, 2:]


@settings(max_examples=60)
@given(
    eps=st.floats(0.01, 0.6), lowest=st.floats(0.1, 0.95), relative=st.booleans(),
    start=st.sampled_from(["uniform", "ball", "noise", "gray", "zero"]), seed=st.integers(0, 50),
    shifts=st.sampled_from([(-1.0, 1.0), (0.0, 1.0), (-0.5, 0.25), (1.0, 1.0)]),
)  # fmt: skip
def test_every_start_is_a_toned_image_within_the_radius(
    eps: float, lowest: float, relative: bool, start: advnb.perturbations.Start, seed: int,
    shifts: tuple[float, float],
) -> None:  # fmt: skip
    split, tones = images(dtype=torch.float64), ScaleShift(eps, lowest, relative, shifts=shifts)
    code = tones.region(split).start(start, generator(seed))
    alpha, beta, delta = read(tones, code)
    assert alpha.min() >= lowest - 1e-12
    assert alpha.max() <= 1
    assert (beta >= shifts[0] * (1 - alpha) / 2 - 1e-12).all()
    assert (beta <= shifts[1] * (1 - alpha) / 2 + 1e-12).all()
    x = tones.decode(code, split)
    assert x.min() >= 0
    assert x.max() <= 1
    for row in range(len(split)):
        toned = scale_shift(split.x[row : row + 1], alpha[row].item(), beta[row].item())
        reach = alpha[row] if relative else 1.0
        change = x[row : row + 1] - toned
        assert change.abs().max() <= reach * eps + 1e-9
        assert torch.allclose(change.flatten(), reach * delta[row], atol=1e-9)
    if start == "zero":
        assert torch.equal(x, split.x)


def test_the_first_draw_is_uniform_in_alpha_and_beta() -> None:
    split = Split(torch.rand(4000, 1, 2, 2, generator=generator(0)), torch.zeros(4000).long())
    tones = ScaleShift(0.3, 0.6)
    alpha, beta, _ = read(tones, tones.region(split).start("uniform", generator(1)))
    from scipy.stats import kstest

    assert kstest(alpha.numpy(), "uniform", (0.6, 0.4)).pvalue > 0.01
    part = beta / ((1 - alpha) / 2).clamp_min(1e-6)
    assert kstest(part.numpy(), "uniform", (-1, 2)).pvalue > 0.01
    again = tones.region(split).start("uniform", generator(1))
    assert torch.equal(alpha, read(tones, again)[0])


@pytest.mark.parametrize("relative", [False, True])
def test_gradients(relative: bool) -> None:
    split, tones = images(dtype=torch.float64)[2:4], ScaleShift(0.2, 0.7, relative)
    split = split.with_x(0.2 + 0.6 * split.x)  # away from the edges, where rounding is taken back
    code = tones.region(split).start("uniform", generator(3)) * 0.5
    assert torch.autograd.gradcheck(
        lambda c: tones.decode(c, split), code.requires_grad_(), atol=1e-6
    )


@pytest.mark.parametrize("optimizer", ["sign", "adam"])
def test_the_search_keeps_the_tone_unless_told(
    trained: advnb.models.CNN, optimizer: Literal["sign", "adam"]
) -> None:
    split = advnb.load("fonts").test(40)
    plain = Attack(
        ScaleShift(0.02, 0.6, searched=False), steps=5, lr=0.01, optimizer=optimizer,
        start="uniform", keep="strongest",
    )  # fmt: skip
    moved = replace(plain, set=ScaleShift(0.02, 0.6))
    begin = plain.set.region(split).start("uniform", generator(plain.seed, 0))
    fixed, free = plain(trained, split), moved(trained, split)
    assert torch.equal(fixed.code[0][:, :2], begin[:, :2])
    assert (fixed.code[0][:, 2:] != begin[:, 2:]).any()
    assert (free.code[0][:, :2] != begin[:, :2]).any()
    assert free.success_rate().value >= fixed.success_rate().value
    assert 0 <= free.x.min() <= free.x.max() <= 1


def test_a_search_over_tones_finds_what_a_grid_of_them_does() -> None:
    """Without a change of pixels to speak of: the loss found is about the grid's largest."""
    model = advnb.zoo.load("fonts-cnn-normal")
    split, tones = advnb.load("fonts").test(30), ScaleShift(1e-6, 0.6)
    attack = Attack(tones, steps=30, lr=1e-7, optimizer="sign", keep="strongest", start="uniform")

    def losses(x: Tensor) -> Tensor:
        output = advnb.models.logits(model, split.with_x(x))
        return torch.nn.functional.cross_entropy(output, split.y, reduction="none")

    grid = [
        losses(scale_shift(split.x, alpha, part * (1 - alpha) / 2))
        for alpha in torch.linspace(0.6, 1, 9).tolist()
        for part in torch.linspace(-1, 1, 9).tolist()
    ]
    found = torch.stack([losses(x) for x in replace(attack, restarts=4)(model, split).x]).amax(0)
    gained, most = found - losses(split.x), torch.stack(grid).amax(0) - losses(split.x)
    assert gained.mean() >= 0.95 * most.mean()


def test_scaled_and_rows() -> None:
    split, tones = images(), ScaleShift(0.4, 0.6)
    half = tones.scaled(0.5)
    assert (half.eps, half.lowest) == (0.2, pytest.approx(0.8))
    region = tones.region(split)
    code = region.start("uniform", generator(0))
    rows = torch.tensor([4, 1])
    part = region[rows]
    moved = part.project_(code[rows] * 3)
    assert torch.equal(moved, region.project_(code * 3)[rows])


def test_bad_input() -> None:
    for make, words in (
        (lambda: ScaleShift(0), "eps must be a positive"),
        (lambda: ScaleShift(0.1, 1.0), "lowest must be"),
        (lambda: ScaleShift(0.1, 0.0), "lowest must be"),
        (lambda: ScaleShift(0.1, shifts=0.5), "shifts must be two numbers"),  # type: ignore
        (lambda: ScaleShift(0.1, shifts=(-2.0, 1.0)), r"shifts must be numbers in \[-1, 1\]"),
        (lambda: ScaleShift(0.1, shifts=(0.5, 0.2)), "shifts must be from 0.5 to 1"),
    ):
        with refused(words):
            make()
    assert isinstance(Attack(Pixels(0.1), lr=lambda t: 0.1 / t).lr(2), float)
