"""Rates: Wilson's interval against scipy, clustered intervals by their properties, generators."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binomtest, spearmanr, t
from sklearn.linear_model import LogisticRegression

from advnb.stats import (
    Estimate,
    Rate,
    apart,
    bootstrap,
    correlation,
    difference,
    generator,
    logistic,
    rank_correlation,
    rate,
    slope,
    wilcoxon,
)


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


@given(seed=st.integers(0, 1000), repeats=st.integers(2, 6), n=st.integers(1, 60))
def test_starts_of_an_image_are_a_group(seed: int, repeats: int, n: int) -> None:
    stream = generator(seed)
    hits = torch.rand(repeats, n, generator=stream) < torch.rand(n, generator=stream)
    known, same = rate(hits), rate(hits.flatten(), 7 - 3 * torch.arange(n).repeat(repeats))
    assert (same.value, same.n) == (known.value, known.n)
    assert (same.low, same.high) == pytest.approx((known.low, known.high))


@given(seed=st.integers(0, 1000), n=st.integers(2, 60), kinds=st.integers(1, 8))
def test_groups_of_groups(seed: int, n: int, kinds: int) -> None:
    """Between the interval of one entry a group and that of independent ones; in any order."""
    stream = generator(seed)
    groups = torch.randint(kinds, (n,), generator=stream)
    hits = torch.rand(3, n, generator=stream) < 0.4
    order = torch.randperm(n, generator=stream)
    r, again = rate(hits, groups), rate(hits[:, order], groups[order])
    assert (r.value, r.low, r.high) == pytest.approx((again.value, again.low, again.high))
    assert r.low <= r.value <= r.high
    assert width(r) >= width(rate(hits.flatten())) - 1e-12


def test_intervals_of_groups_cover() -> None:
    """Letters of a font share its fate: the truth lies within 19 intervals of 20, of groups of
    unequal sizes too, where intervals that ignore them miss it far more often."""
    stream, covered = generator(0), {True: 0, False: 0}
    groups = torch.arange(60).repeat_interleave(torch.arange(60) % 10 + 5)
    for _ in range(400):
        share = torch.tensor(beta.ppf(torch.rand(60, generator=stream), 1.4, 0.6))  # mean .7
        hits = torch.rand(len(groups), generator=stream) < share[groups]
        for known in covered:
            r = rate(hits, groups if known else None)
            covered[known] += r.low <= 0.7 <= r.high
    assert 0.92 <= covered[True] / 400 <= 0.98
    assert covered[False] / 400 < 0.8


@pytest.mark.parametrize("groups", [[0, 0, 1], torch.tensor([0, 1]), torch.zeros(3, 1)])
def test_groups_are_a_number_for_each(groups: object) -> None:
    with pytest.raises(ValueError, match="groups must be one number for each of 3"):
        rate(torch.tensor([True, False, True]), groups)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("n", range(4, 12))
def test_one_order_has_a_rank_correlation_of_1(n: int) -> None:
    for y, value in ((range(n), 1), (range(n, 0, -1), -1)):
        found = rank_correlation(range(n), y)
        assert (found.value, found.low, found.high) == (value, value, value)


def test_the_slope_of_a_level_line_is_known() -> None:
    found = slope([1, 2, 3, 4], [1, 1, 1, 1])
    assert (found.value, found.low, found.high) == (0, 0, 0)


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


def test_the_rank_correlation_is_scipys_and_its_interval_the_bootstraps() -> None:
    stream = generator(0)
    x = torch.randn(400, generator=stream)
    y = (0.6 * x + torch.randn(400, generator=stream)).exp()  # ranks do not mind
    found = rank_correlation(x.tolist(), y.tolist())
    assert found.value == pytest.approx(spearmanr(x, y).statistic)
    draws = torch.randint(400, (1000, 400), generator=stream)
    again = [spearmanr(x[row], y[row]).statistic for row in draws]
    assert (found.low, found.high) == pytest.approx(np.quantile(again, [0.025, 0.975]), abs=0.02)


def test_a_partial_rank_correlation_is_that_of_the_closed_form() -> None:
    stream = torch.Generator().manual_seed(0)
    x, y, z = torch.randn(3, 200, generator=stream)
    a, b = x + z, y + 2 * z  # they have nothing in common but z
    found = rank_correlation(a.tolist(), b.tolist(), z.tolist())
    ab, az, bz = (float(spearmanr(*pair).statistic) for pair in ((a, b), (a, z), (b, z)))
    assert ab > 0.4
    assert found.value == pytest.approx((ab - az * bz) / ((1 - az**2) * (1 - bz**2)) ** 0.5)
    assert found.low < 0 < found.high
    assert found.n == 200
    nothing = rank_correlation(a.tolist(), b.tolist(), b.exp().tolist())  # of the same order as b
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high) == (-1, 1)


def test_a_rank_correlation_of_constants_is_unknown() -> None:
    found = rank_correlation([1, 1, 1, 1], [1, 2, 3, 4])
    assert math.isnan(found.value)
    assert (found.low, found.high) == (-1, 1)


@given(a=st.integers(3, 60), b=st.integers(3, 60), c=st.integers(3, 60), d=st.integers(3, 60))
def test_the_logistic_slope_of_two_groups_is_their_log_odds_ratio(
    a: int, b: int, c: int, d: int
) -> None:
    x = [0.0] * (a + b) + [1.0] * (c + d)
    hit = [1.0] * a + [0.0] * b + [1.0] * c + [0.0] * d
    found, unit = logistic(x, hit), np.std(x, ddof=1)
    assert found.value / unit == pytest.approx(math.log(c / d) - math.log(a / b), abs=1e-6)
    half = 1.959963985 * math.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
    assert (found.high - found.low) / 2 / unit == pytest.approx(half, rel=1e-5)


def test_the_logistic_slope_is_scikit_learns() -> None:
    stream = generator(1)
    x = 3 + 2 * torch.randn(500, generator=stream).double()
    hit = torch.rand(500, generator=stream) < torch.sigmoid(x - 4)
    oracle = LogisticRegression(C=1e12, tol=1e-10).fit(x[:, None], hit)
    found = logistic(x.tolist(), hit.tolist())
    assert found.value == pytest.approx(oracle.coef_[0, 0] * x.std().item(), rel=1e-4)


def test_a_logistic_slope_beside_others_is_that_of_all_together() -> None:
    stream = generator(2)
    columns = torch.randn(3, 400, generator=stream).double()
    columns[1] += columns[0]  # linked, so that each alone has another slope
    hit = torch.rand(400, generator=stream) < torch.sigmoid(columns[0] - columns[1])
    oracle = LogisticRegression(C=1e12, tol=1e-10).fit(columns.T, hit)
    first, *others = columns.tolist()
    found, alone = logistic(first, hit.tolist(), *others), logistic(first, hit.tolist())
    assert found.value == pytest.approx(oracle.coef_[0, 0] * columns[0].std().item(), rel=1e-4)
    assert abs(alone.value) < 0.3 < 0.5 < found.value
    # Wald: the bootstrap's spread of the same slope
    draws = torch.randint(400, (200, 400), generator=stream)
    again = [
        logistic(columns[0, rows].tolist(), hit[rows].tolist(), *columns[1:, rows].tolist()).value
        for rows in draws
    ]
    assert (found.high - found.low) / 3.92 == pytest.approx(float(np.std(again)), rel=0.2)
    assert math.isnan(logistic(first, hit.tolist(), first).value)


@pytest.mark.parametrize(
    ("x", "hit"),
    [
        ([1, 2, 3, 4, 5], [0, 0, 0, 1, 1]),  # parted by a value: no finite slope
        ([1, 2, 3, 4], [1, 1, 1, 1]),
        ([2, 2, 2, 2], [0, 1, 0, 1]),
        ([0.1] * 24, [0, 1] * 12),  # the mean is not exactly 0.1
    ],
)
def test_a_logistic_slope_that_cannot_be_told(x: list[float], hit: list[float]) -> None:
    found = logistic(x, hit)
    assert math.isnan(found.value)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_a_difference_is_welchs() -> None:
    stream = generator(2)
    a, b = 1 + torch.randn(40, generator=stream), 3 * torch.randn(25, generator=stream)
    found, (va, vb) = difference(a, b), (a.double().var().item() / 40, b.double().var().item() / 25)
    freedom = (va + vb) ** 2 / (va**2 / 39 + vb**2 / 24)
    half = t.ppf(0.975, freedom) * math.sqrt(va + vb)
    assert found.value == pytest.approx((a.double().mean() - b.double().mean()).item())
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))
    assert math.isnan(difference(a, b[:1]).value)


def test_two_rates_apart_are_newcombes_example() -> None:
    """Newcombe (Statistics in Medicine 1998), table II, 56/70 less 48/80, his method 10."""
    found = apart(rate(torch.arange(70) < 56), rate(torch.arange(80) < 48))
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert found.n == 150
    assert apart(Estimate(2, 1, 4, 9), Estimate(2, 1, 4, 9)).value == 0


def test_a_bootstrap_is_the_normal_interval_of_many_values() -> None:
    values = torch.rand(3000, generator=generator(3))
    found, half = bootstrap(values), 1.96 * values.std().item() / 3000**0.5
    assert found.value == pytest.approx(values.mean().item())
    expected = found.value - half, found.value + half
    assert (found.low, found.high) == pytest.approx(expected, abs=half / 8)
    assert bootstrap(values) == found
    assert math.isnan(bootstrap(values[:0]).value)
