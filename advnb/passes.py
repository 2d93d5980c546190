"""The same network, cheaper to differentiate by its input: what an attack does 40 times an image.

In eval mode a batch normalisation is an affine map, which the convolution before it can do as
well; two linear layers with nothing in between are one; and the gradient of a first convolution
by its few channels is a matrix product.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, fold, linear

from .layers import Sum
from .networks import Network
from .stacks import Apart, GroupedLinear


def quickened(model: nn.Module) -> nn.Module:
    """A module with the outputs of `model` in eval mode, up to rounding, whose weights as of now
    are not differentiated; `model` itself where it is not a `Network` or somebody listens in
    or has put another `forward` in its place."""
    if not isinstance(model, Network) or type(model).forward is not Network.forward:
        return model
    heard = any(
        m._forward_hooks or m._forward_pre_hooks or {"forward", "features"} & vars(m).keys()
        for m in model.modules()
    )
    if heard or type(model).features is not Network.features:
        return model
    if any(p.dtype not in (torch.float32, torch.float64) for p in model.parameters()):
        return model  # a product of two roundings would be felt
    with torch.no_grad():
        return _quick([*_flat(model.body), *_flat(model.head)], first=True)


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a chain of chains."""
    if type(module) is nn.Sequential:
        for part in module:
            yield from _flat(part)
    else:
        yield module


def _quick(layers: Iterable[nn.Module], first: bool = False) -> nn.Sequential:
    made: list[nn.Module] = []
    for layer in layers:
        last = made[-1] if made else None
        if isinstance(layer, Sum):
            made.append(Sum(_quick(_flat(layer.branch)), _quick(_flat(layer.shortcut))))
        elif isinstance(last, Convolution) and _is_affine(layer):
            last.absorb(layer)
        elif type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
            made.append(Convolution(layer, first and not made))
        elif type(layer) is nn.Linear or type(layer) is GroupedLinear:
            quick = Linear(layer)
            if isinstance(last, Linear) and quick.fewer_after(last):
                last.then(quick)
            else:
                made.append(quick)
        elif type(layer) is Apart and isinstance(last, Linear):
            last.apart = True
        else:
            made.append(layer)
    return nn.Sequential(*made)


def _is_affine(layer: nn.Module) -> bool:
    return type(layer) is nn.BatchNorm2d and layer.running_mean is not None


class Linear(nn.Module):
    """A linear layer, or one for each group of channels, whose weights are constants; where
    `apart`, the groups' rows come one group's after another's."""

    def __init__(self, layer: nn.Linear | GroupedLinear) -> None:
        super().__init__()
        groups = layer.groups if isinstance(layer, GroupedLinear) else 1
        self.weight = layer.weight.detach().unflatten(0, (groups, -1)).mT  # [groups, from, to]
        bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
        self.bias, self.apart = bias.detach().view(groups, 1, -1), False

    def fewer_after(self, before: Linear) -> bool:
        """Whether both as one have fewer weights than both."""
        apart = before.weight[0].numel() + self.weight[0].numel()
        return before.weight.shape[1] * self.weight.shape[2] < apart

    def then(self, after: Linear) -> None:
        """Do what the layer after it does, too."""
        self.weight = self.weight @ after.weight
        self.bias = self.bias @ after.weight + after.bias

    def forward(self, x: Tensor) -> Tensor:
        if len(self.weight) == 1:
            return linear(x, self.weight[0].T, self.bias[0, 0])
        rows = x.unflatten(1, (len(self.weight), -1)).transpose(0, 1)
        made = torch.baddbmm(self.bias, rows, self.weight)
        return made.flatten(0, 1) if self.apart else made.transpose(0, 1).flatten(1)


class Convolution(nn.Module):
    """A convolution whose weights are constants."""

    def __init__(self, layer: nn.Conv2d, first: bool) -> None:
        super().__init__()
        self.weight = layer.weight.detach()
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.shape = Shape(layer.stride, layer.padding, layer.dilation, layer.groups)
        # faster where it was measured: on a CPU, for images of 1 or 3 channels
        few = layer.in_channels <= 3 and layer.groups == 1 and not isinstance(layer.padding, str)
        self.product = first and few and self.weight.device.type == "cpu"

    def absorb(self, norm: Any) -> None:
        """Do what the batch normalisation after it does in eval mode, too."""
        mean, variance = norm.running_mean, norm.running_var
        scale = (variance + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.detach()
        bias = -mean if self.bias is None else self.bias - mean
        self.weight = self.weight * scale[:, None, None, None]
        self.bias = bias * scale + (0 if norm.bias is None else norm.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        if self.product and x.requires_grad:
            return _Product.apply(x, self.weight, self.bias, self.shape)
        shape = self.shape
        return conv2d(
            x, self.weight, self.bias, shape.stride, shape.padding, shape.dilation, shape.groups
        )


@dataclass(frozen=True)
class Shape:
    """How a convolution moves over the image."""

    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    groups: int


class _Product(torch.autograd.Function):
    """A convolution that is differentiated by its input alone, as a product and a fold."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
        ctx.weight, ctx.size, ctx.shape = weight, x.shape[2:], shape
        return conv2d(x, weight, bias, shape.stride, shape.padding, shape.dilation)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        columns = ctx.weight.flatten(1).T @ gradient.flatten(2)
        kernel, shape = ctx.weight.shape[2:], ctx.shape
        there = fold(columns, ctx.size, kernel, shape.dilation, shape.padding, shape.stride)
        return there, None, None, None
