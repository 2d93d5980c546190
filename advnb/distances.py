"""Does adversarial training fail far from the training data? Zhang et al. 2019, sections 4.2 and
4.3: attack success against the distance to the training set, and data sets beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from . import zoo
from .checks import brief, whole
from .data import find, load
from .divergence import kl_by_class, knn_kl
from .embedding import (
    PCA,
    Features,
    Method,
    Standardised,
    distance_to_training_set,
    embed,
    pixels,
    project,
)
from .profiles import Profile
from .splits import Split
from .stats import Estimate, bootstrap, difference, logistic, rank_correlation, rate
from .sweeps import sweep

if TYPE_CHECKING:
    import pandas as pd

SETS = ("fashion", "mnist", "cifar10", "fonts", "gtsrb")
FEATURES = ("adversarial", "normal", "pca", "pixels")


@dataclass(frozen=True)
class Printed:
    """A row of Z's table 1: the mean divergence between training and test set by class, in features
    of an adversarially and a normally trained network; the mean normalised distance; the attack's
    success; the accuracy. Fractions, nats."""

    kl_adversarial: float
    kl_normal: float
    distance: float
    success: float
    accuracy: float


PRINTED = {
    "fashion": Printed(0.046, 0.058, 0.4233, 0.064, 0.861),
    "mnist": Printed(0.119, 0.095, 0.3993, 0.097, 0.982),
    "cifar10": Printed(0.571, 0.143, 0.6715, 0.379, 0.870),
}


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
        return (
            f"On {where}, the attack's success {self.verdict}: log odds {self.slope.value:+.2f} "
            f"[{self.slope.low:+.2f}, {self.slope.high:+.2f}] a standard deviation "
            f"({self.fooled:,} of {self.n:,} fooled)."
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


def _check(distance: Tensor, fooled: Tensor) -> None:
    if distance.ndim != 1 or fooled.dtype != torch.bool or fooled.shape != distance.shape:
        raise ValueError(
            f"distance [N] and fooled (bool [N]) must be of the same images; got "
            f"{list(distance.shape)} and {fooled.dtype} {list(fooled.shape)}"
        )
    if len(distance) < 4 or not distance.isfinite().all():
        raise ValueError(f"four finite distances or more are needed; got {brief(distance)}")


@dataclass(frozen=True)
class Cell:
    """One data set's adversarially trained network, attacked on the first `images` test images by
    the attack of its card from `restarts` starts; distances in some features to the first `train`
    training images."""

    data: str
    features: str
    k: int
    train: int
    images: int
    restarts: int


@dataclass(frozen=True)
class PlaneCell:
    """The divergence between the first `train` training and the first `images` test images of a
    data set, class by class, in a projection of their features to the plane (Z eq. 3)."""

    data: str
    features: str
    projection: Method
    train: int
    images: int
    seed: int


def available() -> list[str]:
    """The data sets on this machine for which the zoo has both networks, the paper's first."""
    there = [name for name in SETS if name == "fonts" or find(name)]
    return [n for n in there if all(zoo.made(f"{n}-cnn-{kind}") for kind in FEATURES[:2])]


def cells(data: str, profile: Profile, k: Sequence[int] = (1, 5, 10, 100, 1000)) -> list[Cell]:
    """Every pair of features and k, in a profile's sizes."""
    train, test = load(data).sizes
    train, images = min(profile.neighbours, train), min(profile.far, test)
    pairs = [*product(FEATURES[:2], [n for n in k if n <= train]), *product(FEATURES[2:], (5,))]
    return [Cell(data, name, n, train, images, profile.restarts) for name, n in pairs]


def plane_cells(
    data: str, profile: Profile, projections: Sequence[Method] = ("tsne", "umap")
) -> list[PlaneCell]:
    """Both networks' features in every projection, in a profile's sizes."""
    train, images = (min(profile.plane, most) for most in load(data).sizes)
    pairs = product(FEATURES[:2], projections)
    return [PlaneCell(data, name, method, train, images, 0) for name, method in pairs]


def run(
    wanted: Sequence[Cell | PlaneCell], *, device: str = "cpu", **settings: Any
) -> pd.DataFrame:
    """`sweep` cells of one kind; `settings` are the sweep's."""
    kinds = {type(cell) for cell in wanted}
    if kinds not in ({Cell}, {PlaneCell}):
        raise ValueError(f"cells must be all Cell or all PlaneCell; got {brief(list(wanted))}")
    measure = Relate(device) if Cell in kinds else Diverge(device)
    return sweep(wanted, measure, within=("features", "k"), **settings)


@dataclass(frozen=True)
class Relate:
    """What `sweep` runs for a Cell: accuracy, success over images, the mean normalised distance (Z
    table 1) and what `relation` finds; of each the bounds as well, with `_low` and `_high`."""

    device: str = "cpu"
    version: ClassVar[int] = 1

    def __call__(self, cell: Cell) -> Mapping[str, Any]:
        data = load(cell.data)
        train, test = data.train(cell.train).to(self.device), data.test(cell.images)
        right, fooled = attacked(cell.data, cell.images, cell.restarts, self.device)
        features = features_of(cell.data, cell.features, train)
        away = distance_to_training_set(features, train, test, cell.k)
        alike = distance_to_training_set(Standardised(features, train), train, test, cell.k)
        found = relation(away[right], fooled[right])
        return {
            **_flat("accuracy", rate(right)),
            **_flat("success", rate(fooled[right])),
            **_flat("distance", bootstrap(alike)),
            **_flat("further", found.further),
            **_flat("rank", found.rank),
            **_flat("slope", found.slope),
            "fooled": found.fooled,
            "of": found.n,
        }

    def cost(self, cell: Cell) -> float:
        """The attack is for the first of a data set's cells; all look for neighbours."""
        first = (cell.features, cell.k) == (FEATURES[0], 1)
        return cell.images * (cell.restarts * first + cell.train / 100_000)


@dataclass(frozen=True)
class Diverge:
    """What `sweep` runs for a PlaneCell: the mean over the classes of the kernel estimate, with its
    bootstrap interval and bias, and of the nearest-neighbour estimate."""

    device: str = "cpu"
    version: ClassVar[int] = 1

    def __call__(self, cell: PlaneCell) -> Mapping[str, Any]:
        data = load(cell.data)
        train, test = data.train(cell.train).to(self.device), data.test(cell.images)
        features = features_of(cell.data, cell.features, train)
        a, b = project(
            embed(features, train), embed(features, test), cell.projection, seed=cell.seed
        )
        found = kl_by_class(a, train.y, b, test.y)
        near = [knn_kl(a[train.y.cpu() == c], b[test.y == c]) for c in test.y.unique()]
        return _flat("kl", found) | {"bias": found.bias, "knn": sum(near) / len(near)}

    def cost(self, cell: PlaneCell) -> float:
        return cell.train + cell.images


@lru_cache(maxsize=2)
def attacked(data: str, images: int, restarts: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Which of the first test images the zoo's adversarially trained network of a data set has
    right, and which of these the attack of its card fools from any start: bool [images] each."""
    name = f"{data}-cnn-adversarial"
    attack = replace(zoo.entry(name).attack, restarts=restarts)
    result = attack(zoo.load(name).to(device), load(data).test(images))
    return result.correct, result.success.any(0) & result.correct


def features_of(data: str, name: str, train: Split) -> Features:
    """Features by name: those of the zoo's "adversarial" or "normal" network of a data set, on the
    device of `train`; "pca", 40 components of `train`; or "pixels"."""
    if name not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}; got {brief(name)}")
    if name in FEATURES[2:]:
        return PCA(train) if name == "pca" else pixels
    return zoo.load(f"{data}-cnn-{name}").to(train.y.device).features


def _flat(name: str, found: Any) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
