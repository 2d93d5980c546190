"""Scaled and shifted images as a perturbation set: what the cure of a blind spot trains on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .checks import number
from .perturbations import Norm, Region, Start, check_radius
from .splits import Split

TONE = 2  # numbers of a code before its pixels: contrast taken away, and shift


@dataclass
class ToneRegion(Region):
    """Codes [N, 2 + pixels], all of it measured in eps: see `ScaleShift`."""

    image: Tensor  # [N, pixels]
    tones: ScaleShift

    def project_(self, code: Tensor) -> Tensor:
        """Into the box; then the changes of pixels to those that leave the image in [0, 1]."""
        code.clamp_(self.low, self.high)
        toned, reach = self.tones.toned(code, self.image)
        code[:, TONE:] = torch.minimum(torch.maximum(code[:, TONE:], -toned / reach),
                                       (1 - toned) / reach)  # fmt: skip
        return code

    def start(self, kind: Start, stream: torch.Generator) -> Tensor:
        if kind != "gray":
            return super().start(kind, stream)
        code = self.origin.clone()
        code[:, TONE:] = 0.5 - self.image
        return self.project_(code)

    def _random(self, kind: Start, stream: torch.Generator) -> Tensor:
        change, tone = (
            super()._random(kind, stream),
            torch.rand(len(self.image), TONE, generator=stream),
        )
        change[:, 0], change[:, 1] = self.eps * tone[:, 0], self.eps * (2 * tone[:, 1] - 1)
        return change

    def __getitem__(self, rows: slice | Tensor) -> ToneRegion:
        inner = vars(super().__getitem__(rows))
        return ToneRegion(**inner | {"image": self.image[rows]})


@dataclass(frozen=True)
class ScaleShift:
    """Images alpha * x + beta + delta, pixels read in [-0.5, 0.5] (Z section 3.3): any alpha from
    `lowest` to 1, any beta that is valid for it, from -(1 - alpha) / 2 to (1 - alpha) / 2 or the
    part of this range that `shifts` leaves of (-1, 1), any delta within `eps` in L-infinity, or
    within alpha * eps if `relative`.

    A code is (eps (1 - alpha) / (1 - lowest), eps s, delta) [N, 2 + pixels], where s from -1 to 1
    is the place of beta in its range: every number of it within eps of 0, so that a step means the
    same for all of them. A random start draws the first two uniformly. With `searched` the attack
    moves them too, else they stay as they were drawn.
    """

    eps: float
    lowest: float = 0.7
    relative: bool = False
    searched: bool = True
    shifts: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        check_radius("eps", self.eps, "linf")
        number("lowest", self.lowest, "a number in (0, 1)", lambda v: 0 < v < 1)
        if not isinstance(self.shifts, tuple) or len(self.shifts) != 2:
            raise ValueError(f"shifts must be two numbers, the lower first; got {self.shifts!r}")
        least = number("shifts", self.shifts[0], "numbers in [-1, 1]", lambda v: -1 <= v <= 1)
        number("shifts", self.shifts[1], f"from {least:g} to 1", lambda v: least <= v <= 1)

    @property
    def norm(self) -> Norm:
        return "linf"

    def region(self, split: Split) -> ToneRegion:
        image = split.x.flatten(1)
        origin = image.new_zeros(len(image), TONE + image.shape[1])
        low = torch.full_like(origin[0], -math.inf)
        low[0] = 0
        box = Region.around(origin, self.eps, "linf", low, torch.full_like(low, math.inf))
        return ToneRegion(**vars(box), image=image, tones=self)

    def toned(self, code: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha * x + beta [N, pixels], what a change of pixels is multiplied with: a number, or
        alpha [N, 1])."""
        tone = code[:, :TONE] if self.searched else code[:, :TONE].detach()  # no way back: it stays
        alpha = 1 - (1 - self.lowest) / self.eps * tone[:, :1]
        low, high = self.shifts
        shift = (low + high) / 2 + (high - low) / (2 * self.eps) * tone[:, 1:]
        toned = alpha * image + (1 - alpha) / 2 * (1 + shift)
        return toned, alpha if self.relative else torch.ones_like(alpha)

    def decode(self, code: Tensor, split: Split) -> Tensor:
        toned, reach = self.toned(code, split.x.flatten(1))
        x = toned + reach * code[:, TONE:]
        # rounding may leave [0, 1]; what it takes back is not to stop the gradient
        return (x + (x.clamp(0, 1) - x).detach()).view(split.x.shape)

    def scaled(self, factor: float) -> ScaleShift:
        return replace(self, eps=self.eps * factor, lowest=1 - (1 - self.lowest) * factor)
