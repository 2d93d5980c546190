"""Changes at a price in place of a radius (Sinha et al. 2018): the set that WRM trains on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .checks import number
from .perturbations import Norm, Region
from .search import Loss
from .splits import Split


@dataclass
class PricedRegion(Region):
    """Any code, for its loss times `scale` less half its squared distance from the origin."""

    scale: float

    def weighed(self, losses: Tensor, code: Tensor) -> Tensor:
        return self.scale * losses - (code - self.origin).square().flatten(1).sum(1) / 2

    def project_(self, code: Tensor) -> Tensor:
        return code

    def ascend(self, gradient: Tensor) -> Tensor:
        return gradient


@dataclass(frozen=True)
class Transport:
    """All images u, pixels of any value: a search maximises scale * loss(u) - |u - x|^2 / 2
    (Sinha et al. 2018, eq. 2 and algorithm 1, with scale = 1 / (2 gamma)).

    Steps of `Attack(optimizer="sign")` go along the gradient itself here. No radius bounds a
    change: random starts lie within 1 of x.
    """

    scale: float = 1.3

    def __post_init__(self) -> None:
        number("scale", self.scale, "a positive number", lambda v: 0 < v < math.inf)

    @property
    def norm(self) -> Norm:
        return "l2"

    def region(self, split: Split) -> PricedRegion:
        plain = Region.around(split.x, 1.0, "l2", low=0.0, high=1.0)
        return PricedRegion(**vars(plain), scale=self.scale)

    def decode(self, code: Tensor, split: Split) -> Tensor:
        return code

    def scaled(self, factor: float) -> Transport:
        return replace(self, scale=self.scale * factor)


@dataclass(frozen=True)
class InverseRoot:
    """Steps of first / sqrt(t) for t = 1, 2, ..., an `Attack`'s lr."""

    first: float = 1.0

    def __post_init__(self) -> None:
        number("first", self.first, "a positive number", lambda v: 0 < v < math.inf)

    def __call__(self, t: int) -> float:
        return self.first / math.sqrt(t)


@dataclass(frozen=True)
class Smoothed:
    """Cross-entropy [N] against labels whose own class keeps 1 - `smoothing`, the others sharing
    the rest alike (Szegedy et al. 2016, section 7)."""

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        number("smoothing", self.smoothing, "a number in [0, 1)", lambda v: 0 <= v < 1)

    def __call__(self, output: Tensor, y: Tensor) -> Tensor:
        classes = output.shape[1]  # PyTorch gives the own class its share of the rest as well
        share = self.smoothing * classes / max(classes - 1, 1)
        return cross_entropy(output, y, reduction="none", label_smoothing=share)


@dataclass(frozen=True)
class Mean:
    """A part's loss: the mean of one that an attack can maximise."""

    each: Loss

    def __call__(
        self, model: nn.Module, x: Tensor, output: Tensor, y: Tensor, growth: float
    ) -> Tensor:
        return self.each(output, y).mean()
