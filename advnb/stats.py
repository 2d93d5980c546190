"""Rates with intervals, and reproducible random numbers: what every other file counts with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from .checks import brief

Z95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


@dataclass(frozen=True, repr=False)
class Rate:
    """A fraction with its 95 % interval and the number of units it was counted over.

    `value`, `low`, `high` are fractions in [0, 1]; they are NaN, 0 and 1 where `n` is 0.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}] (n = {self.n:,})"

    __repr__ = __str__


def rate(hits: Tensor) -> Rate:
    """Share of true entries with Wilson's interval (Wilson, JASA 1927).

    `hits` is bool [n], or bool [repeats, n] for n units looked at several times each (images
    attacked from several starts). Repeats of one unit are not independent: the interval then
    uses the effective sample size that the spread *between* units implies, which lies between
    n and repeats * n.
    """
    if not isinstance(hits, Tensor):
        raise ValueError(f"hits must be a tensor of bool; got {type(hits).__name__}")
    hits = hits.detach().cpu().double()
    count = hits.numel()
    if count == 0:
        return Rate(math.nan, 0.0, 1.0, 0)
    value, effective = hits.mean().item(), float(count)
    if hits.ndim == 2 and len(hits) > 1:
        units = hits.shape[1]
        between = hits.mean(0).var(correction=1).item() / units if units > 1 else math.inf
        independent = value * (1 - value) / between if between > 0 else 0.0
        effective = min(max(independent, units), count)
    low, high = wilson(value, effective)
    return Rate(value, low, high, count)


def wilson(value: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval for a share `value` of `n` units (n need not be whole)."""
    centre = (value + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(value * (1 - value) / n + Z95**2 / (4 * n * n))
    return max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value))


def mcnemar(a: Tensor, b: Tensor) -> float:
    """p-value of "true is no more frequent in a than in b", for bool [n] of the same n images.

    McNemar's exact test, one-sided: of the images where the two differ, as many as these favour
    `a`, or more, with probability 1/2 each.
    """
    from scipy.stats import binomtest

    if a.shape != b.shape:
        raise ValueError(f"a and b must be of the same images; got {len(a)} and {len(b)}")
    more, less = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(more, more + less, alternative="greater").pvalue) if more else 1.0


def mann_whitney(a: Tensor, b: Tensor) -> float:
    """p-value of "values of a are no larger than values of b", for [n] and [m] unpaired values:
    the one-sided rank test of Mann and Whitney (1947)."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(a.cpu(), b.cpu(), alternative="greater").pvalue)


def verdict(claim: str, holds: bool | Tensor) -> str:
    """A line that says whether a claim holds for the numbers at hand."""
    return f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}"


def generator(*key: int) -> torch.Generator:
    """A CPU generator decided by whole numbers: the same key, the same stream, on any device."""
    if not all(isinstance(k, Integral) for k in key):
        raise ValueError(f"a seed must be a whole number; got {brief(key)}")
    # a length and two words a number: else (7) and (7, 0), or 2**32 and (0, 1), would be one key
    words = [
        len(key),
        *(word for k in key for word in (int(k) & 0xFFFFFFFF, (int(k) >> 32) & 0xFFFFFFFF)),
    ]
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
