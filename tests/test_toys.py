"""Tsipras et al.'s toy data against closed forms and Bayes' rule."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm

from advnb.toys import Tsipras


def test_shares_are_the_closed_forms() -> None:
    toy = Tsipras(p=0.9, eta=0.2, d=50)
    x, y = toy.sample(100_000)
    assert (x[:, 0] == y).float().mean().item() == pytest.approx(0.9, abs=0.005)
    assert (y > 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
    for eps in (0.0, 0.1, 0.4):
        moved = toy.attacked(x, y, eps)
        assert (moved - x).abs().max().item() == pytest.approx(eps, abs=1e-6)
        right = (moved[:, 1:].mean(1).sign() == y).float().mean().item()
        assert right == pytest.approx(toy.accuracy(eps), abs=0.006)
        assert toy.accuracy(eps) == pytest.approx(norm.cdf((0.2 - eps) * math.sqrt(50)))


def test_posterior_is_bayes_rule() -> None:
    toy = Tsipras(p=0.8, eta=0.3, d=3)
    x, y = toy.sample(2000)

    def density(x: torch.Tensor, label: int) -> torch.Tensor:
        first = torch.where(x[:, 0] == label, 0.8, 0.2)
        others = torch.from_numpy(norm.pdf(x[:, 1:].double(), loc=0.3 * label)).prod(1)
        return first * others

    expected = density(x, 1) / (density(x, 1) + density(x, -1))
    assert torch.allclose(toy.posterior(x).double(), expected, atol=1e-5)
    # calibrated: of points told to be 1 with probability q, a share of q is
    told = toy.posterior(x)
    for low in (0.2, 0.5, 0.8):
        part = (told > low) & (told < low + 0.2)
        share = (y[part] > 0).float().mean().item()
        assert share == pytest.approx(told[part].mean().item(), abs=4 / part.sum().item() ** 0.5)


def test_bad_settings() -> None:
    for wrong in ({"p": 0.4}, {"p": 1.0}, {"eta": 0}, {"d": 0}, {"d": 1.5}):
        with pytest.raises(ValueError, match="must be"):
            Tsipras(**wrong)
