"""Harmless changes of images: what a photographer's hand, lens or light may do to them, and the
label stays."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, asdict, dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from ..checks import number
from ..fonts import transform
from ..perturbations import SMALL
from .shift import SLACK, scale_shift, valid_shift


@dataclass(frozen=True)
class Change:
    """A change of images x [N, C, H, W] in [0, 1] to others, with `change(x)`.

    An own one is a frozen dataclass with this base: fields by position say how much, and their
    defaults are no change at all; fields by keyword alone say which (a direction, a width), and
    stay. It must keep pixels in [0, 1].
    """

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def part(self, strength: float) -> Self:
        """The change on the way to this one: at 0 none, at 1 this one, linear in between."""
        number("strength", strength, "a number from 0 to 1", lambda v: 0 <= v <= 1)
        end = {f.name: (f.default, getattr(self, f.name)) for f in fields(self) if not f.kw_only}
        way: dict[str, Any] = {k: a + strength * (b - a) for k, (a, b) in end.items()}
        return replace(self, **way)

    @property
    def parameters(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        told = ", ".join(
            f"{k} {v:.3g}" if isinstance(v, int | float) else f"{k} {v}"
            for k, v in self.parameters.items()
            if v is not None
        )
        return f"{type(self).__name__.lower()} ({told})"


@dataclass(frozen=True)
class Scaled(Change):
    """alpha * x + beta with pixels read in [-0.5, 0.5] (Z section 3.3), beta in `valid_shift`."""

    alpha: float = 1.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        low, high = valid_shift(self.alpha)
        allowed = f"a number from {low:.3g} to {high:.3g} where alpha = {self.alpha:.3g}"
        number("beta", self.beta, allowed, lambda v: low - SLACK <= v <= high + SLACK)

    def __call__(self, x: Tensor) -> Tensor:
        return scale_shift(x, self.alpha, self.beta)

    def __str__(self) -> str:
        return f"scaled by {self.alpha:.3g}, shifted by {self.beta:.3g}"


@dataclass(frozen=True)
class Gamma(Change):
    """x to the power `gamma`: above 1 darker, below 1 lighter."""

    gamma: float = 1.0

    def __post_init__(self) -> None:
        number("gamma", self.gamma, "a positive number", lambda v: 0 < v < math.inf)

    def __call__(self, x: Tensor) -> Tensor:
        return x**self.gamma

    def __str__(self) -> str:
        return f"gamma {self.gamma:.3g}"


@dataclass(frozen=True)
class Blur(Change):
    """Gaussian blur of standard deviation `sigma`, in pixels."""

    sigma: float = 0.0

    def __post_init__(self) -> None:
        number("sigma", self.sigma, "a number >= 0", lambda v: 0 <= v < math.inf)

    def __call__(self, x: Tensor) -> Tensor:
        from torchvision.transforms.functional import gaussian_blur

        if self.sigma == 0:
            return x
        # beyond three deviations nothing is left, and its mirror must lie in the image
        widths = [2 * min(math.ceil(3 * self.sigma), side - 1) + 1 for side in x.shape[:1:-1]]
        return gaussian_blur(x, widths, [self.sigma, self.sigma]).clamp(0, 1)

    def __str__(self) -> str:
        return f"blur of {self.sigma:.3g} pixels"


def _mixed(x: Tensor, mask: Tensor, shadows: float = 1.0) -> Tensor:
    """Towards white by the share `mask`, or towards black where that is negative."""
    return (x + mask.clamp_min(0) * (1 - x) ** shadows + mask.clamp_max(0) * x).clamp(0, 1)


def _places(x: Tensor) -> tuple[Tensor, Tensor]:
    """Columns [W] and rows [H, 1] of the pixels of x, from -1 to 1 (0 where there is one)."""
    ends = [torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) * (n > 1) for n in x.shape[2:]]
    return ends[1], ends[0][:, None]


@dataclass(frozen=True)
class Gradient(Change):
    """Lighter from one side to the other: towards white by a share that grows linearly from 0 to
    `level` in the direction `angle` (degrees, from the right to the top); towards black where
    `level` is negative."""

    level: float = 0.0
    _: KW_ONLY
    angle: float = 0.0

    def __post_init__(self) -> None:
        number("level", self.level, "a number from -1 to 1", lambda v: -1 <= v <= 1)
        number("angle", self.angle, "a number of degrees", math.isfinite)

    def __call__(self, x: Tensor) -> Tensor:
        columns, rows = _places(x)
        along, up = (f(math.radians(self.angle)) for f in (math.cos, math.sin))
        ramp = (along * columns - up * rows) / (abs(along) + abs(up))
        return _mixed(x, self.level * (1 + ramp) / 2)

    def __str__(self) -> str:
        return f"gradient to {self.level:.3g} at {self.angle:.3g}°"


@dataclass(frozen=True)
class Light(Change):
    """A light over the middle of the image: x + level * spot * (1 - x)^shadows, a Gaussian spot
    whose standard deviation is `width` half sides, or the whole image if None.

    Above 1, `shadows` leaves lighter pixels as they are: the tone curve of lifted shadows, whose
    order of greys stays where level * shadows < 1.
    """

    level: float = 0.0
    _: KW_ONLY
    width: float | None = None
    shadows: float = 1.0

    def __post_init__(self) -> None:
        number("level", self.level, "a number from 0 to 1", lambda v: 0 <= v <= 1)
        number("shadows", self.shadows, "a number >= 1", lambda v: 1 <= v < math.inf)
        if self.width is not None:
            number("width", self.width, "a positive number or None", lambda v: 0 < v < math.inf)

    def __call__(self, x: Tensor) -> Tensor:
        spot = torch.ones_like(x[:1, :1])
        if self.width is not None:
            columns, rows = _places(x)
            spot = torch.exp(-(columns**2 + rows**2) / (2 * self.width**2))
        return _mixed(x, self.level * spot, self.shadows)

    def __str__(self) -> str:
        where = "" if self.width is None else f", {self.width:.3g} wide"
        what = "light" if self.shadows == 1 else f"shadows (power {self.shadows:.3g}) lit"
        return f"{what} by {self.level:.3g}{where}"


@dataclass(frozen=True)
class Warp(Change):
    """Moved, sheared, scaled and turned, by FONTS' sampler and in its units (half image widths,
    radians; black outside): scale 0.9 enlarges."""

    t_x: float = 0.0
    t_y: float = 0.0
    shear_x: float = 0.0
    shear_y: float = 0.0
    scale: float = 1.0
    rotation: float = 0.0

    def __post_init__(self) -> None:
        for name, value in self.parameters.items():
            number(name, value, "a number", math.isfinite)
        number("scale", self.scale, "a positive number", lambda v: v > 0)

    def __call__(self, x: Tensor) -> Tensor:
        if self == Warp():  # else its own rounding would be a change
            return x
        return transform(x, x.new_tensor(list(self.parameters.values())).expand(len(x), -1))

    def __str__(self) -> str:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        told = [f"{k} {v:.3g}" for k, v in moved.items() if v != getattr(Warp, k)]
        return f"warp ({', '.join(told) or 'none'})"


# The furthest change of every way that the search goes, by family. S's narrower ranges for warps.
FAMILIES: dict[str, tuple[Change, ...]] = {
    "scale and shift": tuple(Scaled(0.7, 0.15 * k / 4) for k in (0, 1, 2, 3, 4, -1, -2, -3, -4)),
    "gamma": (Gamma(0.4), Gamma(2.5)),
    "blur": (Blur(2.0),),
    "gradient": (
        *(Gradient(0.5, angle=45.0 * k) for k in range(8)),
        *(Gradient(-0.5, angle=90.0 * k) for k in range(4)),
    ),
    "light": tuple(
        Light(0.25, width=width, shadows=shadows)
        for width in (0.6, 0.8, 1.0, None)
        for shadows in (1.0, 4.0)
        if (width, shadows) != (None, 1.0)  # that is scaling and shifting
    ),
    "warp": tuple(
        Warp(**{name: end})
        for name, ends in zip((f.name for f in fields(Warp)), SMALL)
        for end in ends
    ),
}
