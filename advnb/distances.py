"""Does adversarial training fail far from the training data? Zhang et al. 2019, section 4.2:
attack success against the distance to the training set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import zoo
from .checks import brief, whole
from .data import load
from .embedding import (
    PCA,
    Features,
    Unit,
    distance_to_training_set,
    pixels,
)
from .profiles import Profile
from .splits import Split
from .stats import Estimate, difference, logistic, rank_correlation, rate

if TYPE_CHECKING:
    import pandas as pd

FEATURES = ("adversarial", "normal", "adversarial-unit", "normal-unit", "pca", "pixels")


@dataclass(frozen=True)
class Relation:
    """How an attack's success goes with distance, over the images that were right before it.

    `further`: mean distance of the fooled less that of the others. `rank`: Spearman's correlation
    of distance and being fooled. `slope`: how much the log odds of being fooled grow with one
    standard deviation of the distance.
    """

    further: Estimate
    rank: Estimate
    slope: Estimate
    fooled: int
    n: int

    @property
    def verdict(self) -> str:
        """What the slope's interval allows to say about Z's claim."""
        if self.slope.low > 0:
            return "grows with the distance"
        if self.slope.high < 0:
            return "FALLS with the distance, against the paper's claim"
        return "cannot be told to grow or fall with the distance"

    def sentence(self, where: str) -> str:
        """The claim as these numbers have it, whichever way it falls."""
        slope, further = self.slope, self.further
        return (
            f"On {where}, the attack's success {self.verdict}: the log odds of being fooled change "
            f"by {slope.value:+.2f} [{slope.low:+.2f}, {slope.high:+.2f}] with each standard "
            f"deviation of the distance; the mean distance of the {self.fooled:,} of {self.n:,} "
            f"that it fools lies {further.value:+.2f} [{further.low:+.2f}, {further.high:+.2f}] "
            "from that of the others."
        )


def relation(distance: Tensor, fooled: Tensor) -> Relation:
    """Distances [N] and whether each image was fooled, bool [N], of images that were right before
    the attack (Z count no others). ValueError where the two do not fit."""
    _check(distance, fooled)
    away, hit = distance.cpu().double().tolist(), fooled.cpu().double().tolist()
    return Relation(
        difference(distance[fooled], distance[~fooled]),
        rank_correlation(away, hit), logistic(away, hit), int(fooled.sum()), len(fooled),
    )  # fmt: skip


def bins(distance: Tensor, fooled: Tensor, *, count: int = 20, least: int = 10) -> pd.DataFrame:
    """Z's figures 1 to 3 as a table: `count` bins of equal width over all distances, with columns
    `low`, `high`, `n` (images) and `success`, a Rate, or None where fewer than `least` images lie
    (Z leave such bars out)."""
    import pandas as pd

    _check(distance, fooled)
    whole("count", count, 1)
    distance, fooled = distance.cpu().double(), fooled.cpu()
    edges = torch.linspace(distance.min().item(), distance.max().item(), count + 1).double()
    at = torch.bucketize(distance, edges[1:-1], right=True)
    rows = []
    for number in range(count):
        inside = fooled[at == number]
        rows.append(
            {
                "low": edges[number].item(),
                "high": edges[number + 1].item(),
                "n": len(inside),
                "success": rate(inside) if len(inside) >= least else None,
            }
        )
    return pd.DataFrame(rows)


def by_bins(data: str, profile: Profile, k: int = 5) -> dict[str, pd.DataFrame]:
    """`bins` of a data set's right images in a profile's sizes, attacked from one start, with
    distances in the features of either network."""
    loaded = load(data)
    test = loaded.test(min(profile.far, loaded.sizes[1]))
    right, fooled = attacked(data, len(test), 1)
    train = loaded.train(min(profile.neighbours, loaded.sizes[0]))
    return {
        f"features of the {name} network": bins(
            distance_to_training_set(features_of(data, name, train), train, test, k)[right],
            fooled[right],
        )
        for name in FEATURES[:2]
    }


def _check(distance: Tensor, fooled: Tensor) -> None:
    if distance.ndim != 1 or fooled.dtype != torch.bool or fooled.shape != distance.shape:
        raise ValueError(
            f"distance [N] and fooled (bool [N]) must be of the same images; got "
            f"{list(distance.shape)} and {fooled.dtype} {list(fooled.shape)}"
        )
    if len(distance) < 4 or not distance.isfinite().all():
        raise ValueError(f"four finite distances or more are needed; got {brief(distance)}")


def attacked(data: str, images: int, restarts: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Which of the first test images the zoo's adversarially trained network of a data set has
    right, and which of these the attack of its card fools from any start: bool [images] each.
    Attacked once; every call has copies of its own."""
    right, fooled = _attacked(data, images, restarts, device)
    return right.clone(), fooled.clone()


@lru_cache(maxsize=8)
def _attacked(data: str, images: int, restarts: int, device: str) -> tuple[Tensor, Tensor]:
    name = f"{data}-cnn-adversarial"
    attack = replace(zoo.entry(name).attack, restarts=restarts)
    result = attack(zoo.load(name).to(device), load(data).test(images))
    return result.correct, result.success.any(0) & result.correct


def features_of(data: str, name: str, train: Split) -> Features:
    """Features by name: those of the zoo's "adversarial" or "normal" network of a data set, on the
    device of `train`, or with "-unit" their directions alone; "pca", 40 components of `train`; or
    "pixels"."""
    if name not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}; got {brief(name)}")
    if name in ("pca", "pixels"):
        return PCA(train) if name == "pca" else pixels
    network = zoo.load(f"{data}-cnn-{name.removesuffix('-unit')}").to(train.y.device)
    return Unit(network.features) if name.endswith("-unit") else network.features
