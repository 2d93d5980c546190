"""Rates with intervals, and reproducible random numbers: what every other file counts with."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def rate(hits: Tensor, groups: Tensor | None = None) -> Rate:
    """Share of true entries with Wilson's interval (Wilson, JASA 1927).

    `hits` is bool [n], or bool [repeats, n] for n units looked at several times each (images
    attacked from several starts). Repeats of one unit are not independent, nor are units that have
    something in common, told by `groups`, int [n] (the font of each letter, say). The interval then
    uses the effective sample size that the spread *between* units or groups implies, which lies
    between what it would be if all of one group were alike, and the number of entries.
    """
    if not isinstance(hits, Tensor):
        raise ValueError(f"hits must be a tensor of bool; got {type(hits).__name__}")
    hits = hits.detach().cpu().double()
    if groups is not None and (not isinstance(groups, Tensor) or groups.shape != hits.shape[-1:]):
        raise ValueError(
            f"groups must be one number for each of {hits.shape[-1]}; got {brief(groups)}"
        )
    count = hits.numel()
    if count == 0:
        return Rate(math.nan, 0.0, 1.0, 0)
    value, effective = hits.mean().item(), float(count)
    if groups is not None or (hits.ndim == 2 and len(hits) > 1):
        off = (hits - value).view(-1, hits.shape[-1])
        which = torch.arange(hits.shape[-1]) if groups is None else groups.cpu()
        which = which.unique(return_inverse=True)[1]
        sizes = len(off) * which.bincount()
        many, alike = len(sizes), count**2 / sizes.square().sum().item()
        between = off.new_zeros(many).index_add(0, which, off.sum(0)).square().sum().item()
        between *= many / (many - 1) / count**2 if many > 1 else math.inf
        independent = value * (1 - value) / between if between > 0 else 0.0
        effective = min(max(independent, alike), count)
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


def wilcoxon(a: Sequence[float], b: Sequence[float]) -> float:
    """p-value of "values of a are no larger than those of b", for pairs: the one-sided signed-rank
    test of Wilcoxon (1945)."""
    from scipy.stats import wilcoxon as test

    x, y = _pairs(a, b, 1)
    return float(test(x, y, alternative="greater").pvalue)


@dataclass(frozen=True, repr=False)
class Estimate:
    """A number with its 95 % interval, from `n` pairs."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] (n = {self.n})"

    __repr__ = __str__


def correlation(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Pearson's correlation with Fisher's interval; at least four pairs."""
    from scipy.stats import pearsonr

    x, y = _pairs(x, y, 4)
    if len(set(x)) < 2 or len(set(y)) < 2:
        return Estimate(math.nan, -1.0, 1.0, len(x))
    found = pearsonr(x, y)
    between = found.confidence_interval(0.95)
    return Estimate(float(found.statistic), float(between.low), float(between.high), len(x))


def slope(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """The slope of y against x by least squares, with Student's interval; at least three pairs."""
    from scipy.stats import linregress, t

    x, y = _pairs(x, y, 3)
    if len(set(x)) < 2:
        raise ValueError("all x are the same: a slope needs at least two")
    found = linregress(x, y)  # of points on a level, success of 100 % say, its error is NaN
    half = float(found.stderr * t.ppf(0.975, len(x) - 2)) if len(set(y)) > 1 else 0.0
    return Estimate(float(found.slope), found.slope - half, found.slope + half, len(x))


def rank_correlation(x: Sequence[float], y: Sequence[float], *beside: Sequence[float]) -> Estimate:
    """Spearman's correlation with Bonett and Wright's (2000) interval; at least four pairs. With
    others `beside` it, what is left at equal ranks of those (the partial correlation)."""
    x, y = _pairs(x, y, 4)
    n = len(x) - len(beside)
    found = _partial([x, y, *(_pairs(other, y, 4)[0] for other in beside)]) if n > 3 else math.nan
    if math.isnan(found):
        return Estimate(math.nan, -1.0, 1.0, len(x))
    if abs(found) > 1 - 1e-12:  # the same order, or its reverse, up to rounding
        return Estimate(round(found), round(found), round(found), len(x))
    middle, half = math.atanh(found), Z95 * math.sqrt((1 + found**2 / 2) / (n - 3))
    return Estimate(found, math.tanh(middle - half), math.tanh(middle + half), len(x))


def _partial(rows: Sequence[Sequence[float]]) -> float:
    """Spearman's correlation of the first two rows at equal ranks of the others; NaN where one of
    the two is constant, or follows from those."""
    from scipy.stats import rankdata

    ranks = rankdata(rows, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    pair, others = ranks[:2], ranks[2:].T
    left = pair - (others @ np.linalg.lstsq(others, pair.T)[0]).T
    a, b = np.linalg.norm(left, axis=1)
    if min(a, b) < 1e-9 * len(others):
        return math.nan
    return float(left[0] @ left[1] / (a * b))


def logistic(x: Sequence[float], hit: Sequence[float], *beside: Sequence[float]) -> Estimate:
    """How much the log odds of a hit grow with one standard deviation of x: the slope of a logistic
    regression with Wald's interval; at equal values of what stands `beside` it, if anything does.
    NaN and no bounds where no slope can be told: x or hit are all the same, a value of x parts hits
    from misses, or x follows from the others."""
    x, hit = _pairs(x, hit, 4)
    columns, y = (
        torch.tensor(rows, dtype=torch.float64)
        for rows in ([x, *(_pairs(other, hit, 4)[0] for other in beside)], hit)
    )
    unknown = Estimate(math.nan, -math.inf, math.inf, len(x))
    middle, width = columns.mean(1, keepdim=True), columns.std(1, keepdim=True)
    level = width <= 1e-12 * columns.abs().amax(1, keepdim=True)  # up to the rounding of a mean
    if level.any() or y.min() == y.max():
        return unknown
    rows = torch.cat([torch.ones_like(columns[:1]), (columns - middle) / width]).T
    b = rows.new_zeros(rows.shape[1])
    for _ in range(50):  # Newton's method
        p = torch.sigmoid(rows @ b)
        information = rows.T @ (rows * (p * (1 - p))[:, None])
        step, failed = torch.linalg.solve_ex(information, rows.T @ (y - p))
        if failed or not step.isfinite().all() or b.abs().max() > 50:
            return unknown
        b = b + step
        if step.abs().max() < 1e-9:
            half = Z95 * torch.linalg.inv(information)[1, 1].sqrt().item()
            value = b[1].item()
            return Estimate(value, value - half, value + half, len(x))
    return unknown


def difference(a: Tensor, b: Tensor) -> Estimate:
    """Mean of a [n] less mean of b [m], unpaired, with Welch's interval; `n` is n + m. NaN and no
    bounds where either has fewer than two values."""
    from scipy.stats import ttest_ind

    count = len(a) + len(b)
    if min(len(a), len(b)) < 2:
        return Estimate(math.nan, -math.inf, math.inf, count)
    x, y = a.cpu().double(), b.cpu().double()
    value = (x.mean() - y.mean()).item()
    if x.std() + y.std() == 0:
        return Estimate(value, value, value, count)
    between = ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    return Estimate(value, float(between.low), float(between.high), count)


def apart(a: Rate | Estimate, b: Rate | Estimate) -> Estimate:
    """a less b, for two independent numbers with intervals: Newcombe's (1998) interval, which adds
    the squares of what lies between value and bound. `n` is that of both together."""
    value = a.value - b.value
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    high = value + math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, low, high, a.n + b.n)


def bootstrap(values: Tensor, *, repeats: int = 2000, seed: int = 0) -> Estimate:
    """The mean of values [n] with its bootstrap interval (percentiles of resampled means)."""
    values = values.detach().cpu().double()
    n, stream = len(values), generator(seed)
    if n == 0:
        return Estimate(math.nan, -math.inf, math.inf, 0)
    means = torch.stack(
        [values[torch.randint(n, (n,), generator=stream)].mean() for _ in range(repeats)]
    )
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(values.mean().item(), low, high, n)


def _pairs(x: Sequence[float], y: Sequence[float], least: int) -> tuple[list[float], list[float]]:
    a, b = [float(v) for v in x], [float(v) for v in y]
    if len(a) != len(b) or len(a) < least:
        raise ValueError(f"{least} pairs or more are needed; got {len(a)} and {len(b)} numbers")
    return a, b


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
