"""The search of a training step as a CUDA graph: recorded once, then replayed for every batch.

An attack of 40 steps launches thousands of small kernels, and on a GPU the launching takes several
times longer than the computing. A graph launches all of them at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .attacks import Attack
from .checks import brief
from .models import Network, device_of, lent
from .search import Search
from .splits import Split
from .stats import generator

GRAPHS = 4  # kept: where every batch has another radius none would be of use again


class Recorded:
    """Adversarial images batch after batch, for training: no checks, no result; against a model
    whose weights change in place.

    On a GPU the search is recorded for the first batch of a size and replayed for those after it,
    where it can be: every step runs (`keep` is not "first"), the model is a `Network` (another may
    draw numbers), and neither set nor loss asks the device for a value. Otherwise, and on a CPU,
    each batch is searched as it comes. The numbers are the same.
    """

    def __init__(self, attack: Attack, model: nn.Module, able: bool = True) -> None:
        self.attack, self.model = attack, model
        on_gpu = isinstance(model, Network) and device_of(model).type == "cuda"
        self.able = able and on_gpu and attack.keep != "first"
        self._graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, list[Tensor], Search, Tensor]] = {}

    def __call__(self, split: Split, seeds: Sequence[int]) -> Tensor:
        """Images [N, C, H, W] for a split; seeds: of the start, one for all rows or each for its
        equal part."""
        streams = [generator(seed, 0) for seed in seeds]
        search = Search(self.attack, self.model, split.to(device_of(self.model)), *streams)
        if not self.able:
            return search.images()
        key = (len(split), search.region.eps)
        if key not in self._graphs and len(self._graphs) == GRAPHS:
            return search.images()
        return (self._replay if key in self._graphs else self._record)(key, search)

    def _record(self, key: tuple, search: Search) -> Tensor:
        """The images of a first batch, found the usual way; then the graph."""
        images, inputs, graph = search.images(), _inputs(search), torch.cuda.CUDAGraph()
        try:
            with lent(self.model), torch.cuda.graph(graph):
                search.begin()
                found = search.images()
        except RuntimeError as error:  # something on the way looks at a value
            self.able, why = False, brief(str(error))
            warnings.warn(f"no CUDA graph of this attack ({why}): it runs slower", stacklevel=3)
        else:
            self._graphs[key] = graph, inputs, search, found
        return images

    def _replay(self, key: tuple, search: Search) -> Tensor:
        graph, inputs, recorded, found = self._graphs[key]
        for mine, new in zip(inputs, _inputs(search), strict=True):
            mine.copy_(new)
        graph.replay()
        recorded.check()
        return found.clone()


def _inputs(search: Search) -> list[Tensor]:
    """All tensors that differ between batches."""
    split, region = search.split, search.region
    named = (split.x, split.y, split.z, split.font, search.start, *vars(region).values())
    return [value for value in named if isinstance(value, Tensor)]
