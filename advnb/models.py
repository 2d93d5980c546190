"""The papers' networks, any other wrapped for pixels in [0, 1], and looking at a network without
leaving a trace on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from .checks import brief, whole
from .networks import (
    CNN,
    MLP,
    NETWORKS,
    VGG,
    WRM,
    CelebACNN,
    MadryCIFAR,
    MadryMNIST,
    Network,
    ResNet13,
    WideCNN,
    WongKolter,
)  # fmt: skip
from .splits import Split
from .stacks import Stack
from .stats import Rate, rate

__all__ = [
    "CNN", "MLP", "NETWORKS", "VGG", "WRM", "CelebACNN", "MadryCIFAR", "MadryMNIST", "Network",
    "ResNet13", "WideCNN", "WongKolter", "Wrapped", "accuracy", "logits", "predictions", "wrap",
]  # fmt: skip

BATCH = 500  # images a forward pass where nothing but memory depends on it


class Wrapped(nn.Module):
    """A module that reads standardised images, from outside one that reads pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.module, self.training = module, module.training
        for name, values in (("mean", mean), ("std", std)):
            row = torch.as_tensor(values, dtype=torch.float32, device=device_of(module))
            self.register_buffer(name, row.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.mean.shape[1]:  # one channel would silently become three
            raise ValueError(f"wrapped for {self.mean.shape[1]} channels; got {list(x.shape)}")
        return self.module((x - self.mean) / self.std)

    def features(self, x: Tensor) -> Tensor:
        """What the linear layer that comes last reads, [N, d]: of most image models, the layer
        that Zhang et al. measure distances in. RuntimeError where there is no such layer."""
        read: list[Tensor] = []

        def keep(_: nn.Module, inputs: tuple, named: dict) -> None:
            read.append(inputs[0] if inputs else named["input"])

        linear = [m for m in self.module.modules() if isinstance(m, nn.Linear)]
        hooks = [m.register_forward_pre_hook(keep, with_kwargs=True) for m in linear]
        try:
            self(x)
        finally:
            for hook in hooks:
                hook.remove()
        if not read:
            raise RuntimeError("this model uses no linear layer: give an own function of features")
        return read[-1].flatten(1)


def wrap(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Wrapped:
    """`module` for pixels in [0, 1]: it reads (x - mean) / std, a number a channel. So a model of
    torchvision or timm comes in, with the mean and std its weights were trained with, and an
    attack's eps stays in pixels.

    Raises ValueError where mean and std are not of one length, on the scale of 0 to 255, or not
    positive deviations.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"the model must be a torch.nn.Module; got {type(module).__name__}")
    try:
        rows = [[float(v) for v in row] for row in (mean, std)]
    except (TypeError, ValueError):
        raise ValueError(
            "mean and std must be lists of one number a channel; got "
            f"{brief(mean)} and {brief(std)}"
        ) from None
    if not len(rows[0]) == len(rows[1]) > 0:
        raise ValueError(f"mean has {len(rows[0])} numbers and std {len(rows[1])}: one a channel")
    if not all(0 <= m <= 1 for m in rows[0]) or not all(0 < s <= 1 for s in rows[1]):
        raise ValueError(
            "mean must lie in [0, 1] and std in (0, 1], as pixels do (divide by 255 what is meant "
            f"for 0 to 255); got {rows[0]} and {rows[1]}"
        )
    return Wrapped(module, *rows)


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
    with kept_random(device) if main else nullcontext(), full_precision(device):
        try:
            model.eval()
            if main and seed is not None:
                seed_device(device, seed)
            yield model
        finally:
            for module, training in modes:
                module.training = training


class _FullPrecision:
    """Counts who is inside: the setting belongs to the process, and panels are threads."""

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.undo: list[tuple[Any, str, Any]] = []

    def enter(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside > 1:
                return
            cudnn: Any = torch.backends.cudnn
            products: Any = torch.backends.cuda.matmul
            # the older setting first, which everything else can read; where somebody uses the
            # newer ones, the two do not mix, and it cannot be read or does not decide
            self._change(cudnn, "allow_tf32", True, False)
            if hasattr(cudnn, "conv"):
                self._change(cudnn.conv, "fp32_precision", "tf32", "ieee")
                self._change(products, "fp32_precision", "tf32", "ieee")
            else:
                self._change(products, "allow_tf32", True, False)

    def _change(self, owner: Any, name: str, rough: Any, exact: Any) -> None:
        with suppress(RuntimeError):
            if getattr(owner, name) == rough:
                self.undo.append((owner, name, rough))
                setattr(owner, name, exact)

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            while self.undo and not self.inside:
                setattr(*self.undo.pop())


_precision = _FullPrecision()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 that is float32: on a GPU of NVIDIA's PyTorch convolves in TF32, 10 bits in place
    of 23, and multiplies matrices so where it is told to; the results are then not the CPU's."""
    if device.type != "cuda":
        yield
        return
    _precision.enter()
    try:
        yield
    finally:
        _precision.leave()


@contextmanager
def kept_random(device: torch.device) -> Iterator[None]:
    """The random states of the CPU and of `device` come back afterwards."""
    apple = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            if apple is not None:
                torch.mps.set_rng_state(apple)


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the CPU's generator and the device's own, and no other device's."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


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
    copies = model.networks if isinstance(model, Stack) else 1
    rows = torch.arange(n * copies) % len(split) if copies > 1 else slice(n)
    x = split[rows].x.to(device_of(model))
    given = x.clone()
    with lent(model), torch.no_grad():
        try:
            output = model(given)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            size, why = "x".join(map(str, x.shape[1:])), " ".join(str(error).split())
            why = why.partition(": ")[2] or why
            types = {p.dtype for p in model.parameters()}
            if types and x.dtype not in types:
                raise ValueError(
                    f"the model cannot read {x.dtype} images, it computes in {types.pop()}: call "
                    "its .to(dtype), or give it a split.with_x(x.to(dtype))"
                ) from None
            why = "" if "mat1" in why or "addmm" in why else f" ({brief(why)[1:-1]})"
            raise ValueError(
                f"the model cannot read {x.dtype} images of {size}{why}: give it the "
                "images that it was made for"
            ) from None
    if not torch.equal(given, x):  # the next one to look at the split would see it
        raise ValueError("the model changes its input in place: write x = x - m, not x -= m")
    shaped(output, len(x))
    if int(split.y.max()) >= output.shape[1]:
        raise ValueError(
            f"label {int(split.y.max())} is out of range for a model of {output.shape[1]} classes: "
            f"labels must be 0 to {output.shape[1] - 1}"
        )
    return finite(output)


def shaped(output: Any, n: int) -> Tensor:
    """The output itself; ValueError unless it is logits of `n` images."""
    tensor = isinstance(output, Tensor)
    if not tensor or not output.is_floating_point() or output.ndim != 2 or len(output) != n:
        what = f"{output.dtype} {list(output.shape)}" if tensor else type(output).__name__
        raise ValueError(f"a model must return logits [{n}, classes]; this one gave {what}")
    return output


NO_STACK = "a Stack is for training: look at each of its networks, unstack()"
NOT_FINITE = "the model returned NaN or infinity: check its weights"


def finite(output: Tensor) -> Tensor:
    """The output itself; ValueError where it holds NaN or infinity."""
    if not output.detach().isfinite().all():
        raise ValueError(NOT_FINITE)
    return output


def logits(model: nn.Module, split: Split, batch_size: int = BATCH) -> Tensor:
    """The model's outputs for a split, [N, classes], on the split's device, without gradients."""
    if isinstance(model, Stack):
        raise ValueError(NO_STACK)
    probe(model, split)
    batch_size = whole("batch_size", batch_size, 1)
    parts = []
    with lent(model), torch.no_grad():
        for start in range(0, len(split), batch_size):
            x = split[start : start + batch_size].x.to(device_of(model))
            parts.append(finite(shaped(model(x), len(x))).to(split.y.device))
    return torch.cat(parts)


def predictions(model: nn.Module, split: Split) -> list[tuple[str, bool]]:
    """What the model takes each image for: (class name, whether that is right)."""
    return split.named(logits(model, split).argmax(1))


def accuracy(model: nn.Module, split: Split, batch_size: int = BATCH) -> Rate:
    """Share of images that the model classifies correctly."""
    return rate(logits(model, split, batch_size).argmax(1) == split.y)
