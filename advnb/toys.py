"""Tsipras et al.'s toy data (ICLR 2019, section 2.1), on which robustness costs accuracy, and what
S answer (section 3.5): its attacks change the true label."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import number, whole
from .stats import generator


@dataclass(frozen=True)
class Tsipras:
    """y is -1 or 1, both as likely. The first feature is y with probability `p`, else -y; `d`
    others are normal with mean eta * y and deviation 1: each tells little, all of them together
    nearly everything.

    The model that averages the others is right with probability `accuracy(0)`; an adversary who may
    move every feature by `eps` = 2 eta turns them into the other class's.
    """

    p: float = 0.95
    eta: float = 0.3
    d: int = 100

    def __post_init__(self) -> None:
        number("p", self.p, "a number in [0.5, 1)", lambda v: 0.5 <= v < 1)
        number("eta", self.eta, "a positive number", lambda v: 0 < v < math.inf)
        whole("d", self.d, 1)

    def sample(self, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Features [n, 1 + d] and labels -1 or 1 [n]."""
        stream = generator(seed)
        y = torch.rand(n, generator=stream).sub(0.5).sign()
        first = torch.where(torch.rand(n, generator=stream) < self.p, y, -y)
        others = torch.randn(n, self.d, generator=stream) + self.eta * y[:, None]
        return torch.cat([first[:, None], others], 1), y

    def attacked(self, x: Tensor, y: Tensor, eps: float) -> Tensor:
        """The strongest change of at most eps a feature, against both features' kinds: all move
        against y."""
        return x - eps * y[:, None]

    def posterior(self, x: Tensor) -> Tensor:
        """The true probability that a point's label is 1, [N], by Bayes' rule; of the first
        feature the sign counts, since nature makes only 1 and -1."""
        first = x[:, 0].sign() * math.log(self.p / (1 - self.p))
        return torch.sigmoid(first + 2 * self.eta * x[:, 1:].sum(1))

    def accuracy(self, eps: float = 0.0) -> float:
        """Of the average of the weak features, when all move by eps against it."""
        return 0.5 * (1 + math.erf((self.eta - eps) * math.sqrt(self.d / 2)))
