"""The networks of both papers.

Pixels are in [0, 1] outside a network; normalisation, where there is any, is inside it. Every
network has `features(x)`, the layer that Zhang et al. measure distances in (Z eq. 2), takes any
number of classes and any image size that its layers leave something of, and draws its weights from
a generator of its own: building one leaves the global random state alone. Sizes below are for the
papers' images.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from .checks import brief, whole
from .layers import Standardise, Sum, Widen, biases, conv3, fan_out, narrow, uniform, weighted
from .stats import generator

Shape = tuple[int, int, int]
Layers = list[nn.Module]


class Network(nn.Module):
    """A classifier in two halves: `forward(x) = head(features(x))`, logits [N, classes].

    `shape` is (C, H, W) of the images. Raises ValueError where they are too small.
    """

    SHAPE: Shape = (1, 28, 28)
    CLASSES = 10

    def __init__(
        self, seed: int = 0, *, shape: Shape | None = None, classes: int | None = None
    ) -> None:
        super().__init__()
        shape = self.SHAPE if shape is None else shape
        if not isinstance(shape, tuple) or len(shape) != 3:
            raise ValueError(
                f"shape must be three whole numbers (C, H, W) in a tuple; got {brief(shape)}"
            )
        channels, height, width = (whole("each of shape's (C, H, W)", side, 1) for side in shape)
        self.shape: Shape = (channels, height, width)
        self.classes = whole("classes", self.CLASSES if classes is None else classes, 1)
        # without memory at first: so nothing is drawn from the process's random state, which
        # belongs to the main thread and must not be put back by another
        with torch.device("meta"):
            body, head = self.layers()
            self.body, self.head = nn.Sequential(*body), head
        self.to_empty(device="cpu")
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.reset_parameters()
        self.initialise(generator(seed))
        self.train()

    def layers(self) -> tuple[Layers, nn.Module]:
        """The body's layers and the head."""
        raise NotImplementedError

    def initialise(self, stream: torch.Generator) -> None:
        """Draw the weights. By default PyTorch's own distributions, where a paper names none."""
        for layer in weighted(self):
            uniform(layer, stream)

    def features(self, x: Tensor) -> Tensor:
        """The embedding h(x), [N, d]."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def _flat(self, layers: Layers) -> int:
        """How many numbers an image is after `layers`."""
        try:
            with torch.no_grad():
                return nn.Sequential(*layers).eval()(torch.zeros(1, *self.shape)).numel()
        except RuntimeError:
            size = "x".join(map(str, self.shape))
            raise ValueError(f"{type(self).__name__} needs larger images than {size}") from None


class CNN(Network):
    """The standard network of Stutz et al. (appendix): 4x4 convolutions of stride 2, each followed
    by batch normalisation and ReLU, then two linear layers with nothing in between.

    100,262 parameters. `features` is the output of the first linear layer (10 numbers a class).
    Weights: kaiming_normal whose negative slope is (by an accident of the published code that its
    numbers depend on) sqrt(2); biases 0.
    """

    WIDTHS: tuple[int, ...] = (16, 32, 64)

    def layers(self) -> tuple[Layers, nn.Module]:
        layers: Layers = []
        for before, after in pairwise((self.shape[0], *self.WIDTHS)):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        hidden = 10 * self.classes
        layers += [nn.Flatten(), nn.Linear(self._flat(layers), hidden)]
        return layers, nn.Linear(hidden, self.classes)

    def initialise(self, stream: torch.Generator) -> None:
        narrow(self, stream)


class CelebACNN(CNN):
    """`CNN` with a fourth convolution, as Stutz et al. use for CelebA: 3x56x48, two classes.

    196,622 parameters.
    """

    SHAPE = (3, 56, 48)
    CLASSES = 2
    WIDTHS = (16, 32, 64, 128)


class WideCNN(CNN):
    """`CNN` with twice the channels, for what is harder than letters: 3x32x32 here.

    371,958 parameters.
    """

    SHAPE = (3, 32, 32)
    WIDTHS = (32, 64, 128)


class MLP(Network):
    """Stutz et al.'s multi-layer perceptron: four times a linear layer of 128, ReLU, batch
    normalisation; then a linear layer. 152,330 parameters. Weights as in `CNN`.

    `features` is what the last linear layer reads (128 numbers).
    """

    def layers(self) -> tuple[Layers, nn.Module]:
        layers: Layers = [nn.Flatten()]
        for before, after in pairwise((math.prod(self.shape), 128, 128, 128, 128)):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.BatchNorm1d(after)]
        return layers, nn.Linear(128, self.classes)

    def initialise(self, stream: torch.Generator) -> None:
        narrow(self, stream)


class ResNet13(Network):
    """Stutz et al.'s residual network: a 3x3 convolution, three stages of two blocks (64, 128, 256
    channels, each stage half as large), the mean over what is left. 2,776,522 parameters.

    `features` is that mean (256 numbers). Convolutions: kaiming_normal, fan_out; the linear layer
    as PyTorch's (S's code: as in `CNN`, sqrt(2) times as wide).
    """

    def layers(self) -> tuple[Layers, nn.Module]:
        layers = [conv3(self.shape[0], 64), nn.BatchNorm2d(64), nn.ReLU()]
        for before, after, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2)):
            for first, step in ((before, stride), (after, 1)):
                branch = nn.Sequential(
                    conv3(first, after, step), nn.BatchNorm2d(after), nn.ReLU(),
                    conv3(after, after), nn.BatchNorm2d(after),
                )  # fmt: skip
                same = first == after and step == 1
                shortcut = nn.Identity() if same else nn.Sequential(
                    nn.Conv2d(first, after, 1, step, bias=False), nn.BatchNorm2d(after)
                )  # fmt: skip
                layers += [Sum(branch, shortcut), nn.ReLU()]
        return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()], nn.Linear(256, self.classes)

    def initialise(self, stream: torch.Generator) -> None:
        fan_out(self, stream)


class VGG(Network):
    """Stutz et al.'s VGG: 3x3 convolutions (64; 128, 128; 256, 256) with batch normalisation and
    ReLU, 2x2 max-pooling where the width changes, linear layers of 1,024, 1,024 and 10. No
    dropout. 15,014,922 parameters. Weights as in `ResNet13`: S's code draws those of the linear
    layers sqrt(6) times as wide, and from there 1,000 letters were not learned in 20 epochs (test
    error .81 and .86 of two seeds; printed .33).

    `features` is the output of the first linear layer, after its ReLU.
    """

    def layers(self) -> tuple[Layers, nn.Module]:
        layers: Layers = []
        for before, after in pairwise((self.shape[0], 64, 128, 128, 256, 256)):
            if after != before and layers:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(self._flat(layers), 1024), nn.ReLU()]
        return layers, nn.Sequential(
            nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, self.classes)
        )

    def initialise(self, stream: torch.Generator) -> None:
        fan_out(self, stream)


class MadryMNIST(Network):
    """Madry et al.'s MNIST network: two 5x5 convolutions (32, 64), each with ReLU and 2x2
    max-pooling, a linear layer of 1,024 with ReLU, a linear layer of 10. 3,274,634 parameters.

    `features` is the hidden layer of 1,024, after its ReLU. Weights: normal of standard
    deviation 0.1 cut at two deviations; biases 0.1.
    """

    def layers(self) -> tuple[Layers, nn.Module]:
        layers: Layers = []
        for before, after in pairwise((self.shape[0], 32, 64)):
            layers += [nn.Conv2d(before, after, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Flatten(), nn.Linear(self._flat(layers), 1024), nn.ReLU()]
        return layers, nn.Linear(1024, self.classes)

    def initialise(self, stream: torch.Generator) -> None:
        for layer in weighted(self):
            nn.init.trunc_normal_(layer.weight, std=0.1, a=-0.2, b=0.2, generator=stream)
        biases(self, 0.1)


class MadryCIFAR(Network):
    """Madry et al.'s wide residual network for CIFAR-10 (also Zhang et al.'s for traffic signs):
    16 channels, then three stages of five pre-activation units (160, 320, 640), leaky ReLU of
    slope 0.1, the mean over what is left. 45,901,914 parameters.

    Each image is standardised inside, so alpha and beta change nothing: this network sees no
    contrast. Padding is alike on all sides (TensorFlow, with stride 2, pads one side only).
    `features` is the last mean (640 numbers). Convolutions: normal of variance 2 / (9 * output
    channels); the linear layer uniform within sqrt(3 / 640); biases 0.
    """

    SHAPE = (3, 32, 32)

    def layers(self) -> tuple[Layers, nn.Module]:
        def ready(width: int) -> Layers:
            return [nn.BatchNorm2d(width, eps=1e-3), nn.LeakyReLU(0.1)]

        layers: Layers = [Standardise(), conv3(self.shape[0], 16)]
        for before, after, stride in ((16, 160, 1), (160, 320, 2), (320, 640, 2)):
            for number in range(5):
                width, step = (before, stride) if number == 0 else (after, 1)
                first = ready(width)
                branch = [conv3(width, after, step), *ready(after), conv3(after, after)]
                shortcut = Widen(width, after, step)
                if before == 16 and number == 0:  # here alone the shortcut is activated as well
                    layers += [*first, Sum(nn.Sequential(*branch), shortcut)]
                else:
                    layers.append(Sum(nn.Sequential(*first, *branch), shortcut))
        layers += [*ready(640), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return layers, nn.Linear(640, self.classes)

    def initialise(self, stream: torch.Generator) -> None:
        for layer in weighted(self):
            if isinstance(layer, nn.Conv2d):
                deviation = math.sqrt(2 / (9 * layer.out_channels))
                nn.init.normal_(layer.weight, std=deviation, generator=stream)
            else:
                limit = math.sqrt(3 / layer.in_features)
                nn.init.uniform_(layer.weight, -limit, limit, generator=stream)
        biases(self, 0.0)


class WongKolter(Network):
    """Wong and Kolter's small network: two 4x4 convolutions of stride 2 (16, 32), a linear layer
    of 100, a ReLU after each; a linear layer of 10. 166,406 parameters for 1x28x28 (their
    MNIST network), 214,918 for 3x32x32 (their `cifar_small`).

    `features` is the hidden layer of 100, after its ReLU. Weights: PyTorch's own distributions.
    """

    def layers(self) -> tuple[Layers, nn.Module]:
        layers: Layers = []
        for before, after in pairwise((self.shape[0], 16, 32)):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(self._flat(layers), 100), nn.ReLU()]
        return layers, nn.Linear(100, self.classes)


class WRM(Network):
    """The network of Sinha et al.'s distributionally robust training: convolutions of 8x8 (64,
    stride 2), 6x6 (128, stride 2) and 5x5 (128), an ELU after each, a linear layer of 10.
    710,218 parameters. `features` is what the linear layer reads.

    Smooth, because their guarantee needs it. Weights: PyTorch's own distributions.
    """

    def layers(self) -> tuple[Layers, nn.Module]:
        layers = [
            nn.Conv2d(self.shape[0], 64, 8, 2, 3), nn.ELU(), nn.Conv2d(64, 128, 6, 2), nn.ELU(),
            nn.Conv2d(128, 128, 5), nn.ELU(), nn.Flatten(),
        ]  # fmt: skip
        return layers, nn.Linear(self._flat(layers), self.classes)


_ALL = (CNN, CelebACNN, WideCNN, MLP, ResNet13, VGG, MadryMNIST, MadryCIFAR, WongKolter, WRM)
NETWORKS: dict[str, type[Network]] = {network.__name__: network for network in _ALL}
