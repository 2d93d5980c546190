"""Networks that turn the images of one class into codes and back: what a learned manifold is
made of (S, appendix: class-specific VAE-GANs), and a flow that shapes the codes' distribution."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .stats import generator

Shape = tuple[int, int, int]
LATENTS = 10  # numbers in a code (S)


class Autoencoder(nn.Module):
    """Codes z [N, 10], a standard normal's under the model, of images [N, C, H, W] and back.

    Three stride-2 convolutions of `width`, 2 and 4 times `width` channels and their mirror image.
    S's networks are of width 64 with kernel 6 in the decoder. With `couplings` > 0 a flow of that
    many layers lies between the encoder's Gaussian and the code. Without `normalised` there is no
    batch normalisation: what `folded` gives.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        shape: Shape = (1, 28, 28),
        width: int = 64,
        kernel: int = 6,
        couplings: int = 0,
        normalised: bool = True,
    ) -> None:
        super().__init__()
        channels, *size = shape
        widths = [channels, width, 2 * width, 4 * width]
        sizes = [tuple(size)]
        for _ in range(3):
            sizes.append(tuple(side // 2 for side in sizes[-1]))
        flat = widths[3] * math.prod(sizes[3])
        with torch.device("meta"):  # so that nothing is drawn from the process's random state
            self.body = _convolutions(widths, 4, normalised)
            self.mean, self.spread = nn.Linear(flat, LATENTS), nn.Linear(flat, LATENTS)
            layers = [nn.Linear(LATENTS, flat), nn.Unflatten(1, (widths[3], *sizes[3]))]
            for k in (3, 2, 1):
                (h, w), (low_h, low_w) = sizes[k - 1], sizes[k]
                odd = (h - 2 * low_h, w - 2 * low_w)
                layers.append(
                    nn.ConvTranspose2d(
                        widths[k], widths[k - 1], kernel, 2, kernel // 2 - 1, output_padding=odd
                    )
                )
                layers += _after(widths[k - 1], normalised) if k > 1 else (nn.Sigmoid(),)
            self.decoder, self.flow = nn.Sequential(*layers), Flow(LATENTS, couplings)
        _initialise(self, generator(seed), small=("body", "decoder"))
        for net in self.flow.nets:  # the flow starts without scaling or shifting
            nn.init.zeros_(net[2].weight)  # type: ignore[index]

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, [N, 10] each, of the Gaussian that the encoder answers with."""
        h = self.body(x)
        return self.mean(h), self.spread(h)

    def encode(self, x: Tensor) -> Tensor:
        """The code of the Gaussian's mean, [N, 10]."""
        return self.flow(self.mean(self.body(x)))[0]

    def decode(self, z: Tensor) -> Tensor:
        """Images [N, C, H, W] in [0, 1]."""
        return self.decoder(self.flow.inverse(z))

    def folded(self) -> Autoencoder:
        """A copy for use after training, with batch normalisation folded into the convolutions."""
        new = copy.deepcopy(self).eval()
        for layers in (new.body, new.decoder):
            for k, layer in enumerate(layers):
                if isinstance(layer, nn.BatchNorm2d):
                    turned = isinstance(layers[k - 1], nn.ConvTranspose2d)
                    layers[k - 1] = fuse_conv_bn_eval(  # type: ignore[type-var]
                        layers[k - 1], layer, transpose=turned
                    )
                    layers[k] = nn.Identity()
        return new


class Discriminator(nn.Sequential):
    """Tells images from reconstructions: one logit an image, [N, 1] (S, appendix)."""

    def __init__(self, seed: int, *, shape: Shape, width: int, kernel: int) -> None:
        channels, height, across = shape
        widths = [channels, width, 2 * width, 4 * width]
        flat = widths[3] * (height // 8) * (across // 8)
        with torch.device("meta"):
            super().__init__(
                _convolutions(widths, kernel, True), nn.Linear(flat, 10), nn.Linear(10, 1)
            )
        _initialise(self, generator(seed))


class Flow(nn.Module):
    """An invertible map of R^d: affine couplings (Dinh et al., ICLR 2017), each of which scales
    and shifts one half of the coordinates by what a small network reads in the other half, and
    permutes all of them. A new one only permutes; one without layers is the identity."""

    HIDDEN = 32

    def __init__(self, d: int, layers: int) -> None:
        super().__init__()
        self.moved = d // 2
        self.nets = nn.ModuleList(
            nn.Sequential(
                nn.Linear(d - self.moved, self.HIDDEN),
                nn.ReLU(),
                nn.Linear(self.HIDDEN, 2 * self.moved),
            )
            for _ in range(layers)
        )

    @staticmethod
    def _scale_and_shift(net: nn.Module, kept: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = net(kept).chunk(2, -1)
        return 2 * torch.tanh(scale / 2), shift  # one layer stretches by e^2 at most

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """z [N, d], and log |det dz/du| [N]."""
        volume = torch.zeros_like(u[:, 0])
        for net in self.nets:
            moved, kept = u[:, : self.moved], u[:, self.moved :]
            scale, shift = self._scale_and_shift(net, kept)
            # the halves change places, shifted by one so that other pairs meet each time
            u = torch.cat([kept, moved * scale.exp() + shift], 1).roll(1, 1)
            volume = volume + scale.sum(1)
        return u, volume

    def inverse(self, z: Tensor) -> Tensor:
        """The u [..., d] with forward(u) = z."""
        for net in reversed(self.nets):
            z = z.roll(-1, -1)
            kept, moved = z[..., : -self.moved], z[..., -self.moved :]
            scale, shift = self._scale_and_shift(net, kept)
            z = torch.cat([(moved - shift) * (-scale).exp(), kept], -1)
        return z


def _after(channels: int, normalised: bool) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(channels) if normalised else nn.Identity(), nn.ReLU()


def _convolutions(widths: list[int], kernel: int, normalised: bool) -> nn.Sequential:
    """Stride-2 convolutions, each with batch normalisation and ReLU, flattened at the end."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers.append(nn.Conv2d(before, after, kernel, 2, kernel // 2 - 1))
        layers += _after(after, normalised)
    return nn.Sequential(*layers, nn.Flatten())


def _initialise(module: nn.Module, stream: torch.Generator, small: tuple[str, ...] = ()) -> None:
    """Give memory to a module built without, and draw its weights (S's released code): N(0,
    0.001^2) for the parts named `small`, elsewhere N(0, 2/3 / inputs) as for the classifiers."""
    module.to_empty(device="cpu")
    for name, part in module.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
        elif isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            inputs = part.weight[0].numel()
            deviation = 1e-3 if name.startswith(small or " ") else math.sqrt(2 / 3 / inputs)
            nn.init.normal_(part.weight, std=deviation, generator=stream)
            assert part.bias is not None
            nn.init.zeros_(part.bias)
