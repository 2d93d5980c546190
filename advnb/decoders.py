"""The way from codes to images, cheaper to run and to differentiate by the codes: what an attack on
a learned manifold does 40 times an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d, pad

from .autoencoders import LATENTS, Autoencoder, Flow
from .stacks import stacked


class Decoders:
    """The `decode` of K autoencoders of one form as one, up to rounding: codes [n, K, 10], n for
    each, to images [n, K, C, H, W]. The weights are copies.

    A flow's layers move no coordinate about: they are maps of all, which leave alone those that
    are kept. Nothing bends between a decoder's first two layers, so that both are one affine map.
    """

    def __init__(self, networks: Sequence[Autoencoder]) -> None:
        with torch.no_grad():
            inverses = [_inverse(network.flow) for network in networks]
            self.steps = [
                [torch.stack(tensors) for tensors in zip(*step)]
                for step in zip(*(steps for steps, _ in inverses))
            ]
            place = inverses[0][1]
            maps, biases, rest = zip(*(_quick(network.decoder, place) for network in networks))
            self.map, self.bias = torch.stack(maps), torch.stack(biases)
            self.rest = stacked(rest).requires_grad_(False).eval()

    def __call__(self, z: Tensor) -> Tensor:
        n, count, _ = z.shape
        u = z.transpose(0, 1)
        for before, inner, after, outer in self.steps:
            hidden = torch.baddbmm(inner, u, before).relu()
            scale, shift = torch.baddbmm(outer, hidden, after).chunk(2, 2)
            u = (u - shift) * (-2 * scale.tanh()).exp()
        h = torch.baddbmm(self.bias.flatten(2), u, self.map.flatten(2))
        h = h.transpose(0, 1).reshape(n, -1, *self.bias.shape[3:])
        return self.rest(h).unflatten(1, (count, -1))

    def alone(self, z: Tensor) -> Tensor:
        """Images [n, C, H, W] of codes [n, 10] where K is 1."""
        return self(z[:, None])[:, 0]


def _inverse(flow: Flow) -> tuple[list[tuple[Tensor, ...]], list[int]]:
    """The layers of a flow's inverse as weights [10, h], biases [1, h], weights [h, 20] and biases
    [1, 20] for half the scale and the shift of every coordinate, 0 for one that is kept; and where
    each coordinate is at the end."""
    steps: list[tuple[Tensor, ...]] = []
    place = list(range(LATENTS))
    nets: list[Any] = [*flow.nets]
    for first, _, last in reversed(nets):
        place = place[1:] + place[:1]
        kept, moved = place[: LATENTS - flow.moved], place[LATENTS - flow.moved :]
        before = first.weight.new_zeros(LATENTS, len(first.bias))
        before[kept] = first.weight.T
        after = before.new_zeros(before.shape[1], 2, LATENTS)
        after[:, :, moved] = last.weight.T.unflatten(1, (2, -1))
        outer = before.new_zeros(1, 2, LATENTS)
        outer[:, :, moved] = last.bias.view(1, 2, -1)
        for numbers in (after, outer):
            numbers[:, 0] /= 2
        steps.append((before, first.bias[None].clone(), after.flatten(1), outer.flatten(1)))
        place = moved + kept
    return steps, place


def _quick(decoder: nn.Sequential, place: list[int]) -> tuple[Tensor, Tensor, nn.Sequential]:
    """A decoder as an affine map, [10, c, h, w] and [1, c, h, w], of codes whose coordinate k is
    at `place[k]`, and what comes after it."""
    layers: list[Any] = [*decoder]
    linear, form, turned, *rest = layers
    rows = form(torch.cat([linear.weight.T, linear.bias[None]]))
    rows = conv_transpose2d(
        rows, turned.weight, None, turned.stride, turned.padding, turned.output_padding
    )
    weight, bias = torch.empty_like(rows[:-1]), rows[-1:] + turned.bias[:, None, None]
    weight[place] = rows[:-1]
    if weight.device.type == "cpu":  # faster where it was measured
        rest[-2:-1] = _shuffled(rest[-2])
    return weight, bias, nn.Sequential(*rest)


def _shuffled(turned: Any) -> list[nn.Module]:
    """A transposed convolution of stride 2 as a convolution of 3 x 3 with the four pixels of every
    2 x 2 as channels (Shi et al., CVPR 2016)."""
    kernel, padding = turned.kernel_size[0], turned.padding[0]
    if kernel not in (4, 6) or turned.output_padding != (0, 0):
        return [turned]
    # pixel 2i + a is made of those at i + u - 1, u = 0, 1, 2, each by this tap, if there is one
    taps = torch.arange(2)[:, None] + padding + 2 - 2 * torch.arange(3)
    taps[(taps < 0) | (taps >= kernel)] = kernel
    weight = pad(turned.weight, (0, 1, 0, 1))[:, :, taps[:, :, None, None], taps]
    weight = weight.permute(1, 2, 4, 0, 3, 5).flatten(0, 2)
    made = nn.Conv2d(turned.in_channels, len(weight), 3, padding=1, device="meta")
    made.weight = nn.Parameter(weight.contiguous())
    made.bias = nn.Parameter(turned.bias.repeat_interleave(4))
    return [made, nn.PixelShuffle(2)]
