"""The corner that no classifier can hold: changes so large, beside the contrast that is left, that
images of two classes can be turned into one.

After x' = alpha * x + shift, two images lie alpha * d apart, where d is their L-infinity distance;
within eps of both there is an image, halfway between, if and only if alpha * d <= 2 * eps. If they
are of two classes, a classifier is wrong about that image for one of them. So the images that a
classifier holds are free of such pairs, and any set of images that is free of them can be held:
Bhagoji, Cullina and Mittal (2019), for a finite set. Neither beta nor the classifier plays a part,
and eps and alpha count by the ratio 2 * eps / alpha alone: within alpha * eps, nothing is lost that
was not lost before the transform.

Where the ratio reaches 1, every image can be turned into the same uniform grey, and only the
largest class is left; that is eps >= alpha / 2, half of the contrast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checks import brief, number
from ..splits import Split
from ..stats import rate

if TYPE_CHECKING:
    import pandas as pd

CELLS = 2**24  # distances at a time


@dataclass(frozen=True)
class Separation:
    """The nearest image of another class of each of N images, in L-infinity."""

    index: Tensor  # its position, int64 [N]
    distance: Tensor  # [N]; infinite where no image is of another class


def separation(split: Split, among: Split | None = None) -> Separation:
    """How far each image lies from the nearest one of another class in L-infinity, among the same
    images or `among` others; on the split's device.

    Half of the smallest distance is the radius within which the images can be classified robustly
    (Yang et al. 2020). Exact, and in bounded memory; time grows with N * len(among).
    """
    among = split if among is None else among
    for images in (split, among):
        _check(images)
    if split.shape != among.shape:
        raise ValueError(f"images must be of one size; got {split.shape} and {among.shape}")
    rows, labels = split.x, among.y.to(split.y.device)
    others = among.x.to(rows)
    distance = rows.new_full((len(split),), torch.inf)
    index = torch.zeros_like(split.y)
    step = max(1, CELLS // len(split))
    for start in range(0, len(among), step):
        part, y = others[start : start + step], labels[start : start + step]
        away = torch.cdist(rows.flatten(1), part.flatten(1), p=torch.inf)
        found = away.masked_fill_(split.y[:, None] == y, torch.inf).min(1)
        index = torch.where(found.values < distance, found.indices + start, index)
        distance = torch.minimum(distance, found.values)
    return Separation(index, distance)


def robust_limits(split: Split, ratios: Iterable[float]) -> pd.DataFrame:
    """How many of a split's images any classifier at all can hold robustly, a row for each of the
    `ratios` 2 * eps / alpha. Columns `ratio`; `in_conflict`, a Rate: images that share a reachable
    image with one of another class; `possible` and `bound`, fractions of all images, between which
    the best robust accuracy on them lies.

    `possible` is that of a classifier that was found, by greedy choice. `bound` counts what must be
    lost: pairs, by the linear relaxation of the vertex cover (a matching, exact), or groups of one
    image a class that all reach one image, of which one can be held, whichever takes more.

    The bound is for these images, and every more of them can only lower it. Memory grows as 6 N^2
    bytes: for a few thousand images.
    """
    import pandas as pd

    _check(split)
    wanted = list(ratios) if isinstance(ratios, Iterable) else [ratios]
    for value in wanted:
        number("a ratio 2 * eps / alpha", value, "a number >= 0", lambda v: 0 <= v < math.inf)
    flat, y = split.x.flatten(1).cpu(), split.y.cpu()
    order = y.argsort(stable=True)
    flat, y = flat[order], y[order]
    away = torch.cdist(flat, flat, p=torch.inf)
    away.masked_fill_(y[:, None] == y, torch.inf)
    n, largest = len(y), int(y.bincount().max())
    rows = []
    for value in wanted:
        edges = away <= value * (1 + 1e-6)  # float32 has rounded pixels and differences
        most = min(n - _cover(edges), _groups(edges))
        least = max(largest, _independent(edges))
        rows.append(
            {
                "ratio": float(value),
                "in_conflict": rate(edges.any(1)),
                "possible": least / n,
                "bound": most / n,
            }
        )
    return pd.DataFrame(rows)


def _cover(edges: Tensor) -> int:
    """The least whole number that half of a largest matching of the graph's double cover is not
    above: no fewer vertices touch all of its edges (Nemhauser and Trotter 1975)."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    match = maximum_bipartite_matching(csr_array(edges.numpy()))
    return (int((match >= 0).sum()) + 1) // 2


def _groups(edges: Tensor) -> int:
    """A number of groups of images, all of a group joined by edges, that hold all images. Boxes of
    which any two meet all meet in one point, so that one image of a group can be held at most."""
    joinable, count = torch.zeros_like(edges), 0  # who may still join each group
    for k, row in enumerate(edges):
        found = joinable[:count, k].nonzero()[:, 0]
        if len(found):
            joinable[found[0]] &= row
        else:
            joinable[count], count = row, count + 1
    return count


def _independent(edges: Tensor) -> int:
    """The size of a set without an edge: images of few conflicts are taken first."""
    blocked, count = torch.zeros(len(edges), dtype=torch.bool), 0
    for k in edges.sum(1).argsort(stable=True).tolist():
        if not blocked[k]:
            blocked |= edges[k]
            count += 1
    return count


def _check(split: object) -> None:
    if not isinstance(split, Split):
        raise ValueError(f"a Split is needed; got {brief(split)}")
