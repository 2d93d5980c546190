"""Minimum-norm attacks: not whether an image is fooled within eps, but how little it takes.

Carlini and Wagner (2017) weigh the L2 norm of a change against the model's margin, in a code whose
image cannot leave the range of pixels: the one search, over a `SquashedRegion`. Their L-infinity
form is in shrinking.py.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .attacks import Attack, AttackResult
from .checks import brief, number, whole
from .doubts import check, check_set
from .models import device_of
from .perturbations import STARTS, Norm, PerturbationSet, Pixels, Region, Start
from .search import Search, margin
from .shrinking import Moved, shrink
from .splits import Split
from .stats import generator
from .tones import ScaleShift
from .transport import Transport

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
        # a coordinate that may not move has a range of width 0
        return torch.atanh(((u - self.middle) / self.half.clamp_min(1e-30)).clamp(-EDGE, EDGE))

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


def hinge(output: Tensor, y: Tensor, confidence: float) -> Tensor:
    """The margin by which each image fools, at most `confidence`, [N]."""
    return margin(output, y).clamp_max(confidence)


# What is searched for how long, by what steps, and from where, unless told otherwise
DEFAULTS: dict[str, dict[str, Any]] = {
    "l2": {"searches": 9, "steps": 200, "lr": 0.02, "starts": ("zero",)},
    "linf": {"searches": 40, "steps": 48, "lr": 0.2, "starts": ("noise", "gray")},
}


@dataclass(frozen=True)
class CarliniWagner:
    """Carlini and Wagner's attacks (2017): the smallest change that fools, from each of `starts`,
    which are the restarts of the result. Defaults depend on `norm`.

    "l2": maximise c * min(margin, confidence) - norm^2 by Adam, and of the iterates that fool keep
    the one of smallest norm. c begins at `constant` and is sought for each image by `searches`
    runs of `steps` updates: ten times more while the image is not fooled, then by halving. A run
    begins where the last one ended, or at the smallest change so far, which finds smaller ones
    than beginning anew. S's form (section 3.4 and its supplement) is `CarliniWagner.printed(set)`:
    one constant for all images, and the norm itself in place of its square.

    "linf": raise the margin by steps of `lr` * tau along the gradient's sign inside |delta| <= tau,
    up to `steps` of them in each of `searches` runs. tau begins at the start's norm, then is half
    the smallest change so far, and after each run that fails half as far below it (shrinking.py
    says why; `lr` falls to a tenth meanwhile). Z attack from noise and from a grey image, and
    count what either fools within eps: `result.success_rate("images", within=eps)`.
    `constant`, `confidence` and `power` are for "l2" alone.

    A start costs searches * (steps + 1) gradients an image at most. `set` is what is searched,
    pixels if None; for "l2" its radius bounds random starts alone, for "linf" every change.
    """

    norm: Norm = "l2"
    _: KW_ONLY
    set: PerturbationSet | None = None
    starts: tuple[Start, ...] = None  # type: ignore[assignment]
    searches: int = None  # type: ignore[assignment]
    steps: int = None  # type: ignore[assignment]
    constant: float = 1.0
    confidence: float = 0.0
    lr: float = None  # type: ignore[assignment]
    power: int = 2
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.norm not in tuple(DEFAULTS):  # a list is not hashable
            raise ValueError(f'norm must be "linf" or "l2"; got {brief(self.norm)}')
        for name, value in DEFAULTS[self.norm].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.set is not None and getattr(self.set, "norm", None) != self.norm:
            raise ValueError(f"set must be one of norm {self.norm}; got {brief(self.set)}")
        if isinstance(self.set, ScaleShift | Transport):
            raise ValueError(f"a smallest change of {type(self.set).__name__} is not defined")
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
        """S's settings: lambda 1, kappa 1.5, 120 steps of 0.005 from one random start. (Its code
        has kappa 3, and takes the maximum over the other classes and 0.)"""
        return cls("l2", set=set, starts=("ball",), searches=1, steps=120, constant=1.0,
                   confidence=1.5, lr=0.005, power=1, seed=seed)  # fmt: skip

    def __call__(self, model: nn.Module, split: Split) -> AttackResult:
        """Attack every image of `split`. `success` knows no radius: ask for `distances`, or for
        success_rate(within=eps)."""
        check(model, split)
        home, split = split, split.to(device_of(model))
        searched = self.set or Pixels(1.0, self.norm)
        check_set(searched, model, split)
        # one step, as the searches themselves are quiet: it tells of gradients that vanish
        probe = Attack(searched, steps=1, start=self.starts[0], loss="margin",
                       batch_size=self.batch_size)  # fmt: skip
        next(Search(probe, model, split, generator(self.seed, 0), quiet=False).run())
        region = searched.region(split)
        find = partial(shrink, self) if self.norm == "linf" else self._minimise
        runs = [find(model, split, searched, region, number) for number in range(len(self.starts))]
        steps = self.searches * (self.steps + 1)
        attack = Attack(searched, steps=steps, keep="smallest", batch_size=self.batch_size)
        return attack.result(model, home, runs)

    def _minimise(
        self,
        model: nn.Module,
        split: Split,
        searched: PerturbationSet,
        region: Region,
        number: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(codes, whether each fools, the first fooling step of the first fooling run)."""
        n, device = len(split), region.origin.device
        constant = torch.full((n,), self.constant, device=device)
        least, most = torch.zeros(n, device=device), torch.full((n,), math.inf, device=device)
        best, smallest = region.origin.clone(), torch.full((n,), math.inf, device=device)
        first = torch.full((n,), -1, dtype=torch.int64, device=device)
        if not region.half.isfinite().all():
            raise ValueError("the L2 attack needs a range with ends: bounds must be finite")
        for k in range(self.searches):
            moves = SquashedRegion(**vars(region), constant=constant, power=self.power)
            attack = Attack(
                Moved(searched, moves), steps=self.steps, lr=self.lr, start=self.starts[number],
                loss=partial(hinge, confidence=self.confidence), keep="smallest",
                batch_size=self.batch_size,
            )  # fmt: skip
            search = Search(attack, model, split, generator(self.seed, number, k))
            search.begin(moves.squash(best) if k else None)
            code, fooled, at = search.finish()
            better = torch.where(fooled, search.size < smallest, smallest.isinf())
            best[better] = moves.value(code)[better]
            smallest = torch.where(fooled, torch.minimum(search.size, smallest), smallest)
            first = torch.where((first < 0) & fooled, at + k * (self.steps + 1), first)
            most = torch.where(fooled, torch.minimum(most, constant), most)
            least = torch.where(fooled, least, torch.maximum(least, constant))
            constant = torch.where(most.isinf(), constant * GROWTH, (least + most) / 2)
        return best, first >= 0, first
