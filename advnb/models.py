"""The papers' networks, and looking at any network without leaving a trace on it.

Pixels are in [0, 1] outside a model; normalisation, where there is any, is inside it. Every
network has `features(x)`, the layer that Zhang et al. measure distances in (Z eq. 2), and takes
its weights from a generator of its own: building one leaves the global random state alone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .splits import Split
from .stats import Rate, generator, rate

BATCH = 500  # images a forward pass where nothing but memory depends on it


class Network(nn.Module):
    """A classifier in two halves: `forward(x) = head(features(x))`, logits [N, classes]."""

    body: nn.Sequential
    head: nn.Module

    def features(self, x: Tensor) -> Tensor:
        """The embedding h(x), [N, d]."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class CNN(Network):
    """The standard network of Stutz et al. (appendix): three 4x4 convolutions of stride 2, each
    followed by batch normalisation and ReLU, then two linear layers with nothing in between.

    100,262 parameters for 1x28x28 images and 10 classes. `features` is the output of the first
    linear layer (100 numbers). Weights: kaiming_normal whose negative slope is (by an accident
    of the published code that its numbers depend on) sqrt(2); biases 0.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        widths = (channels, 16, 32, 64)
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            for before, after in pairwise(widths):
                layers += [nn.Conv2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
                height, width = height // 2, width // 2
            flat = widths[-1] * height * width
            self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 10 * classes))
            self.head = nn.Linear(10 * classes, classes)
        stream = generator(seed)

        def init(weight: Tensor) -> None:
            nn.init.kaiming_normal_(weight, a=math.sqrt(2), generator=stream)

        _initialise(self, init, bias=0.0)


class MadryMNIST(Network):
    """Madry et al.'s MNIST network: two 5x5 convolutions (32, 64), each with ReLU and 2x2
    max-pooling, a linear layer of 1,024 with ReLU, a linear layer of 10. 3,274,634 parameters.

    `features` is the hidden layer of 1,024, after its ReLU. Weights: normal of standard
    deviation 0.1 cut at two deviations; biases 0.1.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        with torch.random.fork_rng(devices=[]):
            self.body = nn.Sequential(
                nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
                nn.Flatten(), nn.Linear(64 * (height // 4) * (width // 4), 1024), nn.ReLU(),
            )  # fmt: skip
            self.head = nn.Linear(1024, classes)
        stream = generator(seed)

        def init(weight: Tensor) -> None:
            nn.init.trunc_normal_(weight, std=0.1, a=-0.2, b=0.2, generator=stream)

        _initialise(self, init, bias=0.1)


NETWORKS: dict[str, type[Network]] = {"CNN": CNN, "MadryMNIST": MadryMNIST}


def _initialise(model: nn.Module, weights: Callable[[Tensor], None], bias: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weights(module.weight)
            if module.bias is not None:
                nn.init.constant_(module.bias, bias)


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter or buffer lies; the CPU for one that has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def lent(model: nn.Module, seed: int | None = None) -> Iterator[nn.Module]:
    """A model in eval mode for a while; its modes and the random state come back afterwards.

    `seed` decides what a stochastic model draws meanwhile. In eval mode batch normalisation keeps
    its statistics, so nothing else can change. On a thread other than the main one the random
    state is left alone: it belongs to the process, and putting it back would undo what the main
    thread has drawn in between.
    """
    modes = [(module, module.training) for module in model.modules()]
    device = device_of(model)
    main = threading.current_thread() is threading.main_thread()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices, enabled=main):
        try:
            model.eval()
            if main and seed is not None:
                seed_device(device, seed)
            yield model
        finally:
            for module, training in modes:
                module.training = training


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the CPU's generator and the device's own, and no other device's."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def checked(model: Any, split: Any) -> None:
    """ValueError unless the two are a model and a split."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model must be a torch.nn.Module; got {type(model).__name__}")
    if not isinstance(split, Split):
        hint = ", use its .train(n) or .test(n)" if hasattr(split, "test") else ""
        raise ValueError(f"a Split is needed{hint}; got {type(split).__name__}")


def probe(model: nn.Module, split: Split, n: int = 8) -> Tensor:
    """The outputs for a split's first images, after checking that model and split fit.

    Raises ValueError where the model cannot read such images, where its output is not
    [N, classes] or not finite, and where a label is out of range.
    """
    checked(model, split)
    x = split[:n].x.to(device_of(model))
    with lent(model), torch.no_grad():
        try:
            output = model(x)
        except (RuntimeError, TypeError) as error:
            size = "x".join(map(str, x.shape[1:]))
            why = str(error).splitlines()[0].partition(":")[2] or str(error).splitlines()[0]
            why = "" if "mat1" in why or "addmm" in why else f":{why}"
            raise ValueError(f"the model cannot read {x.dtype} images of {size}{why}") from None
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(x):
        what = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"a model must return logits [{len(x)}, classes]; this one gave {what}")
    if int(split.y.max()) >= output.shape[1]:
        raise ValueError(
            f"label {int(split.y.max())} is out of range for a model of {output.shape[1]} classes"
        )
    return finite(output)


def finite(output: Tensor) -> Tensor:
    """The output itself; ValueError where it holds NaN or infinity."""
    if not output.detach().isfinite().all():
        raise ValueError("the model returned NaN or infinity: check its weights")
    return output


def logits(model: nn.Module, split: Split, batch_size: int = BATCH) -> Tensor:
    """The model's outputs for a split, [N, classes], on the split's device, without gradients."""
    probe(model, split)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number >= 1; got {batch_size!r}")
    parts = []
    with lent(model), torch.no_grad():
        for start in range(0, len(split), batch_size):
            x = split[start : start + batch_size].x.to(device_of(model))
            parts.append(finite(model(x)).to(split.y.device))
    return torch.cat(parts)


def predictions(model: nn.Module, split: Split) -> list[tuple[str, bool]]:
    """What the model takes each image for: (class name, whether that is right)."""
    return split.named(logits(model, split).argmax(1))


def accuracy(model: nn.Module, split: Split, batch_size: int = BATCH) -> Rate:
    """Share of images that the model classifies correctly."""
    return rate(logits(model, split, batch_size).argmax(1) == split.y)
