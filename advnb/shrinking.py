"""The smallest L-infinity change that fools: boxes that shrink around each image.

Carlini and Wagner (2017, section V.C) minimise c * max(-margin, 0) + sum of max(|delta| - tau, 0)
and lower tau once all of delta is below it. Here the excess over tau is projected away rather than
weighed, which takes the place of the search for c: the one search, in a box of half-width tau
around each image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .attacks import Attack
from .models import BATCH, logits
from .perturbations import Norm, PerturbationSet, Region, norms, rows
from .search import Search, decoded
from .splits import Split
from .stats import generator

if TYPE_CHECKING:
    from .minimal import CarliniWagner

SHRINK = 0.5  # tau goes this far below the smallest change so far (the first authors' 0.1 takes
FINEST = 0.001  # too long to the small ones), and half as far after a failure, down to this far
SMALLEST = 0.05  # first tau of a start that is no change, of the way to the end of the range
GROWTH = 1.5  # of tau while an image is not fooled yet


@dataclass(frozen=True, eq=False)
class Moved:
    """`set`, searched over the codes of another region, which knows what they stand for."""

    set: PerturbationSet
    moves: Any

    @property
    def norm(self) -> Norm:
        return self.set.norm

    def region(self, split: Split) -> Region:
        return self.moves

    def decode(self, code: Tensor, split: Split) -> Tensor:
        return self.set.decode(self.moves.value(code), split)

    def scaled(self, factor: float) -> Moved:
        return self


@dataclass
class Box(Region):
    """Codes of a region that are within `tau` [N] of their origins: a radius for each image, which
    its steps are measured in."""

    tau: Tensor

    @staticmethod
    def within(region: Region, tau: Tensor) -> Box:
        radius = rows(tau, region.origin)
        low = (region.origin - radius).clamp(region.low, region.high)
        high = (region.origin + radius).clamp(region.low, region.high)
        return Box(**vars(region) | {"low": low, "high": high, "tau": tau})

    def value(self, code: Tensor) -> Tensor:
        return code

    def ascend(self, gradient: Tensor) -> Tensor:
        return super().ascend(gradient) * rows(self.tau, gradient)

    def random(self, stream: torch.Generator) -> Tensor:
        """Uniform in the box."""
        drawn = torch.rand(self.origin.shape, generator=stream).to(self.origin)
        return self.low + drawn * (self.high - self.low)

    def __getitem__(self, rows: slice | Tensor) -> Box:
        return Box(**vars(super().__getitem__(rows)) | {"tau": self.tau[rows]})


def shrink(
    settings: CarliniWagner,
    model: nn.Module,
    split: Split,
    searched: PerturbationSet,
    region: Region,
    number: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """From start `number`: (codes, whether each fools, its first fooling step), as a search's.

    Every image has its own tau. A run begins at the smallest change so far, moved into the new
    box; after a run that failed every second one begins at random, since what a box holds may lie
    where the way from the smallest change does not lead. A run ends with the first fooling
    iterate. Step 0 is no change at all, which is all that a wrong image needs.
    """
    searches, steps = settings.searches, settings.steps
    stream = generator(settings.seed, number, 0)
    best = region.start(settings.starts[number], stream)
    reach = torch.maximum(region.high - region.origin, region.origin - region.low)
    most = reach.flatten(1).amax(1)
    tau = torch.maximum(norms(best - region.origin, "linf"), SMALLEST * most)
    smallest, below = torch.full_like(tau, math.inf), torch.full_like(tau, SHRINK)
    first = torch.full(tau.shape, -1, dtype=torch.int64, device=tau.device)

    def run(tau: Tensor, begin: Tensor, steps: int, lr: float) -> tuple[Tensor, Tensor, Tensor]:
        box = Box.within(region, tau)
        attack = Attack(
            Moved(searched, box), steps=steps, lr=lr, optimizer="sign", start="zero",
            loss="margin", batch_size=settings.batch_size,
        )  # fmt: skip
        search = Search(attack, model, split, stream)
        search.begin(box.project_(begin.clone()))
        code, fooled, at = search.finish()
        # so close to the edge of a class rounding decides: the model itself has the last word
        images = split.with_x(decoded(searched, code, split))
        wrong = logits(model, images, settings.batch_size or BATCH).argmax(1) != split.y
        return code, fooled & wrong, at

    code, fooled, _ = run(torch.zeros_like(tau), region.origin, 0, settings.lr)
    best[fooled], smallest[fooled], tau[fooled], first[fooled] = code[fooled], 0.0, 0.0, 0
    begin = best.clone()
    for k in range(searches):
        lr = settings.lr * 0.1 ** (k / max(searches - 1, 1))
        code, fooled, at = run(tau, begin, steps, lr)
        size = norms(code - region.origin, "linf")
        better = torch.where(fooled, size < smallest, smallest.isinf())
        best[better] = code[better]
        smallest = torch.where(fooled, torch.minimum(size, smallest), smallest)
        first = torch.where((first < 0) & fooled, 1 + at + k * (steps + 1), first)
        below = torch.where(fooled, below, (below / 2).clamp_min(FINEST))
        larger = torch.minimum(tau * GROWTH, most)
        tau = torch.where(smallest.isinf(), larger, smallest * (1 - below))
        begin = best
        if k % 2:
            anew = Box.within(region, tau).random(stream)
            begin = torch.where(rows(fooled, best), best, anew)
    return best, first >= 0, first
