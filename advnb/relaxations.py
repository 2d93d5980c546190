"""Relaxations of a piecewise linear network over boxes of images: intervals, and lines around ReLU.

Every neuron lies between two numbers, which are passed on layer by layer (IBP; Gowal et al. 2018).
Or every ReLU lies between two lines, so that a margin is at least a linear function of the pixels,
found from the logits backwards and smallest in a corner of the box (CROWN; Zhang et al. 2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from .affine import Map

Method = Literal["ibp", "crown", "dual"]
Inner = Literal["backward", "ibp"]

NUMBERS = 2**19  # in the rows that go backwards at once, about: more would leave the caches


@dataclass(frozen=True)
class Box:
    """Numbers within `radius` of `middle`, each [N, ...]."""

    middle: Tensor
    radius: Tensor

    @staticmethod
    def around(x: Tensor, eps: float) -> Box:
        """The images within eps of x, pixels in [0, 1]."""
        return Box.between((x - eps).clamp(0, 1), (x + eps).clamp(0, 1))

    @staticmethod
    def between(low: Tensor, high: Tensor) -> Box:
        return Box((low + high) / 2, (high - low) / 2)

    def through(self, maps: list[Map]) -> Box:
        """The box that affine maps make of this one."""
        middle, radius = self.middle, self.radius
        for step in maps:
            middle, radius = step(middle), step.spread(radius)
        return Box(middle, radius)


@dataclass(frozen=True)
class Lines:
    """below * z <= relu(z) <= above * z + offset, each [N, ...], for z between two numbers."""

    below: Tensor
    above: Tensor
    offset: Tensor

    @staticmethod
    def between(low: Tensor, high: Tensor, parallel: bool) -> Lines:
        open_, on = (low < 0) & (high > 0), (low >= 0).to(low)
        above = torch.where(open_, high / torch.where(open_, high - low, 1), on)
        below = above if parallel else torch.where(open_, (high > -low).to(low), on)
        return Lines(below, above, torch.where(open_, -low * above, 0))


def margin_bounds(
    stages: list[list[Map]], box: Box, y: Tensor, method: Method, inner: Inner
) -> Tensor:
    """Lower bounds [N, K] on the true logit minus each other one; 0 for the class y itself."""
    lines, last = _relaxed(stages, box, method, inner)
    n, device = len(y), y.device
    classes = last.through(stages[-1]).middle.shape[1]
    eye = torch.eye(classes, dtype=box.middle.dtype, device=device)
    rows = (eye[y][:, None] - eye).flatten(0, 1)
    image = torch.arange(n, device=device).repeat_interleave(classes)
    bounds = _backwards(stages[-1:], [], last, rows, image)
    if method == "dual":
        bounds = _backwards(stages, lines, box, rows, image)
    elif method == "crown":
        bounds = torch.maximum(bounds, _backwards(stages, lines, box, rows, image))
    return bounds.view(n, classes)


def _relaxed(
    stages: list[list[Map]], box: Box, method: Method, inner: Inner
) -> tuple[list[Lines], Box]:
    """The lines around every ReLU, and the box of what the last one gives."""
    lines: list[Lines] = []
    start = box
    for k, stage in enumerate(stages[:-1]):
        box = box.through(stage)
        low, high = box.middle - box.radius, box.middle + box.radius
        exact = sum(step.mixes for done in stages[: k + 1] for step in done) < 2
        if method != "ibp" and inner == "backward" and not exact:
            low, high = _tightened(stages[: k + 1], lines, start, low, high, method == "dual")
        lines.append(Lines.between(low, high, method == "dual"))
        box = Box.between(low.clamp_min(0), high.clamp_min(0))
    return lines, box


def _tightened(
    stages: list[list[Map]], lines: list[Lines], box: Box, low: Tensor, high: Tensor, all_: bool
) -> tuple[Tensor, Tensor]:
    """Bounds [N, ...] of what `stages` give from lines instead of intervals, or the tighter of
    both, and only for neurons whose sign the interval leaves open."""
    chosen = torch.ones_like(low, dtype=torch.bool) if all_ else (low < 0) & (high > 0)
    image, place = chosen.flatten(1).nonzero(as_tuple=True)
    if not len(image):
        return low, high
    channels, *size = low.shape[1:]
    # a neuron of convolutions sees a window only, which is far less than the image
    local = len(size) == 2 and all(s.reach or not s.mixes for stage in stages for s in stage)
    largest = 512 if local else max(s.numel() for s in (low[0], *(line.above[0] for line in lines)))
    count = max(NUMBERS // largest, 1)
    lows, highs = [], []
    for rows, at in zip(image.split(count), place.split(count)):
        if local:
            pixel = at % (size[0] * size[1])
            corner = torch.stack([pixel // size[1], pixel % size[1]], 1)
            unit = one_hot(at // (size[0] * size[1]), channels)[:, :, None, None].to(low)
        else:
            corner, unit = None, one_hot(at, low[0].numel()).to(low).view(-1, *low.shape[1:])
        lows.append(_backwards(stages, lines, box, unit, rows, corner))
        highs.append(-_backwards(stages, lines, box, -unit, rows, corner))
    new_low = low.masked_scatter(chosen, torch.cat(lows))
    new_high = high.masked_scatter(chosen, torch.cat(highs))
    if all_:
        return new_low, new_high
    return torch.maximum(low, new_low), torch.minimum(high, new_high)


def _backwards(
    stages: list[list[Map]],
    lines: list[Lines],
    box: Box,
    rows: Tensor,
    image: Tensor,
    corner: Tensor | None = None,
) -> Tensor:
    """Lower bounds [M] on rows[m] times what `stages` make of the box of image[m]; with `corner`
    [M, 2], rows are windows of it that begin there."""
    bound = rows.new_zeros(len(rows))
    for stage, line in zip(reversed(stages), [*reversed(lines), None]):
        for step in reversed(stage):
            bound = bound + (rows * step.bias).flatten(1).sum(1)
            if corner is not None and step.reach:
                rows, corner = step.reach.back(rows, step.weight, corner)
            else:
                rows = step.transpose(rows, step.weight)
        if line is not None:
            below, above, offset = _taken(
                [line.below, line.above, line.offset], image, rows, corner
            )
            up, down = rows.clamp_min(0), rows.clamp_max(0)
            bound = bound + (down * offset).flatten(1).sum(1)
            rows = up * below + down * above
    middle, radius = _taken([box.middle, box.radius], image, rows, corner)
    return bound + (rows * middle - rows.abs() * radius).flatten(1).sum(1)


def _taken(
    tensors: list[Tensor], image: Tensor, rows: Tensor, corner: Tensor | None
) -> list[Tensor]:
    """Of each tensor [N, ...] what belongs to each row: of its image, or the window of it."""
    if corner is None:
        return [t[image] for t in tensors]
    height, width = rows.shape[2:]
    margin = (width, width, height, height)
    views = [pad(t, margin).unfold(2, height, 1).unfold(3, width, 1) for t in tensors]
    top, left = corner[:, 0] + height, corner[:, 1] + width
    return [view[image, :, top, left] for view in views]


def rounding(stages: list[list[Map]], box: Box, unit: float) -> Tensor:
    """How far logits computed with unit roundoff `unit` may be from the exact ones, [N], for any
    image of the box and sums in any order (Higham 2002, eq. 3.5): infinite where sums are too
    long for the precision."""
    error = torch.zeros_like(box.radius)
    for k, stage in enumerate(stages):
        if k:
            low, high = box.middle - box.radius, box.middle + box.radius
            box = Box.between(low.clamp_min(0), high.clamp_min(0))
        for step in stage:
            size = box.middle.abs() + box.radius + error
            share = step.terms * unit
            share = share / (1 - share) if share < 1 else math.inf
            error = step.spread(error)
            if share:
                error = error + share * (step.spread(size) + step.size)
            box = box.through([step])
    return error.amax(1)
