"""Perturbation sets: which changes an attack may search, and which image a change stands for.

A set answers two questions. `region(split)`: where does the search move (an origin for each
image, a radius in a norm, a valid range)? `decode(code, split)`: what image is that? `Pixels`
searches the image itself; other sets search a code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from .checks import brief, number
from .fonts import RANGES, KnownManifold, transform
from .splits import Split

Norm = Literal["linf", "l2"]
Start = Literal["ball", "uniform", "noise", "gray", "zero"]
STARTS = ("ball", "uniform", "noise", "gray", "zero")
NOISE = 0.2  # standard deviation of the "noise" start (Z section 4.3)


class PerturbationSet(Protocol):
    """What `Attack` needs of a set; a new paper's set is a class with these four."""

    @property
    def norm(self) -> Norm: ...

    def region(self, split: Split) -> Region: ...

    def decode(self, code: Tensor, split: Split) -> Tensor: ...

    def scaled(self, factor: float) -> PerturbationSet: ...


class Manifold(Protocol):
    """What `OnManifold` and the notebooks need of a manifold; a generative model of one's own
    joins by answering it. Codes are [N, d]; `decode` is conditioned on the split's classes."""

    @property
    def bounds(self) -> tuple[Tensor, Tensor]: ...

    def encode(self, split: Split) -> Tensor: ...

    def decode(self, z: Tensor, split: Split) -> Tensor: ...

    def project(self, x: Tensor, split: Split) -> Tensor: ...

    def distance(self, x: Tensor, split: Split) -> Tensor: ...


@dataclass(frozen=True)
class Pixels:
    """All images within `eps` of x in L-infinity or L2 norm, pixels in [0, 1] (S eq. 1; Z)."""

    eps: float
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        check_radius("eps", self.eps, self.norm)
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(
                f"eps must be at most 1, as pixels are; got {self.eps:g}: 8/255 say, if of 255"
            )

    def region(self, split: Split) -> Region:
        return Region.around(split.x, self.eps, self.norm, low=0.0, high=1.0)

    def decode(self, code: Tensor, split: Split) -> Tensor:
        return code

    def scaled(self, factor: float) -> Pixels:
        return replace(self, eps=self.eps * factor)


@dataclass(frozen=True)
class OnManifold:
    """Images decode(z + zeta) with zeta within `eta` in L-infinity or L2 norm and z + zeta inside
    the manifold's bounds (S eq. 3). The class (and font) stays: the label cannot change.

    `eta` is in the manifold's own units: for FONTS half image widths and radians, for a learned
    manifold standard deviations of its prior.
    """

    manifold: Manifold
    eta: float
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        check_radius("eta", self.eta, self.norm)
        check_manifold(self.manifold)

    def region(self, split: Split) -> Region:
        code = self.manifold.encode(split)
        low, high = (edge.to(code.device) for edge in self.manifold.bounds)
        return Region.around(code, self.eta, self.norm, low, high)

    def decode(self, code: Tensor, split: Split) -> Tensor:
        return self.manifold.decode(code, split)

    def scaled(self, factor: float) -> OnManifold:
        return replace(self, eta=self.eta * factor)


# The parameters of a letter's transform that leave an image as it is, and (low, high) of what
# S allows for data other than FONTS: t_x, t_y, shear_x, shear_y, scale, rotation
IDENTITY, SCALE = (0.0, 0.0, 0.0, 0.0, 1.0, 0.0), 4
SMALL = ((-0.15, 0.15),) * 2 + ((-0.2, 0.2),) * 2 + ((0.85, 1.15), (-math.pi / 10, math.pi / 10))


@dataclass(frozen=True)
class Affine:
    """Images T(x; t), moved, sheared, scaled and turned, with t - identity within `eta` in the
    norm and t inside the data's ranges (S eq. 5): FONTS' own, narrower ones for other data. The
    transform is FONTS' sampler.

    around="zero": t itself within `eta`, as the code of S's data augmentation has it. No scale is
    that small, so it is always the smallest of its range: every image is enlarged.
    """

    eta: float
    norm: Norm = "linf"
    around: Literal["identity", "zero"] = "identity"

    def __post_init__(self) -> None:
        check_radius("eta", self.eta, self.norm)
        if self.around not in ("identity", "zero"):
            raise ValueError(f'around must be "identity" or "zero"; got {brief(self.around)}')

    def region(self, split: Split) -> Region:
        manifold = split.dataset.manifold if split.dataset else None
        ranges = RANGES[manifold.variant] if isinstance(manifold, KnownManifold) else SMALL
        low, high = split.x.new_tensor(ranges).T
        origin = split.x.new_tensor(IDENTITY)
        if self.around == "zero":
            origin[SCALE] = high[SCALE] = low[SCALE]
        return Region.around(origin.repeat(len(split), 1), self.eta, self.norm, low, high)

    def decode(self, code: Tensor, split: Split) -> Tensor:
        return transform(split.x, code)

    def scaled(self, factor: float) -> Affine:
        return replace(self, eta=self.eta * factor)


def check_manifold(manifold: object) -> None:
    """ValueError unless `manifold` answers as one."""
    if isinstance(manifold, type) or not hasattr(manifold, "bounds"):
        hint = ": it measures distances, and has no codes" if hasattr(manifold, "distance") else ""
        raise ValueError(
            f"manifold must be a manifold, data.manifold say; got {brief(manifold)}{hint}"
        )
    bounds = manifold.bounds
    pair = isinstance(bounds, tuple) and len(bounds) == 2
    if not pair or not all(isinstance(edge, Tensor) and edge.ndim == 1 for edge in bounds):
        raise ValueError(
            f"a manifold's bounds must be two tensors, low and high [d]; got {brief(bounds)}"
        )


def manifold_of(split: Split, manifold: Manifold | None = None) -> Manifold:
    """`manifold`, or if it is None the known one that the split's images lie on."""
    if manifold is None:
        manifold = split.dataset.manifold if split.dataset else None
    if manifold is None:
        raise ValueError("these images have no known manifold: give a LearnedManifold")
    check_manifold(manifold)
    return manifold


def check_radius(name: str, value: float, norm: str) -> None:
    """ValueError unless `value` is a positive number and `norm` one of the two."""
    number(name, value, "a positive number below 1e6", lambda v: 0 < v < 1e6)
    if norm not in ("linf", "l2"):
        raise ValueError(f'norm must be "linf" or "l2"; got {brief(norm)}')


def norms(change: Tensor, norm: Norm) -> Tensor:
    """Norm of each row of change [N, ...], as [N]."""
    flat = change.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def rows(factor: Tensor, like: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (like.ndim - 1))


@dataclass
class Region:
    """Codes within `eps` of `origin` [N, ...] in a norm and inside [low, high].

    Membership is exact in real arithmetic, not only up to rounding: boxes are rounded inward,
    and the L2 radius is shortened by the most that rounding can add.
    """

    origin: Tensor
    low: Tensor
    high: Tensor
    middle: Tensor  # of the range, without the ball
    half: Tensor
    eps: float
    norm: Norm

    @staticmethod
    def around(
        origin: Tensor, eps: float, norm: Norm, low: float | Tensor, high: float | Tensor
    ) -> Region:
        origin = origin.detach()
        low = torch.as_tensor(low, dtype=origin.dtype, device=origin.device)
        high = torch.as_tensor(high, dtype=origin.dtype, device=origin.device)
        middle, half = (low + high) / 2, (high - low) / 2
        if norm == "linf":  # ball and range are one box: intersect them here, once
            rounded = torch.tensor(eps, dtype=origin.dtype)
            if rounded.item() > eps:
                rounded = torch.nextafter(rounded, torch.zeros_like(rounded))
            radius = rounded.item()  # a plain number: nothing is sent to a device
            # origin - radius is off by at most half a step; a whole step inward is inside. An
            # origin too far outside the range (a code beyond its bounds) only comes as close as
            # the ball allows.
            least = torch.nextafter(origin - radius, origin)
            most = torch.nextafter(origin + radius, origin)
            low = torch.minimum(torch.maximum(low, least), most)
            high = torch.maximum(torch.minimum(high, most), least)
        else:
            if ((origin < low) | (origin > high)).any():  # it may stay where it is, or come closer
                low, high = torch.minimum(low, origin), torch.maximum(high, origin)
            step = torch.finfo(origin.dtype).eps
            ends = [edge.abs().max().item() for edge in (origin, low, high)]
            size = max(max(end for end in ends if end < math.inf) + eps, 1.0)
            eps = max(eps * (1 - 8 * step) - origin[0].numel() ** 0.5 * size * step / 4, 0.0)
        return Region(origin, low, high, middle, half, eps, norm)

    def __getitem__(self, rows: slice | Tensor) -> Region:
        def pick(t: Tensor) -> Tensor:
            return t[rows] if t.ndim == self.origin.ndim else t

        low, high = pick(self.low), pick(self.high)
        return replace(self, origin=self.origin[rows], low=low, high=high)

    def size(self, code: Tensor) -> Tensor:
        """The norm of each row's change, [N]."""
        return norms(code - self.origin, self.norm)

    def weighed(self, losses: Tensor, code: Tensor) -> Tensor:
        """What the search maximises: the losses [N], as the radius bounds what a change costs."""
        return losses

    def project_(self, code: Tensor) -> Tensor:
        """Move codes, in place, to allowed ones: the nearest for L-infinity.

        For L2, first into the range, then towards the origin: both constraints then hold, and
        repeating it (five rounds in S's code) changes nothing.
        """
        code.clamp_(self.low, self.high)
        if self.norm == "l2":
            change = code - self.origin
            length = norms(change, "l2")
            factor = (self.eps / length.clamp_min(1e-30)).clamp_max(1)
            torch.addcmul(self.origin, change, rows(factor, code), out=code)
            code.clamp_(self.low, self.high)  # rounding alone could step over the edge
        return code

    def start(self, kind: Start, stream: torch.Generator) -> Tensor:
        """Where a search begins, one row an origin; draws are the same on every device.

        "ball": a Gaussian direction, scaled to norm u * eps with u uniform in (0, 1) (S's code);
        "uniform": uniform in the ball; "noise": Gaussian noise of deviation 0.2 (Z); "gray": the
        middle of the range everywhere (Z's all-zero image); "zero": no change.
        """
        shape = self.origin.shape
        if kind == "zero":
            code = self.origin.clone()
        elif kind == "gray":
            code = self.middle.expand(shape)
            code = torch.where(code.isfinite(), code, self.origin)  # a range without end has none
        else:
            code = self.origin + self._random(kind, stream).to(self.origin)
        return self.project_(code)

    def _random(self, kind: Start, stream: torch.Generator) -> Tensor:
        shape = self.origin.shape
        if kind == "uniform" and self.norm == "linf":
            return (torch.rand(shape, generator=stream) * 2 - 1) * self.eps
        direction = torch.randn(shape, generator=stream)
        if kind == "noise":
            return direction * NOISE
        radius = torch.rand(len(direction), generator=stream)
        if kind == "uniform":
            radius **= 1 / direction[0].numel()
        return direction * rows(self.eps * radius / norms(direction, self.norm), direction)

    def ascend(self, gradient: Tensor) -> Tensor:
        """The step of length 1 that a linear loss grows most along, in this norm."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / rows(norms(gradient, "l2").clamp_min(1e-30), gradient)
