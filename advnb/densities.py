"""Densities of points in few dimensions, and the integral of eq. 3 of Zhang et al. (ICLR 2019)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .checks import brief, number, whole

LogDensity = Callable[[Tensor], Tensor] | Tensor
FLOOR = 1e-6
VALUES = 10_000_000  # of a density, cells times weightings: more take minutes and gigabytes


def density(
    points: Tensor,
    at: Tensor,
    *,
    bandwidth: Literal["scott"] | float = "scott",
    weights: Tensor | None = None,
) -> Tensor:
    """Gaussian kernel density of `points` [n, d] at the places `at` [m, d]: float64 [m].

    The kernel has the points' sample covariance times `bandwidth`^2; Scott's rule is
    n^(-1/(d+4)). `weights` [n, b], whose columns sum to 1, give the densities [m, b] of b
    weightings of the same kernels. ValueError where the points span no d-dimensional volume.
    """
    points, at = finite_points("points", points), finite_points("at", at)
    n, d = points.shape
    if bandwidth == "scott":
        factor = n ** (-1 / (d + 4))
    else:
        factor = number("bandwidth", bandwidth, "'scott' or > 0", lambda v: 0 < v < math.inf)
    centre = points.mean(0)
    around = points - centre
    covariance = around.T @ around / max(1, n - 1)
    root, failed = torch.linalg.cholesky_ex(covariance)
    # rounding leaves points on a line a width of 1e-16 of their length
    if failed or root.diagonal().square().min() < 1e-12 * covariance.diagonal().max():
        raise ValueError(
            f"{n:,} points of {d} dimensions lie on one point, line or plane: a density needs "
            "more points, or fewer dimensions"
        )
    whiten = torch.linalg.inv(root).T / factor
    a, b = (at - centre) @ whiten, around @ whiten
    scale = 1 / ((2 * math.pi) ** (d / 2) * factor**d * root.diagonal().prod())
    shares = points.new_full((n, 1), 1 / n) if weights is None else weights.double()
    # -|a - b|^2 / 2 as one matrix product
    left = torch.cat([a, -a.square().sum(1, keepdim=True) / 2, torch.ones_like(a[:, :1])], 1)
    right = torch.cat([b, torch.ones_like(b[:, :1]), -b.square().sum(1, keepdim=True) / 2], 1).T
    blocks = left.split(max(1, 500_000 // n))
    found = scale * torch.cat([(block @ right).exp_() @ shares for block in blocks])
    return found[:, 0] if weights is None else found


def integrate_kl(
    log_p: LogDensity,
    log_q: LogDensity,
    low: Tensor,
    high: Tensor,
    *,
    grid: int = 100,
    floor: float = FLOOR,
    normalised: bool = True,
) -> Tensor:
    """The integral of p log(p / q) over the box from `low` [d] to `high` [d] (Z eq. 3).

    `log_p`, `log_q`: functions of places [m, d], or their values at `centres(low, high, grid)`,
    [m] or [m, b]. The answer has the shape after m: float64 [] or [b]. Midpoint rule, `grid` cells
    a side. q is kept above `floor` times the uniform density of the box, and with `normalised` p
    and q are then divided by their integrals over the box, so that the answer is never negative.
    """
    floor = number("floor", floor, "in [0, 1]", lambda v: 0 <= v <= 1)
    places = centres(low, high, grid)
    volume = (high.double() - low.double()).prod()
    # densities as multiples of the box's uniform density: their mean over cells is their integral
    p, q = (
        (f if isinstance(f, Tensor) else f(places)).double() + volume.log() for f in (log_p, log_q)
    )
    if not len(p) == len(q) == len(places):
        raise ValueError(f"values are wanted at {len(places)} cells; got {len(p)} and {len(q)}")
    q = q.clamp(min=math.log(floor) if floor else -math.inf)
    if normalised:
        masses = p.exp().mean(0), q.exp().mean(0)
        if not (masses[0].min() > 0 and masses[1].min() > 0):
            raise ValueError(
                "a density is 0 at the centre of every cell: take a larger grid or bandwidth"
            )
        p, q = p - masses[0].log(), q - masses[1].log()
    # where p is 0 the integrand is 0, whatever q
    return torch.where(p > -math.inf, p.exp() * (p - q), 0.0).mean(0)


def centres(low: Tensor, high: Tensor, grid: int) -> Tensor:
    """Centres of the cells, `grid` a side, of the box from `low` [d] to `high` [d]:
    float64 [grid^d, d], the last coordinate fastest."""
    low, high = low.double(), high.double()
    if low.shape != high.shape or low.ndim != 1 or not (low < high).all():
        told = f"{brief(low.tolist())} and {brief(high.tolist())}"
        raise ValueError(f"low must be below high in each of d coordinates; got {told}")
    if whole("grid", grid, 2) ** len(low) > VALUES:
        raise ValueError(f"{grid}^{len(low)} cells are too many: take a smaller grid, or knn_kl")
    steps = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    return low + (high - low) * torch.cartesian_prod(*[steps] * len(low)).reshape(-1, len(low))


def finite_points(name: str, points: Tensor, like: Tensor | None = None) -> Tensor:
    """The points in float64 on the CPU; ValueError unless they are finite numbers [n, d]."""
    if not isinstance(points, Tensor) or points.ndim != 2 or not points.numel():
        told = list(points.shape) if isinstance(points, Tensor) else type(points).__name__
        raise ValueError(f"{name} must be a tensor of points [n, d], not empty; got {told}")
    points = points.detach().cpu().double()
    if not points.isfinite().all():
        raise ValueError(f"{name} has NaN or infinite numbers: leave those points out")
    if like is not None and points.shape[1] != like.shape[1]:
        raise ValueError(
            f"both sets must be projected together: {name} has {points.shape[1]} dimensions and "
            f"the other {like.shape[1]}"
        )
    return points
