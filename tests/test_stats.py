"""Rates: Wilson's interval against scipy, clustered intervals by their properties, generators."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from advnb.stats import Rate, correlation, generator, rate, slope, wilcoxon


def width(r: Rate) -> float:
    return r.high - r.low


@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_is_scipys(n: int, share: float) -> None:
    k = round(share * n)
    r = rate(torch.arange(n) < k)
    ci = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert (r.value, r.n) == (pytest.approx(k / n), n)
    assert (r.low, r.high) == pytest.approx((ci.low, ci.high), abs=1e-9)


def test_nothing_to_count() -> None:
    r = rate(torch.zeros(0, dtype=torch.bool))
    assert math.isnan(r.value)
    assert (r.low, r.high, r.n) == (0, 1, 0)


def test_text() -> None:
    r = rate(torch.arange(2000) < 500)
    assert str(r) == "25.0% [23.2%, 26.9%] (n = 2,000)"


@given(n=st.integers(2, 500), repeats=st.integers(2, 10), share=st.floats(0, 1))
def test_copied_restarts_tell_nothing_new(n: int, repeats: int, share: float) -> None:
    hits = torch.arange(n) < round(share * n)
    once, often = rate(hits), rate(hits.expand(repeats, n))
    assert often.n == repeats * n
    assert (often.value, often.low, often.high) == pytest.approx((once.value, once.low, once.high))


@given(seed=st.integers(0, 1000), share=st.floats(0.1, 0.9))
def test_independent_restarts_count_fully(seed: int, share: float) -> None:
    hits = torch.rand(5, 2000, generator=generator(seed)) < share
    assert width(rate(hits)) == pytest.approx(width(rate(hits.flatten())), rel=0.08)


@given(
    seed=st.integers(0, 1000), repeats=st.integers(1, 6), n=st.integers(1, 60), rho=st.floats(0, 1)
)
def test_clustered_interval_lies_between(seed: int, repeats: int, n: int, rho: float) -> None:
    stream = generator(seed)
    common, own = torch.rand(n, generator=stream), torch.rand(repeats, n, generator=stream)
    hits = torch.where(torch.rand(repeats, n, generator=stream) < rho, common, own) < 0.4
    r = rate(hits)
    assert 0 <= r.low <= r.value <= r.high <= 1
    assert width(r) >= width(rate(hits.flatten())) - 1e-12  # never narrower than independent pairs
    units = binomtest(round(r.value * n), n).proportion_ci(0.95, method="wilson")
    # nor much wider than n images (the share need not be a whole number of them)
    assert width(r) <= units.high - units.low + 1.0 / n


def test_generator_depends_on_its_key_alone() -> None:
    def draw(*key: int) -> list[float]:
        return torch.rand(4, generator=generator(*key)).tolist()

    before = torch.get_rng_state()
    assert draw(3, 1) == draw(3, 1)
    keys = [(0,), (1,), (2,), (0, 1), (1, 2), (2, 1), (0, 0, 1), (-1,), (2**62,), (2**62, 1)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_key_that_goes_on_with_zero_is_another_key() -> None:
    # else a network's weights and an attack's first start would share their numbers
    streams = [generator(*key) for key in ((7,), (7, 0), (7, 0, 0), (2**32,), (0, 1))]
    assert len({stream.initial_seed() for stream in streams}) == len(streams)


@given(pairs=st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=4, max_size=30))
def test_slope_and_correlation_are_numpys(pairs: list[tuple[float, float]]) -> None:
    x, y = (np.array(side) for side in zip(*pairs))
    if np.ptp(x) < 1e-3 or np.ptp(y) < 1e-3:
        return
    assert slope(x, y).value == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-4, abs=1e-6)
    found = correlation(x, y)
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    assert -1 <= found.low <= found.value + 1e-9 <= found.high + 2e-9 <= 1 + 3e-9


def test_intervals_of_slope_and_correlation_cover() -> None:
    # of 400 draws 95 % should hold the truth, give or take four standard errors
    rows, slopes, correlations = np.random.default_rng(0), 0, 0
    for _ in range(400):
        x = rows.normal(size=12)
        y = 0.5 * x + rows.normal(size=12)
        a, b = slope(x, y), correlation(x, y)
        slopes += a.low <= 0.5 <= a.high
        correlations += b.low <= 0.5 / 1.25**0.5 <= b.high
    assert 363 <= slopes <= 397
    assert 363 <= correlations <= 397


def test_estimates_that_cannot_be_had() -> None:
    assert math.isnan(correlation([1, 1, 1, 1], [1, 2, 3, 4]).value)
    for wrong in (
        lambda: slope([1, 1, 1], [1, 2, 3]),
        lambda: slope([1, 2], [1, 2]),
        lambda: correlation([1, 2, 3], [1, 2, 3]),
        lambda: wilcoxon([1], [1, 2]),
    ):
        with pytest.raises(ValueError) as error:
            wrong()
        assert "\n" not in str(error.value)


def test_wilcoxon_by_counting_signs() -> None:
    a, b = [3.0, 5.0, 9.0, 2.0, 8.0], [1.0, 2.0, 4.0, 1.5, 9.0]
    ranks = {2.0: 3, 3.0: 4, 5.0: 5, 0.5: 1, 1.0: 2}  # of the differences' sizes
    seen = sum(ranks[abs(x - y)] for x, y in zip(a, b) if x > y)
    sums = [
        sum(r for r, up in zip(range(1, 6), signs) if up) for signs in product((0, 1), repeat=5)
    ]
    assert wilcoxon(a, b) == pytest.approx(sum(s >= seen for s in sums) / 32)
    assert wilcoxon(b, a) > 0.5
