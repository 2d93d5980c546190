"""A network as affine maps with ReLU in between, each with its transpose: what bounds need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, linear

from .checks import brief
from .models import Network, Wrapped

PLAIN = (Network.forward, Network.features)


@dataclass(frozen=True)
class Reach:
    """How far one output of a convolution sees: from pixel stride * output - padding on, in an
    input of height and width `size`."""

    stride: Tensor
    padding: Tensor
    size: tuple[int, ...]
    transpose: Callable[[Tensor, Tensor], Tensor]  # of a window, whatever lies outside the image

    def back(self, rows: Tensor, weight: Tensor, corner: Tensor) -> tuple[Tensor, Tensor]:
        """The transpose of windows [M, C, h, w] of outputs, whose first pixels are at `corner`
        [M, 2]: windows of inputs, 0 outside the image, and their corners."""
        rows, corner = self.transpose(rows, weight), corner * self.stride - self.padding
        inside = []
        for side, length in enumerate(rows.shape[2:]):
            at = corner[:, side, None] + torch.arange(length, device=rows.device)
            inside.append((at >= 0) & (at < self.size[side]))
        mask = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return rows * mask, corner


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
    reach: Reach | None = None  # of a convolution

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
        return Map(zero, zero, lambda x, w: x.flatten(1), lambda a, w: a.reshape(len(a), *shape),
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
        free = partial(
            conv_transpose2d, bias=None, stride=layer.stride, groups=layer.groups,
            dilation=layer.dilation,
        )  # fmt: skip
        # pixels at the right and bottom edges that no kernel reaches
        rest = tuple(
            (side + 2 * pad - step * (width - 1) - 1) % stride
            for side, pad, step, width, stride in zip(
                shape[1:], layer.padding, layer.dilation, layer.kernel_size, layer.stride
            )
        )
        apply = partial(
            conv2d, bias=None, stride=layer.stride, padding=layer.padding,
            dilation=layer.dilation, groups=layer.groups,
        )  # fmt: skip
        moves = torch.tensor([layer.stride, layer.padding], device=weight.device)
        return Map(
            weight, bias[:, None, None], apply,
            partial(free, padding=layer.padding, output_padding=rest),
            weight[0].numel() + 1, bias.abs()[:, None, None],
            reach=Reach(moves[0], moves[1], shape[1:], free),
        )  # fmt: skip
    raise ValueError(
        f"no bounds for {brief(layer)}: use convolutions, linear layers, batch normalisation, "
        "ReLU and flattening only, in an nn.Sequential"
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
