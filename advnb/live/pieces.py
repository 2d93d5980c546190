"""What the embedding panel computes, a piece at a time, so that newer values may cut in: features,
neighbours, projections, and the attack. What is known is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks import Attack
from ..embedding import Features, Method, embed, project
from ..models import logits
from ..neighbours import Nearest, nearest_rows
from ..search import State
from ..splits import Split

PIECE = 32  # images attacked, or looked at, before newer values may cut in
ROWS = 128  # rows whose neighbours are sought


class Space:
    """What is known of all points in one feature space: it grows piece by piece, and is kept."""

    def __init__(self, features: Features, k: int) -> None:
        self._features, self._k = features, k
        self._train: list[Tensor] = []
        self._test: list[Tensor] = []
        self._near: list[Nearest] = []
        self.planes: dict[Method, tuple[Tensor, Tensor]] = {}

    def fill(self, train: Split, test: Split) -> Iterator[None]:
        """Features, and the nearest training points of every test point."""
        for have, split in ((self._train, train), (self._test, test)):
            make = lambda part, of=split: embed(self._features, of[part]).cpu()  # noqa: E731
            yield from grow(have, len(split), PIECE, make)
        if len(self._near) * ROWS < len(test):
            a, b = self.rows
            yield from grow(
                self._near, len(test), ROWS, lambda part: nearest_rows(b[part], a, self._k)
            )

    def project(self, method: Method) -> None:
        self.planes[method] = project(*self.rows, method)

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Features of the training points and of the test points."""
        return torch.cat(self._train), torch.cat(self._test)

    @property
    def near(self) -> Nearest:
        return Nearest.join(self._near)


class Attacked:
    """The attack on the test images, as far as it has come: a piece at a time, in any order."""

    def __init__(self, attack: Attack, model: nn.Module, split: Split) -> None:
        self._attack, self._model, self._split = attack, model, split
        self._runs: dict[int, tuple[Iterator[State], list[State]]] = {}
        self.pieces = -(-len(split) // PIECE)
        self.x = split.x.clone()
        self.guess = split.y.clone()
        self.known = torch.zeros(len(split), dtype=torch.bool)
        self.fooled = self.known.clone()

    def done(self, piece: int) -> bool:
        return bool(self.known[piece * PIECE])

    def search(self, piece: int) -> Iterator[None]:
        """Attack a piece; goes on where another job was given up."""
        if self.done(piece):
            return
        rows = slice(piece * PIECE, (piece + 1) * PIECE)
        part = self._split[rows]
        if piece not in self._runs:
            self._runs[piece] = self._attack.iterate(self._model, part), []
        search, last = self._runs[piece]
        try:
            for state in search:
                last[:] = [state]
                yield None
        except Exception:
            del self._runs[piece]  # a search that has failed begins anew
            raise
        self.x[rows] = last[0].x
        self.guess[rows] = logits(self._model, part.with_x(last[0].x)).argmax(1).to(part.y.device)
        self.fooled[rows] = last[0].success.cpu()
        self.known[rows] = True
        del self._runs[piece]


def grow(have: list[Any], n: int, size: int, make: Callable[[slice], Any]) -> Iterator[None]:
    """Append what is made of the next `size` rows, until all n are covered."""
    while len(have) * size < n:
        start = len(have) * size
        have.append(make(slice(start, start + size)))
        yield None
