"""The nearest rows among many: exact, in bounded memory, on any device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import whole, widest

BLOCK = 65_536  # rows among which neighbours are sought at a time
CELLS = 2**23  # numbers in a tile of distances, about what a cache holds
SPARE = 8  # candidates beyond the k nearest: rounding may change the places of near ones


@dataclass(frozen=True)
class Nearest:
    """The k nearest rows of each of N rows, nearest first."""

    index: Tensor  # their positions, int64 [N, k]
    distance: Tensor  # Euclidean, [N, k]

    @staticmethod
    def join(parts: Sequence[Nearest], dim: int = 0) -> Nearest:
        """One after another: more rows (dim=0), or more candidates of the same (1)."""
        index = torch.cat([part.index for part in parts], dim)
        return Nearest(index, torch.cat([part.distance for part in parts], dim))

    def first(self, k: int) -> Nearest:
        """The k nearest, sorted by distance, equal ones by position."""
        order = self.index.argsort(1)
        index, distance = self.index.gather(1, order), self.distance.gather(1, order)
        order = distance.argsort(dim=1, stable=True)[:, :k]
        return Nearest(index.gather(1, order), distance.gather(1, order))


def nearest_rows(rows: Tensor, among: Tensor | Iterable[Tensor], k: int) -> Nearest:
    """The k nearest of the rows `among` [M, d], or of its blocks one after another, for each of
    `rows` [N, d].

    Candidates come from |a - b|^2 = |a|^2 - 2 ab + |b|^2 in the rows' own precision, a matrix
    product; the distances of the candidates from their differences in float64. Where the
    product's rounding could hide a nearer row, all distances of that row are found so. Equal
    distances are in the order of their positions.

    Raises ValueError where there are fewer than k rows.
    """
    k, found, start = whole("k", k, 1), None, 0
    blocks = among.split(BLOCK) if isinstance(among, Tensor) else among
    for block in blocks:
        new = _in_block(rows, block.to(rows), min(k, len(block)))
        new = Nearest(new.index + start, new.distance)
        found = new if found is None else Nearest.join([found, new], 1).first(k)
        start += len(block)
    if found is None or start < k:
        raise ValueError(f"k must be at most the {start} rows there are; got {k}")
    return found


def _in_block(rows: Tensor, block: Tensor, k: int) -> Nearest:
    # around the origin the product cancels least: distances do not change by moving all rows
    middle, d = block.mean(0), block.shape[1]
    against = block.new_empty(len(block), d + 1)
    moved, lengths = against[:, :d], against[:, d]
    torch.sub(block, middle, out=moved)
    # |b|^2 as one more column: to add it afterwards would take as long as the product
    lengths.copy_(torch.linalg.vector_norm(moved, dim=1).square_())
    moved *= -2
    widest = lengths.max().sqrt()
    # each of the d products and sums may round; errors of either sign add up as a random walk
    rounding = 4 * torch.finfo(rows.dtype).eps * max(16.0, d**0.5)
    many, parts = max(1, CELLS // len(block)), []
    tile = rows.new_empty(min(many, len(rows)), len(block))
    for part in rows.split(many):
        centred = part - middle
        one = centred.new_ones(len(part), 1)
        near = torch.mm(torch.cat([centred, one], 1), against.T, out=tile[: len(part)])
        among = _smallest(near, min(k + SPARE, len(block)))
        found = Nearest(among, _distances(part, block, among)).first(k)
        if among.shape[1] < len(block):
            own = torch.einsum("nd,nd->n", centred, centred)
            others = near.gather(1, among).amax(1) + own  # squared; no other row is closer
            error = rounding * (own.sqrt() + widest) ** 2
            doubt = (found.distance[:, -1] ** 2 > others - error).nonzero()[:, 0]
            every = torch.arange(len(block), device=rows.device)[None]
            pieces = every.split(1 + CELLS // (8 * d), 1)
            for row in doubt.tolist():
                one = part[row : row + 1]
                away = [Nearest(some, _distances(one, block, some)) for some in pieces]
                again = Nearest.join(away, 1).first(k)
                found.index[row], found.distance[row] = again.index[0], again.distance[0]
        parts.append(found)
    return Nearest.join(parts)


def _distances(rows: Tensor, block: Tensor, index: Tensor) -> Tensor:
    """From each row [N, d] to the block's rows at its positions [N, c]."""
    found, n = [], max(1, CELLS // (8 * index.shape[1] * rows.shape[1]))
    for part, at in zip(rows.split(n), index.split(n)):
        away = block[at].to(widest(block.device)) - part[:, None]
        found.append(torch.linalg.vector_norm(away, dim=2))
    return torch.cat(found)


def _smallest(values: Tensor, count: int) -> Tensor:
    """Positions [N, count] of the smallest values of each row [N, M], in any order.

    The count smallest lie in the count groups whose own smallest are the smallest: one pass over
    all values, and a choice among few.
    """
    n, m = values.shape
    size = int((m / count) ** 0.5)
    if size < 4:
        return values.topk(count, largest=False, sorted=False).indices
    groups = m // size
    least = values[:, : groups * size].view(n, groups, size).amin(2)
    chosen = least.topk(count, largest=False, sorted=False).indices[:, :, None]
    members = chosen * size + torch.arange(size, device=values.device)
    rest = torch.arange(groups * size, m, device=values.device).expand(n, -1)
    columns = torch.cat([members.flatten(1), rest], 1)
    best = values.gather(1, columns).topk(count, largest=False, sorted=False).indices
    return columns.gather(1, best)
