"""Several networks of one form as one network: what a GPU is too large for one by one.

A stack of S networks is a network of S times the channels, each layer in S groups: rows
[b, S * channels, H, W], the channels of one network after those of another. Every kernel is
launched once for all of them, and their numbers are those of the networks alone up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .checks import brief
from .layers import Sum
from .networks import Network

ALIKE = (
    nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten,
    nn.Identity, nn.PixelShuffle,
)  # fmt: skip


class Stack(Network):
    """`networks` in one: images [S * b, C, H, W], the first b for the first network and so on, to
    logits [S * b, classes].

    `fit` trains it as it trains one network, with a seed for each; the networks' own weights come
    back by `unstack`. ValueError for networks of different forms, and for layers that look at all
    channels at once (`MadryCIFAR` standardises the image).
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        nn.Module.__init__(self)
        listed = isinstance(networks, Sequence) and len(networks) > 0
        if not listed or not all(isinstance(network, Network) for network in networks):
            raise ValueError(f"a Stack is made of networks of advnb.models; got {brief(networks)}")
        forms = {str(network) for network in networks}
        if len(forms) > 1:
            raise ValueError("the networks of a Stack must be of one form: same class, same shape")
        self.networks = len(networks)
        self.shape, self.classes = networks[0].shape, networks[0].classes
        self._alone = tuple(networks)  # not modules of this one
        body = stacked([network.body for network in networks])
        head = stacked([network.head for network in networks])
        self.body = nn.Sequential(Together(self.networks), body)
        self.head = nn.Sequential(head, Apart(self.networks))
        self.to(next(networks[0].parameters()))
        self.train(networks[0].training)

    def unstack(self) -> list[Network]:
        """The networks that the stack was made of, with its weights as of now, in eval mode."""
        theirs = [network.state_dict().values() for network in self._alone]
        for mine, *parts in zip(self.state_dict().values(), *theirs, strict=True):
            chunks = mine.chunk(self.networks) if mine.ndim else [mine] * self.networks
            for part, chunk in zip(parts, chunks, strict=True):
                part.copy_(chunk)
        return [network.eval() for network in self._alone]


def stacked(modules: Sequence[nn.Module]) -> nn.Module:
    """One module that does to each group of channels what its own module would."""
    first, count = modules[0], len(modules)
    if isinstance(first, nn.Sequential):
        return nn.Sequential(*(stacked(layers) for layers in zip(*modules)))
    if isinstance(first, Sum):
        branches, shortcuts = zip(*((m.branch, m.shortcut) for m in modules if isinstance(m, Sum)))
        return Sum(stacked(branches), stacked(shortcuts))
    if type(first) in ALIKE:
        return first
    if isinstance(first, nn.Unflatten):
        channels, *size = first.unflattened_size
        return nn.Unflatten(first.dim, (count * channels, *size))
    made: nn.Module = copy.deepcopy(first)
    if (
        isinstance(made, nn.Conv2d | nn.ConvTranspose2d)
        and made.groups == 1
        and made.padding_mode == "zeros"
    ):
        made.in_channels, made.out_channels = made.in_channels * count, made.out_channels * count
        made.groups = count
    elif isinstance(made, nn.BatchNorm1d | nn.BatchNorm2d):
        made.num_features *= count
    elif isinstance(first, nn.Linear):
        made = GroupedLinear(first.in_features, first.out_features, count, first.bias is not None)
    else:
        raise ValueError(f"networks with a {type(first).__name__} cannot be stacked: train each")
    for holder in ("_parameters", "_buffers"):
        for name, mine in getattr(made, holder).items():
            if mine is not None:
                rows = [getattr(module, name).detach() for module in modules]
                joined = torch.cat(rows) if rows[0].ndim else rows[0].clone()
                if holder == "_parameters":
                    trained = {getattr(module, name).requires_grad for module in modules}
                    if len(trained) > 1:
                        raise ValueError("a layer is frozen in some of the networks: train each")
                    joined = nn.Parameter(joined, requires_grad=trained.pop())
                setattr(made, name, joined)
    return made


class GroupedLinear(nn.Module):
    """[b, groups * before] to [b, groups * after]: a linear layer for each group."""

    def __init__(self, before: int, after: int, groups: int, bias: bool) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(groups * after, before))
        self.bias = nn.Parameter(torch.empty(groups * after)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.unflatten(1, (self.groups, -1)).transpose(0, 1)
        weight = self.weight.unflatten(0, (self.groups, -1)).mT
        made = (rows @ weight).transpose(0, 1).flatten(1)
        return made if self.bias is None else made + self.bias


class Together(nn.Module):
    """Images [S * b, C, H, W] of S networks, one's after another's, to [b, S * C, H, W]."""

    def __init__(self, networks: int) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.networks, -1)).transpose(0, 1).flatten(1, 2)


class Apart(nn.Module):
    """[b, S * classes] to logits [S * b, classes], one network's after another's."""

    def __init__(self, networks: int) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.networks, -1)).transpose(0, 1).flatten(0, 1)
