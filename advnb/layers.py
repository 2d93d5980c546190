"""Layers that PyTorch lacks, and the distributions that the papers draw their weights from."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad


class Sum(nn.Module):
    """branch(x) + shortcut(x)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


class Widen(nn.Module):
    """A shortcut without weights: means over stride x stride pixels, new channels of zeros on
    both sides of the old ones."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = (after - before) // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.stride == 1 else avg_pool2d(x, self.stride, ceil_mode=True)
        return pad(x, (0, 0, 0, 0, self.extra, self.extra)) if self.extra else x


class Standardise(nn.Module):
    """Every image to mean 0 and standard deviation 1 over all its pixels and channels. As in
    TensorFlow, a deviation below 1/sqrt(pixels) grey levels of 255 counts as that much."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, (1, 2, 3), correction=0, keepdim=True)
        least = 1 / (255**2 * x[0].numel())
        return (x - mean) / variance.clamp_min(least).sqrt()


def conv3(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, 1, bias=False)


def weighted(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def biases(model: nn.Module, value: float) -> None:
    for layer in weighted(model):
        if layer.bias is not None:
            nn.init.constant_(layer.bias, value)


def narrow(model: nn.Module, stream: torch.Generator) -> None:
    """kaiming_normal with the gain of ReLU passed as the negative slope; biases 0 (S's code)."""
    for layer in weighted(model):
        nn.init.kaiming_normal_(layer.weight, a=math.sqrt(2), generator=stream)
    biases(model, 0.0)


def fan_out(model: nn.Module, stream: torch.Generator) -> None:
    """Convolutions kaiming_normal by fan_out (S's code), linear layers as PyTorch's; biases 0."""
    for layer in weighted(model):
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(
                layer.weight, mode="fan_out", nonlinearity="relu", generator=stream
            )
        else:
            uniform(layer, stream)
    biases(model, 0.0)


def uniform(layer: nn.Conv2d | nn.Linear, stream: torch.Generator) -> None:
    """Uniform within 1/sqrt(fan_in): PyTorch's default for weights and biases."""
    limit = 1 / math.sqrt(layer.weight[0].numel())
    for tensor in (layer.weight, layer.bias):
        if tensor is not None:
            nn.init.uniform_(tensor, -limit, limit, generator=stream)
