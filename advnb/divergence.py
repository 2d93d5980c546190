"""The divergence between training and test points in a low-dimensional projection (Zhang et al.,
ICLR 2019, section 3.2, eq. 3), and how far its estimate can be trusted.

The paper leaves most settings open; here each is a named argument of `kl`. Divergences are in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .checks import brief, number, whole
from .densities import FLOOR, VALUES, centres, density, finite_points, integrate_kl
from .stats import generator

Direction = Literal["train||test", "test||train", "symmetric"]


def kl(
    train: Tensor,
    test: Tensor,
    *,
    grid: int = 100,
    floor: float = FLOOR,
    bandwidth: Literal["scott"] | float = "scott",
    direction: Direction = "train||test",
    normalised: bool = True,
    margin: float = 0.0,
    weights: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Divergence of the kernel densities of `train` [n, d] and `test` [m, d] over the box that
    bounds all points (Z eq. 3): float64 []; with `weights` ([n, b], [m, b]: see `density`) [b].

    What the paper leaves open:
    - `grid`: cells a side.
    - `floor`: the least of the density divided by, as a multiple of the box's uniform density,
      because an absolute one would depend on the projection's scale. The default only bounds what
      an outlier far from every point of the other set may add; eq. 3 has none.
    - `bandwidth`: Scott's rule, or the factor of each set's standard deviations.
    - `direction`: which of the two averages; "symmetric" is the mean of both ways.
    - `normalised`: the kernels reach beyond the box; whether what is inside counts as 1.
    - `margin`: how far the box goes beyond the points, as a multiple of its sides.
    """
    if direction not in ("train||test", "test||train", "symmetric"):
        raise ValueError(
            f"direction must be 'train||test', 'test||train' or 'symmetric'; got {brief(direction)}"
        )
    margin = number("margin", margin, "in [0, 10]", lambda v: 0 <= v <= 10)
    train, test = finite_points("train", train), finite_points("test", test, like=train)
    both = torch.cat([train, test])
    low, high = both.amin(0), both.amax(0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    if not (low < high).all():
        raise ValueError("all points are alike in a coordinate: drop it, it has no density")
    places = centres(low, high, grid)
    if weights and len(places) * weights[0].shape[1] > VALUES:
        raise ValueError(
            f"{len(places):,} cells times {weights[0].shape[1]:,} weightings are too many: take a "
            "smaller grid or fewer replicates"
        )
    p, q = (
        density(points, places, bandwidth=bandwidth, weights=share).log()
        for points, share in zip((train, test), weights or (None, None))
    )
    ways = {"train||test": [(p, q)], "test||train": [(q, p)]}.get(direction, [(p, q), (q, p)])
    found = [integrate_kl(a, b, low, high, grid=grid, floor=floor, normalised=normalised)
             for a, b in ways]  # fmt: skip
    return torch.stack(found).mean(0)


@dataclass(frozen=True, repr=False)
class Divergence:
    """The mean over classes with its 95 % interval; `classes` has each class's own value.

    The interval is of the points' sampling alone, with network, projection and kernels as they are:
    it says where other samples' estimates would be (in 85 to 98 of 100 trials with Gaussians it
    held their mean), not where the divergence is. Another run of the projection is not in it, nor
    the bias that smoothing and noise give the estimate. `bias` is the bootstrap's estimate of what
    noise gives, which is most of it unless test points are narrower than training points;
    `value - bias` is nearer the divergence.
    """

    value: float
    low: float
    high: float
    bias: float
    classes: dict[int, float]

    def __str__(self) -> str:
        n = len(self.classes)
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] ({n} classes)"

    __repr__ = __str__


def kl_by_class(
    train: Tensor,
    train_y: Tensor,
    test: Tensor,
    test_y: Tensor,
    *,
    replicates: int = 200,
    seed: int = 0,
    **settings: Any,
) -> Divergence:
    """`kl` of each class's points, and the mean over classes (Z section 4.3, table 1).

    `train` [n, d] and `test` [m, d] with labels int64 [n], [m]; `settings` are `kl`'s. For the
    interval each class's points are drawn again with replacement, `replicates` times (0: the ends
    are NaN), and the kernels kept. A replicate is the estimate of an estimate and has the bias
    twice, so the interval is the replicates' spread, put around the value. ValueError names a class
    with too few points.
    """
    train, test = finite_points("train", train), finite_points("test", test, like=train)
    for name, y, points in (("train_y", train_y, train), ("test_y", test_y, test)):
        if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != points.shape[:1]:
            told = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else brief(y)
            raise ValueError(f"{name} must be int64 labels [{len(points)}]; got {told}")
    train_y, test_y, least = train_y.cpu(), test_y.cpu(), train.shape[1] + 1
    stream, found = generator(seed), {}
    for label in torch.cat([train_y, test_y]).unique().tolist():
        sets = train[train_y == label], test[test_y == label]
        if min(map(len, sets)) < least:
            raise ValueError(
                f"class {label} has {len(sets[0])} training and {len(sets[1])} test points: a "
                f"density needs {least} of each, so take more or leave the class out"
            )
        first, second = (_resamples(len(part), replicates, stream) for part in sets)
        found[label] = kl(*sets, weights=(first, second), **settings)
    value, *drawn = torch.stack(list(found.values())).mean(0).tolist()
    drawn = drawn or [math.nan]
    bias = mean(drawn) - value
    low, high = (float(end) - bias for end in np.quantile(drawn, [0.025, 0.975]))
    return Divergence(value, low, high, bias, {k: v[0].item() for k, v in found.items()})


def knn_kl(train: Tensor, test: Tensor, *, k: int = 5) -> float:
    """The divergence KL(train || test) of points [n, d] and [m, d] without any density, in any
    dimension: d/n sum log(nu_k / rho_k) + log(m / (n - 1)), where rho_k and nu_k are a training
    point's distances to its k-th neighbour in `train` and in `test` (Wang, Kulkarni and Verdu, IEEE
    Trans. Inf. Theory 2009).

    It may be negative; a larger k has less spread and more bias. A training point that copies give
    a distance of 0 is looked at again with k doubled, for both distances, as often as needed: the
    counts still cancel. ValueError where copies leave no distance.
    """
    from scipy.spatial import cKDTree

    train, test = finite_points("train", train), finite_points("test", test, like=train)
    (n, d), m = train.shape, len(test)
    most = min(n - 1, m)
    if whole("k", k, 1) > most:
        raise ValueError(
            f"{n} training and {m} test points are too few for k = {k}: take at least {k + 1} "
            f"and {k}, or a smaller k"
        )
    own, other = cKDTree(train.numpy()), cKDTree(test.numpy())
    left, total = train.numpy(), 0.0
    while len(left):
        rho = own.query(left, [k + 1])[0][:, 0]  # the first neighbour is the point itself
        nu = other.query(left, [k])[0][:, 0]
        apart = (rho > 0) & (nu > 0)
        total += float(np.log(nu[apart] / rho[apart]).sum())
        left = left[~apart]
        if len(left) and k == most:
            raise ValueError(f"{len(left)} points are copies of most others: remove the copies")
        k = min(2 * k, most)
    return d * total / n + math.log(m / (n - 1))


def shuffled(
    train: Tensor,
    train_y: Tensor,
    test: Tensor,
    test_y: Tensor,
    *,
    share: float = 1.0,
    repeats: int = 20,
    seed: int = 0,
    **settings: Any,
) -> Tensor:
    """`kl_by_class` where the truth is 0: its value, float64 [repeats], after the points of each
    class were dealt anew, as many to `train` and to `test` as before, or that `share` of them.

    What these values have in common is the estimator's bias for so many points, and where the
    estimate itself lies among them is a permutation test of "no difference". They speak only of
    points that the projection treats alike, as one made of both sets together does.
    """
    whole("repeats", repeats, 1)
    number("share", share, "in (0, 1]", lambda v: 0 < v <= 1)
    train, test = finite_points("train", train), finite_points("test", test, like=train)
    kl_by_class(train, train_y, test, test_y, replicates=0, **settings)  # tells what is wrong
    points, y = torch.cat([train, test]), torch.cat([train_y.cpu(), test_y.cpu()])
    stream, values = generator(seed), []
    for _ in range(repeats):
        dealt: list[list[Tensor]] = [[], []]
        for label in y.unique():
            own = (y == label).nonzero()[:, 0]
            n = int((own < len(train)).sum())
            own = own[torch.randperm(len(own), generator=stream)]
            for into, rows in zip(dealt, (own[:n], own[n:])):
                into.append(rows[: math.ceil(share * len(rows))])
        a, b = (torch.cat(rows) for rows in dealt)
        found = kl_by_class(points[a], y[a], points[b], y[b], replicates=0, **settings)
        values.append(found.value)
    return torch.tensor(values, dtype=torch.float64)


def _resamples(n: int, replicates: int, stream: torch.Generator) -> Tensor:
    """Weights [n, 1 + replicates]: equal ones, then those of points drawn with replacement."""
    drawn = torch.randint(n, (whole("replicates", replicates), n), generator=stream)
    counts = torch.zeros(replicates, n, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(counts))
    return torch.cat([counts.new_ones(1, n), counts]).T / n
