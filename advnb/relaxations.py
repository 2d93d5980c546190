"""Relaxations of a piecewise linear network over boxes of images: intervals, and lines around ReLU.

Every neuron lies between two numbers, which are passed on layer by layer (IBP; Gowal et al. 2018).
Or every ReLU lies between two lines, so that a margin is at least a linear function of the pixels,
found from the logits backwards and smallest in a corner of the box (CROWN; Zhang et al. 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, linear

from .checks import brief
from .models import Network, Wrapped

Method = Literal["ibp", "crown", "dual"]
Inner = Literal["backward", "ibp"]

NUMBERS = 2**22  # of the largest layer, in as many rows as go backwards at once
PLAIN = (Network.forward, Network.features)


@dataclass(frozen=True)
class Map:
    """An affine layer, apply(x, weight) + bias, and its transpose."""

    weight: Tensor
    bias: Tensor
    apply: Callable[[Tensor, Tensor], Tensor]
    transpose: Callable[[Tensor, Tensor], Tensor]
    terms: int  # that a number of the output is a sum of
    size: Tensor  # of what the bias is computed from
    mixes: bool = True  # unlike a scaling, whose outputs are each a function of one input

    def __call__(self, x: Tensor) -> Tensor:
        return self.apply(x, self.weight) + self.bias

    def spread(self, radius: Tensor) -> Tensor:
        """The radius of an output whose inputs have these radii."""
        return self.apply(radius, self.weight.abs())


def affine_stages(
    model: nn.Module,
    shape: tuple[int, ...],
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> list[list[Map]]:
    """The affine layers of a network for images of `shape`, with a ReLU from list to list; its
    weights as they are, or constants on `device` of type `dtype`."""
    stages: list[list[Map]] = [[]]
    for layer in _layers(model):
        if type(layer) is nn.ReLU:
            stages.append([])
            continue
        made = _map(layer, shape, lambda t: t if dtype is None else t.detach().to(device, dtype))
        with torch.no_grad():
            weight = made.weight.detach()
            shape = tuple(made.apply(weight.new_zeros(1, *shape), weight).shape[1:])
        stages[-1].append(made)
    return stages


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    own: Any = type(model)
    if isinstance(model, Network) and (own.forward, own.features) == PLAIN:
        yield from _layers(model.body)
        yield from _layers(model.head)
    elif own is nn.Sequential:
        for layer in model.children():
            yield from _layers(layer)
    elif own is Wrapped:
        yield model
        yield from _layers(cast(Wrapped, model).module)
    elif own not in (nn.Identity, nn.Dropout, nn.Dropout2d):
        yield model


def _map(layer: Any, shape: tuple[int, ...], take: Callable[[Tensor], Tensor]) -> Map:
    """A layer that reads [N, *shape] as a map, or ValueError."""
    kind = type(layer)
    if kind is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
        zero = torch.zeros(())
        return Map(zero, zero, lambda x, w: x.flatten(1), lambda a, w: a.view(len(a), *shape),
                   0, zero, False)  # fmt: skip
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d) and layer.running_mean is not None:
        scale = (take(layer.running_var) + layer.eps).rsqrt()
        scale = scale if layer.weight is None else scale * take(layer.weight)
        shift, moved = -take(layer.running_mean) * scale, 0 * scale
        moved = moved if layer.bias is None else take(layer.bias)
        return _scaling(shape, scale, shift, moved)
    if kind is Wrapped:
        scale = 1 / take(layer.std).flatten()
        return _scaling(shape, scale, -take(layer.mean).flatten() * scale, 0 * scale)
    if kind is nn.Linear:
        weight = take(layer.weight)
        bias = weight.new_zeros(()) if layer.bias is None else take(layer.bias)
        return Map(weight, bias, linear, lambda a, w: a @ w, weight.shape[1] + 1, bias.abs())
    if kind is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        weight = take(layer.weight)
        bias = weight.new_zeros(1) if layer.bias is None else take(layer.bias)
        moves = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation,
                 "groups": layer.groups}  # fmt: skip
        # pixels at the right and bottom edges that no kernel reaches
        rest = tuple(
            (side + 2 * pad - step * (width - 1) - 1) % stride
            for side, pad, step, width, stride in zip(
                shape[1:], layer.padding, layer.dilation, layer.kernel_size, layer.stride
            )
        )
        back = partial(conv_transpose2d, bias=None, output_padding=rest, **moves)
        bias = bias[:, None, None]
        return Map(weight, bias, partial(conv2d, bias=None, **moves), back,
                   weight[0].numel() + 1, bias.abs())  # fmt: skip
    raise ValueError(
        f"no bounds for {brief(layer)}: use convolutions, linear layers, batch normalisation, "
        "ReLU and flattening only"
    )


def _scaling(shape: tuple[int, ...], scale: Tensor, shift: Tensor, moved: Tensor) -> Map:
    """A number of its own for every channel: scale * x + shift + moved."""
    scale, shift, moved = (t.view(-1, *[1] * (len(shape) - 1)) for t in (scale, shift, moved))
    size = shift.abs() + moved.abs()
    # the network's own way there takes a few roundings more, each of these numbers
    return Map(scale, shift + moved, torch.mul, torch.mul, 16, size, False)


def forward(stages: list[list[Map]], x: Tensor) -> Tensor:
    """The network's outputs."""
    for k, stage in enumerate(stages):
        x = x.relu() if k else x
        for step in stage:
            x = step(x)
    return x


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
    classes = stages[-1][-1].weight.shape[0] if stages[-1] else last.middle.shape[1]
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
    largest = max(line.above[0].numel() for line in lines)
    lows, highs = [], []
    for rows, at in zip(image.split(NUMBERS // largest), place.split(NUMBERS // largest)):
        unit = low.new_zeros(len(rows), low[0].numel())
        unit[torch.arange(len(rows)), at] = 1
        unit = unit.view(-1, *low.shape[1:])
        lows.append(_backwards(stages, lines, box, unit, rows))
        highs.append(-_backwards(stages, lines, box, -unit, rows))
    new_low = low.masked_scatter(chosen, torch.cat(lows))
    new_high = high.masked_scatter(chosen, torch.cat(highs))
    if all_:
        return new_low, new_high
    return torch.maximum(low, new_low), torch.minimum(high, new_high)


def _backwards(
    stages: list[list[Map]], lines: list[Lines], box: Box, rows: Tensor, image: Tensor
) -> Tensor:
    """Lower bounds [M] on rows[m] times what `stages` make of the box of image[m]."""
    bound = rows.new_zeros(len(rows))
    for stage, line in zip(reversed(stages), [*reversed(lines), None]):
        for step in reversed(stage):
            bound = bound + (rows * step.bias).flatten(1).sum(1)
            rows = step.transpose(rows, step.weight)
        if line is not None:
            up, down = rows.clamp_min(0), rows.clamp_max(0)
            bound = bound + (down * line.offset[image]).flatten(1).sum(1)
            rows = up * line.below[image] + down * line.above[image]
    reach = rows * box.middle[image] - rows.abs() * box.radius[image]
    return bound + reach.flatten(1).sum(1)


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
