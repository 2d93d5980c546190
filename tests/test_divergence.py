"""Divergence between two samples, against scipy's densities, closed forms and brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from torch import Tensor

from advnb.divergence import (
    Divergence,
    centres,
    density,
    integrate_kl,
    kl,
    kl_by_class,
    knn_kl,
    shuffled,
)
from advnb.stats import generator

from .conftest import refused

ONE = torch.ones(1)
TWO = torch.ones(2)


def gaussians(
    n: int, m: int, seed: int, *, shift: float = 0, width: float = 1, d: int = 2
) -> tuple[Tensor, Tensor]:
    """Points of N(0, I), and of N(shift e_1, width^2 I)."""
    stream = generator(seed, d)
    x, y = torch.randn(n, d, generator=stream), torch.randn(m, d, generator=stream) * width
    y[:, 0] += shift
    return x, y


def between(m0: Any, c0: Any, m1: Any, c1: Any) -> float:
    """KL(N(m0, c0) || N(m1, c1)), in closed form."""
    m0, c0, m1, c1 = (np.asarray(part, float) for part in (m0, c0, m1, c1))
    inverse, away = np.linalg.inv(c1), m1 - m0
    determinants = np.linalg.slogdet(c1)[1] - np.linalg.slogdet(c0)[1]
    return (np.trace(inverse @ c0) + away @ inverse @ away - len(m0) + determinants) / 2


def truth(shift: float, width: float, d: int = 2) -> float:
    away = np.eye(d)[0] * shift
    return between(np.zeros(d), np.eye(d), away, np.eye(d) * width**2)


# --- densities


@pytest.mark.parametrize(("d", "bandwidth"), [(1, "scott"), (2, "scott"), (3, "scott"), (2, 0.7)])
def test_density_is_scipys(d: int, bandwidth: Any) -> None:
    stream = generator(d)
    tilt = torch.randn(d, d, generator=stream)
    points = (torch.randn(400, d, generator=stream) @ tilt + 100).double()
    at = (2 * torch.randn(150, d, generator=stream) @ tilt + 100).double()
    want = scipy_stats.gaussian_kde(points.T.numpy(), bw_method=bandwidth)(at.T.numpy())
    found = density(points, at, bandwidth=bandwidth)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-9, atol=1e-12 * want.max())


def test_weights_are_copies_under_the_same_kernel() -> None:
    points, at = gaussians(40, 30, 0, shift=0.5)
    weights = torch.rand(40, 3, generator=generator(2))
    weights /= weights.sum(0)
    kernel = np.cov(points.double().T.numpy()) * 40 ** (-2 / 6)
    want = np.zeros((30, 3))
    for point, share in zip(points.double().numpy(), weights.double().numpy()):
        want += scipy_stats.multivariate_normal(point, kernel).pdf(at.numpy())[:, None] * share
    np.testing.assert_allclose(density(points, at, weights=weights).numpy(), want, rtol=1e-6)


# --- the integrator

Log = Callable[[Any], Any]


def product(*parts: Any) -> Log:
    """The log density of independent coordinates, each a distribution of scipy."""
    return lambda x: torch.tensor(sum(part.logpdf(x[:, i]) for i, part in enumerate(parts)))


def gaussian(mean: Any, covariance: Any) -> Log:
    return lambda x: torch.tensor(scipy_stats.multivariate_normal(mean, covariance).logpdf(x))


def entropies(a: float, b: float, c: float, d: float) -> float:
    """KL(Beta(a, b) || Beta(c, d))."""
    from scipy.special import betaln, digamma

    total = betaln(c, d) - betaln(a, b) + (a - c) * digamma(a) + (b - d) * digamma(b)
    return float(total + (c - a + d - b) * digamma(a + b))


def laplace(shift: float, width: float) -> float:
    """KL(Laplace(0, 1) || Laplace(shift, width))."""
    return (abs(shift) + math.exp(-abs(shift))) / width + math.log(width) - 1


TILTED = [[1.0, 0.8], [0.8, 1.5]]
ANALYTIC = {
    "the same width": (gaussian([0, 0], 1), gaussian([0.5, 0.2], 1), -8, 8,
                       between([0, 0], np.eye(2), [0.5, 0.2], np.eye(2))),
    "close": (gaussian([0, 0], 1), gaussian([0.05, 0], 1), -8, 8, 0.05**2 / 2),
    "wider": (gaussian([0, 0], 1), gaussian([0, 1], 9), -12, 12,
              between([0, 0], np.eye(2), [0, 1], 9 * np.eye(2))),
    "narrower": (gaussian([0, 0], 1), gaussian([0, 0], 0.36), -8, 8,
                 between([0, 0], np.eye(2), [0, 0], 0.36 * np.eye(2))),
    "tilted": (gaussian([0, 0], TILTED), gaussian([1, -0.5], [[1, -0.3], [-0.3, 2]]), -10, 10,
               between([0, 0], TILTED, [1, -0.5], [[1, -0.3], [-0.3, 2]])),
    "Laplace": (product(scipy_stats.laplace(), scipy_stats.laplace()),
                product(scipy_stats.laplace(1), scipy_stats.laplace(0, 2)), -15, 15,
                laplace(1, 1) + laplace(0, 2)),
    "Beta": (product(scipy_stats.beta(2, 3), scipy_stats.beta(4, 2)),
             product(scipy_stats.beta(3, 2), scipy_stats.beta(3, 3)), 0, 1,
             entropies(2, 3, 3, 2) + entropies(4, 2, 3, 3)),
    "squares": (product(scipy_stats.uniform(0, 1), scipy_stats.uniform(0, 1)),
                product(scipy_stats.uniform(0, 1.5), scipy_stats.uniform(0, 2)), -0.5, 2.5,
                math.log(3)),
}  # fmt: skip


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("name", ANALYTIC)
def test_integral_of_analytic_densities(name: str, normalised: bool) -> None:
    p, q, low, high, want = ANALYTIC[name]
    # the floor is for samples: a closed form has none; unless the masses' errors at kinks and
    # edges cancel, these take smaller cells
    more: dict[str, Any] = {"floor": 1e-200} if normalised else {"floor": 1e-200, "grid": 300}
    found = integrate_kl(p, q, low * TWO, high * TWO, normalised=normalised, **more)
    assert found.item() == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize("d", [1, 3])
def test_integral_in_other_dimensions(d: int) -> None:
    away = np.full(d, 0.4)
    p, q = gaussian(np.zeros(d), np.eye(d)), gaussian(away, 2 * np.eye(d))
    box = -8 * torch.ones(d), 8 * torch.ones(d)
    want = between(np.zeros(d), np.eye(d), away, 2 * np.eye(d))
    assert integrate_kl(p, q, *box, floor=0).item() == pytest.approx(want, rel=0.01)


def test_centres_of_cells() -> None:
    found = centres(torch.tensor([0.0, 10.0]), torch.tensor([1.0, 14.0]), 2)
    assert found.tolist() == [[0.25, 11], [0.25, 13], [0.75, 11], [0.75, 13]]


def test_values_on_the_grid_are_as_good_as_functions_and_many_at_once() -> None:
    p, q, low, high, _ = ANALYTIC["tilted"]
    box = low * TWO, high * TWO
    at = centres(*box, 60)
    both = torch.stack([p(at), q(at)], 1), torch.stack([q(at), p(at)], 1)
    found = integrate_kl(*both, *box, grid=60)
    want = [integrate_kl(p, q, *box, grid=60), integrate_kl(q, p, *box, grid=60)]
    assert found.tolist() == pytest.approx([value.item() for value in want], rel=1e-12)
    assert abs(found[0] - found[1]) > 0.1


def test_floor_bounds_what_empty_places_add() -> None:
    # half of p lies where q is 0: there q is the floor, a share of the uniform density 1/4
    p = product(scipy_stats.uniform(0, 2))
    q = product(scipy_stats.uniform(1, 2))
    for floor in (1e-3, 1e-9):
        found = integrate_kl(p, q, 0 * ONE, 4 * ONE, floor=floor, normalised=False).item()
        assert found == pytest.approx(0.5 * math.log(0.5 / (floor / 4)), rel=1e-9)
    assert integrate_kl(p, q, 0 * ONE, 4 * ONE, floor=0).item() == math.inf


def test_normalised_counts_only_what_is_in_the_box() -> None:
    # exponential densities on [0, 1]: truncated, and as they are
    p, q = product(scipy_stats.expon(0, 1)), product(scipy_stats.expon(0, 0.5))
    inside = 1 - math.exp(-1), 1 - math.exp(-2)
    mean = 1 - 2 * math.exp(-1)  # the integral of x exp(-x) over [0, 1]
    plain = -math.log(2) * inside[0] + mean
    cut = plain / inside[0] - math.log(inside[0] / inside[1])
    for normalised, want in ((False, plain), (True, cut)):
        found = integrate_kl(p, q, 0 * ONE, ONE, normalised=normalised).item()
        assert found == pytest.approx(want, abs=1e-5)
    assert plain < 0 < cut


# --- samples


@pytest.mark.parametrize(
    ("shift", "width"),
    [(0, 1), (0.5, 1), (1, 1), (2, 1), (3, 1), (0, 1.5), (2, 1.5), (1, 3)],
)
def test_samples_where_test_is_at_least_as_wide(shift: float, width: float) -> None:
    want = truth(shift, width)
    for seed in range(2):
        found = kl(*gaussians(5000, 5000, seed, shift=shift, width=width)).item()
        assert found == pytest.approx(want, abs=0.03 + 0.15 * want)


def test_samples_of_a_tilted_shape() -> None:
    x, y = gaussians(5000, 5000, 3, shift=0.7, width=1.3)
    tilt = torch.tensor([[1.0, 0.9], [0.0, 0.5]])
    want = truth(0.7, 1.3)  # a linear map changes no divergence
    assert kl(x @ tilt, y @ tilt).item() == pytest.approx(want, abs=0.03 + 0.15 * want)


@given(
    seed=st.integers(0, 99),
    angle=st.floats(0, 6.3),
    scale=st.floats(0.01, 100),
    away=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
)
@settings(max_examples=25)
def test_shift_scale_and_rotation_change_nothing(
    seed: int, angle: float, scale: float, away: tuple[float, float]
) -> None:
    x, y = (part.double() for part in gaussians(60, 40, seed, shift=1, width=1.5))
    move = scale * torch.tensor(away, dtype=torch.float64)
    before = kl(x, y, grid=40).item()
    assert kl(scale * x + move, scale * y + move, grid=40).item() == pytest.approx(before, rel=1e-6)
    assert before > 0.01
    turn = torch.tensor(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]],
        dtype=torch.float64,
    )
    # the box does turn: it must hold all, and no floor, which depends on the box
    whole: dict[str, Any] = {"grid": 80, "margin": 0.7, "floor": 1e-100}
    assert kl(x @ turn, y @ turn, **whole).item() == pytest.approx(kl(x, y, **whole).item(), 1e-3)
    assert knn_kl(x @ turn + move, y @ turn + move) == pytest.approx(knn_kl(x, y), abs=1e-6)


@given(
    seed=st.integers(0, 999),
    n=st.integers(5, 80),
    m=st.integers(5, 80),
    shift=st.floats(0, 20),
    width=st.floats(0.1, 10),
    floor=st.sampled_from([1e-12, 1e-6, 0.1, 1]),
    margin=st.sampled_from([0, 0.5]),
)
@settings(max_examples=50)
def test_never_negative_and_zero_for_the_same(
    seed: int, n: int, m: int, shift: float, width: float, floor: float, margin: float
) -> None:
    x, y = gaussians(n, m, seed, shift=shift, width=width)
    more: dict[str, Any] = {"grid": 30, "floor": floor, "margin": margin}
    ways = [kl(x, y, direction=way, **more).item() for way in ("train||test", "test||train")]
    assert min(ways) > -1e-12
    assert kl(x, y, direction="symmetric", **more).item() == pytest.approx(sum(ways) / 2)
    assert kl(y, x, **more).item() == pytest.approx(ways[1], rel=1e-9, abs=1e-12)
    same = kl(x, x, **(more | {"floor": 1e-200})).item()
    assert same == pytest.approx(0, abs=1e-12)


def test_settings_that_hardly_matter_and_one_that_does() -> None:
    x, y = gaussians(2000, 1000, 0, shift=1, width=1.2)
    plain = kl(x, y).item()
    for more in ({"grid": 50}, {"grid": 200}, {"floor": 1e-9}):
        assert kl(x, y, **more).item() == pytest.approx(plain, rel=0.01)  # type: ignore[arg-type]
    assert kl(x, y, margin=0.2).item() == pytest.approx(plain, rel=0.05)
    assert kl(x, y, bandwidth=0.05).item() > 1.5 * plain  # too little smoothing: noise


def test_an_outlier_adds_no_more_than_the_floor_lets_it() -> None:
    x, y = gaussians(500, 500, 0)
    x[0] = 40
    for floor in (1e-4, 1e-8):
        added = (kl(x, y, floor=floor) - kl(x, y, floor=floor * 1e-2)).item()
        # one point of 500, a quarter of its kernel inside the box: ln 100 / 500 at most, not none
        assert -math.log(100) / 500 * 1.01 < added < -math.log(100) / 500 / 8


# --- classes and their interval


def classes(
    n: int, m: int, seed: int, shifts: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sets = [gaussians(n, m, 100 * seed + k, shift=shift) for k, shift in enumerate(shifts)]
    names = torch.tensor([7, 2, 4][: len(shifts)])
    x, y = (torch.cat(part) for part in zip(*sets))
    # mixed, as real data is
    a, b = (torch.randperm(len(part), generator=generator(seed)) for part in (x, y))
    return x[a], names.repeat_interleave(n)[a], y[b], names.repeat_interleave(m)[b]


def test_each_class_by_itself_and_the_mean() -> None:
    x, x_y, y, y_y = classes(200, 100, 0, (0.0, 1.0, 2.0))
    found = kl_by_class(x, x_y, y, y_y, grid=30, replicates=50)
    want = {k: kl(x[x_y == k], y[y_y == k], grid=30).item() for k in (2, 4, 7)}
    assert found.classes == pytest.approx(want)
    assert list(found.classes) == [2, 4, 7]
    assert found.value == pytest.approx(sum(want.values()) / 3)
    assert found.low < found.value < found.high
    again = kl_by_class(x, x_y, y, y_y, grid=30, replicates=50)
    other = kl_by_class(x, x_y, y, y_y, grid=30, replicates=50, seed=1)
    assert again == found
    assert other.value == pytest.approx(found.value, rel=1e-12)
    assert other.low != found.low
    none = kl_by_class(x, x_y, y, y_y, grid=30, replicates=0)
    assert none.classes == pytest.approx(want)
    assert math.isnan(none.low)
    assert math.isnan(none.high)
    assert str(Divergence(0.12345, 0.1, 0.2, 0.01, {0: 0.1, 1: 0.2})) == (
        "0.123 [0.100, 0.200] (2 classes)"
    )


def test_interval_is_as_wide_as_brute_force_resampling_says() -> None:
    x, x_y, y, y_y = classes(300, 200, 1, (0.0, 1.0))
    found = kl_by_class(x, x_y, y, y_y, grid=25, replicates=400)
    rows, means = np.random.default_rng(0), []
    for _ in range(200):
        values = []
        for k in (7, 2):
            a, b = x[x_y == k], y[y_y == k]
            a = a[torch.from_numpy(rows.integers(len(a), size=len(a)))]
            b = b[torch.from_numpy(rows.integers(len(b), size=len(b)))]
            values.append(kl(a, b, grid=25).item())
        means.append(np.mean(values))
    spread = np.quantile(means, 0.975) - np.quantile(means, 0.025)
    # by brute force the kernels' covariance is drawn again too
    assert found.high - found.low == pytest.approx(spread, rel=0.25)
    assert found.bias == pytest.approx(np.mean(means) - found.value, rel=0.25)


def test_interval_holds_what_other_samples_give_and_the_bias_is_told() -> None:
    found = [kl_by_class(*classes(300, 200, 10 + k, (0.0, 1.0)), grid=25, replicates=60)
             for k in range(60)]  # fmt: skip
    values = np.array([one.value for one in found])
    inside = np.mean([one.low <= values.mean() <= one.high for one in found])
    assert 0.8 <= inside <= 1
    widths = np.array([one.high - one.low for one in found])
    assert widths.mean() / 3.92 == pytest.approx(values.std(ddof=1), rel=0.3)
    # the mean of the classes' true divergences is .25
    bias = np.mean([one.bias for one in found])
    assert values.mean() - 0.25 > 0.03
    assert values.mean() - bias == pytest.approx(0.25, abs=0.03)


# --- nearest neighbours


@pytest.mark.parametrize("d", [2, 5])
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(("shift", "width"), [(0, 1), (0.5, 1), (1, 1), (2, 1), (0, 2), (1, 1.5)])
def test_neighbours_against_the_closed_form(d: int, k: int, shift: float, width: float) -> None:
    want = truth(shift, width, d)
    found = knn_kl(*gaussians(5000, 5000, 5, shift=shift, width=width, d=d), k=k)
    assert found == pytest.approx(want, abs=0.06 + 0.2 * want)


@given(
    seed=st.integers(0, 99), n=st.integers(8, 40), m=st.integers(8, 40), k=st.integers(1, 7),
    d=st.integers(1, 6),
)  # fmt: skip
def test_neighbours_by_brute_force(seed: int, n: int, m: int, k: int, d: int) -> None:
    x, y = (part.double() for part in gaussians(n, m, seed, shift=1, d=d))
    own = torch.cdist(x, x).fill_diagonal_(math.inf).sort(1).values[:, k - 1]
    other = torch.cdist(x, y).sort(1).values[:, k - 1]
    want = d * (other / own).log().mean().item() + math.log(m / (n - 1))
    assert knn_kl(x, y, k=k) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("k", [1, 5])
def test_copies_do_not_spoil_the_neighbours(k: int) -> None:
    x, y = gaussians(4000, 4000, 0, shift=1)
    before = knn_kl(x, y, k=k)
    x[:40], x[40:60], y[:10] = x[100:140], x[200], x[300:310]
    assert knn_kl(x, y, k=k) == pytest.approx(before, abs=0.05)
    # on a lattice, where one point in seven has a copy, the estimate is still near 1/2
    lattice = (x * 50).round()
    counts = lattice.unique(dim=0, return_counts=True)[1]
    assert 0.1 < 1 - (counts == 1).sum() / len(x) < 0.2
    assert knn_kl(lattice, (y * 50).round(), k=k) == pytest.approx(0.5, abs=0.1)


def test_neighbours_of_copies_by_hand() -> None:
    # 0 has a copy: with k = 2 its distances are 1 and 5; the others keep k = 1: 1 and 3, 2 and 1
    x = torch.tensor([[0.0], [0.0], [1.0], [3.0]])
    y = torch.tensor([[4.0], [5.0]])
    logs = 2 * math.log(5 / 1) + math.log(3 / 1) + math.log(1 / 2)
    assert knn_kl(x, y, k=1) == pytest.approx(logs / 4 + math.log(2 / 3), abs=1e-12)


# --- how far the estimates can be trusted


def test_shuffled_points_differ_by_the_bias() -> None:
    x = torch.randn(2000, 2, generator=generator(0)) + torch.arange(2).repeat(1000)[:, None] * 9
    y = torch.arange(2).repeat(1000)
    values = {}
    for n in (100, 400, 1000):
        values[n] = shuffled(x[:n], y[:n], x[-n:], y[-n:], repeats=6, grid=30)
        assert values[n].shape == (6,)
        assert values[n].dtype == torch.float64
        assert values[n].mean() > 3 * values[n].std() / 6**0.5  # upward
        own = kl_by_class(x[:n], y[:n], x[-n:], y[-n:], replicates=0, grid=30).value
        assert abs(own - values[n].mean()) < 4 * values[n].std()  # one sample: one of them
    assert values[1000].mean() < 0.4 * values[100].mean()
    again = shuffled(x[:100], y[:100], x[-100:], y[-100:], repeats=6, grid=30)
    assert again.equal(values[100])
    other = shuffled(x[:100], y[:100], x[-100:], y[-100:], repeats=6, grid=30, seed=1)
    assert not other.equal(values[100])


def test_shuffled_points_keep_their_class_and_forget_their_set() -> None:
    # one class a place: mixed classes would be a density of two places, and the sets' difference
    # is gone once they are dealt anew
    y = torch.arange(3).repeat(100)
    x = torch.randn(300, 2, generator=generator(1)) + 50.0 * y[:, None]
    moved = x + 3
    own = kl_by_class(x, y, moved, y, replicates=0, grid=30).value
    values = shuffled(x, y, moved, y, repeats=5, grid=30)
    assert own > 10 * values.max()
    one = [shuffled(x[y == k], y[y == k], moved[y == k], y[y == k], repeats=5, grid=30)
           for k in range(3)]  # fmt: skip
    assert values.mean() == pytest.approx(torch.stack(one).mean().item(), rel=0.5)
    half = shuffled(x, y, moved, y, share=0.5, repeats=5, grid=30)
    assert half.mean() > values.mean()  # fewer points, more of the bias
    few = shuffled(x, y, moved[:30], y[:30], repeats=2, grid=30)  # sets of unlike sizes
    assert len(few) == 2


# --- bad input


X, Y = gaussians(30, 20, 0)
X_Y, Y_Y = torch.arange(30) % 3, torch.arange(20) % 3
NAN = X.clone()
NAN[3, 1] = math.nan
REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: kl(X[0], Y), r"train must be a tensor of points \[n, d\]"),
    (lambda: kl(X.numpy(), Y), "train must be a tensor.*got ndarray"),  # type: ignore[arg-type]
    (lambda: kl(X, Y[:0]), "test must be.*not empty"),
    (lambda: kl(NAN, Y), "NaN or infinite.*leave those points out"),
    (lambda: kl(X, Y[:, :1]), "projected together: test has 1 dimensions and the other 2"),
    (lambda: kl(X, Y, direction="both"), "direction must be.*got 'both'"),  # type: ignore[arg-type]
    (lambda: kl(X, Y, floor=-1), r"floor must be in \[0, 1\]; got -1"),
    (lambda: kl(X, Y, floor=math.nan), "floor must be"),
    (lambda: kl(X, Y, margin=-0.1), "margin must be"),
    (lambda: kl(X, Y, bandwidth="silverman"), "'scott' or > 0"),  # type: ignore[arg-type]
    (lambda: kl(X, Y, bandwidth=0), "'scott' or > 0"),
    (lambda: kl(X, Y, bandwidth=1e-9), "larger grid or bandwidth"),
    (lambda: kl(X, Y, grid=1), "grid must be a whole number >= 2"),
    (lambda: kl(X, Y, grid=10_000), "10000\\^2 cells are too many: take a smaller grid"),
    (lambda: kl(torch.randn(30, 9), torch.randn(30, 9)), "smaller grid, or knn_kl"),
    (lambda: kl(X, Y[:1]), "1 points of 2 dimensions lie on one point.*more points"),
    (lambda: kl(X, Y[:, :1].repeat(1, 2)), "lie on one point, line or plane"),
    (lambda: kl(0 * X, 0 * Y), "alike in a coordinate"),
    (lambda: integrate_kl(X[:, 0], X[:, 0], TWO, TWO), "low must be below high"),
    (lambda: integrate_kl(X[:, 0], X[:, 0], 0 * TWO, TWO), "wanted at 10000 cells; got 30 and 30"),
    (lambda: kl_by_class(X, X_Y.float(), Y, Y_Y), r"train_y must be int64 labels \[30\]"),
    (lambda: kl_by_class(X, X_Y, Y, X_Y), r"test_y must be int64 labels \[20\].*\[30\]"),
    (
        lambda: kl_by_class(X, X_Y, Y, Y_Y * 0),
        "class 1 has 10 training and 0 test points.*leave the class out",
    ),
    (lambda: kl_by_class(X, X_Y, Y, Y_Y, replicates=-1), "replicates must be a whole number >= 0"),
    (lambda: kl_by_class(X, X_Y, Y, Y_Y, grid=999), "998,001 cells times 201 weightings.*fewer"),
    (lambda: kl_by_class(X, [0], Y, Y_Y), r"train_y must be int64 .*got \[0\]"),  # type: ignore
    (lambda: kl_by_class(X, X_Y, Y, Y_Y, seed=0.5), "seed must be"),  # type: ignore[arg-type]
    (lambda: knn_kl(X, Y, k=0), "k must be a whole number >= 1"),
    (lambda: knn_kl(X, Y, k=21), "30 training and 20 test points.*k = 21.*smaller k"),
    (lambda: knn_kl(X[:1], Y), "1 training and 20 test points are too few for k = 5"),
    (lambda: knn_kl(0 * X, Y), "copies"),
    (lambda: shuffled(X, X_Y, Y, Y_Y, share=0), r"share must be in \(0, 1\]"),
    (lambda: shuffled(X, X_Y, Y, Y_Y, repeats=0), "repeats must be a whole number >= 1"),
    (lambda: shuffled(X, X_Y.float(), Y, Y_Y), r"train_y must be int64 labels \[30\]"),
]


@pytest.mark.parametrize("row", range(len(REFUSED)))
def test_bad_input_is_one_line(row: int) -> None:
    act, says = REFUSED[row]
    with refused(says):
        act()
