"""Minimum-norm attacks: not whether an image is fooled within eps, but how little it takes.

Carlini and Wagner (2017) weigh the norm of a change against the model's margin, in a code whose
image cannot leave the range of pixels: the one search, over the set `Squashed`.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .attacks import Attack, AttackResult, check
from .checks import brief, number, whole
from .models import device_of
from .perturbations import STARTS, Norm, PerturbationSet, Pixels, Region, Start
from .search import Search, margin
from .splits import Split
from .stats import generator

# How near to the ends of its range a code may start. At an end it could not move: with the first
# authors' 1 - 1e-6 a black pixel needs hundreds of steps to leave.
EDGE = 0.999
GROWTH = 10.0  # of the constant of an image that is not fooled yet


@dataclass
class SquashedRegion(Region):
    """Codes w that stand for u = middle + half * tanh(w), which cannot leave the region's range.
    No radius bounds them: norm(u - origin) to the `power` is taken off `constant` [N] times an
    image's loss instead."""

    constant: Tensor
    power: int

    def squash(self, u: Tensor) -> Tensor:
        """The codes of u, which is first brought a little inside its range."""
        return torch.atanh(((u - self.middle) / self.half).clamp(-EDGE, EDGE))

    def value(self, code: Tensor) -> Tensor:
        return self.middle + self.half * torch.tanh(code)

    def size(self, code: Tensor) -> Tensor:
        return super().size(self.value(code))

    def weighed(self, losses: Tensor, code: Tensor) -> Tensor:
        return self.constant * losses - self.size(code) ** self.power

    def start(self, kind: Start, stream: torch.Generator) -> Tensor:
        return self.squash(super().start(kind, stream))

    def project_(self, code: Tensor) -> Tensor:
        return code

    def __getitem__(self, rows: slice | Tensor) -> SquashedRegion:
        inner = vars(super().__getitem__(rows))
        return SquashedRegion(**inner | {"constant": self.constant[rows]})


@dataclass(frozen=True, eq=False)
class Squashed:
    """`set` without its radius, over the codes of a `SquashedRegion`."""

    set: PerturbationSet
    moves: SquashedRegion

    @property
    def norm(self) -> Norm:
        return self.set.norm

    def region(self, split: Split) -> SquashedRegion:
        return self.moves

    def decode(self, code: Tensor, split: Split) -> Tensor:
        return self.set.decode(self.moves.value(code), split)

    def scaled(self, factor: float) -> Squashed:
        return self


def hinge(output: Tensor, y: Tensor, confidence: float) -> Tensor:
    """The margin by which each image fools, at most `confidence`, [N]."""
    return margin(output, y).clamp_max(confidence)


@dataclass(frozen=True)
class CarliniWagner:
    """Carlini and Wagner's attack (2017): maximise c * min(margin, confidence) - norm^2 by Adam,
    and of the iterates that fool keep the one of smallest norm.

    c begins at `constant` and is sought for each image by `searches` runs of `steps` updates:
    ten times more while the image is not fooled, then by halving. A run begins where the last one
    ended, or at the smallest change so far, which finds smaller ones than beginning anew. Each of
    `starts` is a restart of the result, and costs searches * (steps + 1) gradients an image.

    `set` is what is searched, pixels if None; its radius bounds random starts alone. S's form
    (section 3.4 and its supplement) is `CarliniWagner.printed(set)`: one constant for all images,
    and the norm itself in place of its square.
    """

    norm: Norm = "l2"
    _: KW_ONLY
    set: PerturbationSet | None = None
    starts: tuple[Start, ...] = ("zero",)
    searches: int = 9
    steps: int = 200
    constant: float = 1.0
    confidence: float = 0.0
    lr: float = 0.02
    power: int = 2
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.norm != "l2":
            raise ValueError(f'norm must be "l2"; got {brief(self.norm)}')
        if self.set is not None and getattr(self.set, "norm", None) != self.norm:
            raise ValueError(f"set must be one of norm {self.norm}; got {brief(self.set)}")
        for name in ("searches", "steps", "power"):
            whole(name, getattr(self, name), 1)
        for name in ("constant", "lr"):
            number(name, getattr(self, name), "a positive number", lambda v: 0 < v < math.inf)
        number("confidence", self.confidence, "a number >= 0", lambda v: 0 <= v < math.inf)
        known = isinstance(self.starts, tuple) and all(start in STARTS for start in self.starts)
        if not known or not self.starts:
            raise ValueError(f"starts must be some of {STARTS}; got {brief(self.starts)}")

    @classmethod
    def printed(cls, set: PerturbationSet, seed: int = 0) -> CarliniWagner:
        """S's settings: lambda 1, kappa 1.5, 120 steps of 0.005 from one random start."""
        return cls(set.norm, set=set, starts=("ball",), searches=1, steps=120, constant=1.0,
                   confidence=1.5, lr=0.005, power=1, seed=seed)  # fmt: skip

    def __call__(self, model: nn.Module, split: Split) -> AttackResult:
        """Attack every image of `split`; success_rate() knows no radius: ask for the norms."""
        check(model, split)
        home, split = split, split.to(device_of(model))
        searched = self.set or Pixels(1.0, self.norm)
        region = searched.region(split)
        runs = [
            self._minimise(model, split, searched, region, start, number)
            for number, start in enumerate(self.starts)
        ]
        attack = Attack(searched, steps=self.steps * self.searches, batch_size=self.batch_size)
        return attack.result(model, home, runs)

    def _minimise(
        self,
        model: nn.Module,
        split: Split,
        searched: PerturbationSet,
        region: Region,
        start: Start,
        number: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(codes, whether each fools, the first fooling step of the first fooling run)."""
        n, device = len(split), region.origin.device
        constant = torch.full((n,), self.constant, device=device)
        least, most = torch.zeros(n, device=device), torch.full((n,), math.inf, device=device)
        best, smallest = region.origin.clone(), torch.full((n,), math.inf, device=device)
        first = torch.full((n,), -1, dtype=torch.int64, device=device)
        for k in range(self.searches):
            moves = SquashedRegion(**vars(region), constant=constant, power=self.power)
            attack = Attack(
                Squashed(searched, moves), steps=self.steps, lr=self.lr, start=start,
                loss=partial(hinge, confidence=self.confidence), keep="smallest",
                batch_size=self.batch_size,
            )  # fmt: skip
            search = Search(attack, model, split, generator(self.seed, number, k), number, True)
            if k:
                search.code = moves.squash(best)
                search.kept = search.code.clone()
            code, fooled, at = search.finish()
            better = torch.where(fooled, search.size < smallest, smallest.isinf())
            best[better] = moves.value(code)[better]
            smallest = torch.where(fooled, torch.minimum(search.size, smallest), smallest)
            first = torch.where((first < 0) & fooled, at + k * (self.steps + 1), first)
            most = torch.where(fooled, torch.minimum(most, constant), most)
            least = torch.where(fooled, least, torch.maximum(least, constant))
            constant = torch.where(most.isinf(), constant * GROWTH, (least + most) / 2)
        return best, first >= 0, first
