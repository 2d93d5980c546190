"""Data sets beside each other: Zhang et al. 2019, section 4.3 and table 1, as cells of a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

from . import checks, zoo
from .checks import brief
from .data import TITLES, find, load
from .distances import FEATURES, Relation, attacked, features_of, relation
from .divergence import kl_by_class, knn_kl
from .embedding import Method, Standardised, distance_to_training_set, embed, project
from .profiles import Profile
from .stats import Estimate, apart, bootstrap, rate
from .sweeps import sweep

if TYPE_CHECKING:
    import pandas as pd

SETS = ("fashion", "mnist", "cifar10", "fonts", "gtsrb")


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
    if data not in SETS:
        raise ValueError(f"the zoo has two networks of {', '.join(SETS)} alone; got {brief(data)}")
    train, images = min(profile.neighbours, train), min(profile.far, test)
    pairs = [*product(FEATURES[:2], [n for n in k if n <= train]), *product(FEATURES[2:], (5,))]
    return [Cell(data, name, n, train, images, profile.restarts) for name, n in pairs]


def plane_cells(
    data: str, profile: Profile, projections: Sequence[Method] = ("tsne",)
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
    checks.device(device)  # told once, not for every cell
    measure = Relate(device) if Cell in kinds else Diverge(device)
    return sweep(wanted, measure, within=("features", "k"), **settings)


def of_networks(fields: Mapping[str, Any]) -> list[Any]:
    """What decides a result beside the cell's fields: the two networks' weights."""
    cards = (zoo.card(f"{fields['data']}-cnn-{kind}") for kind in FEATURES[:2])
    return [1, *(card["checksum"] for card in cards)]


@dataclass(frozen=True)
class Relate:
    """What `sweep` runs for a Cell: accuracy, success over images, the mean normalised distance (Z
    table 1) and what `relation` finds; of each the bounds as well, with `_low` and `_high`."""

    device: str = "cpu"
    version = staticmethod(of_networks)

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


def sentences(relations: pd.DataFrame) -> list[str]:
    """`Relation.sentence` for every row that `run` gave for a Cell."""
    told = []
    for row in relations.to_dict("records"):
        further, rank, slope = (
            Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], row["of"])
            for name in ("further", "rank", "slope")
        )
        found = Relation(further, rank, slope, fooled=row["fooled"], n=row["of"])
        where = TITLES.get(row["data"], row["data"])
        told.append(found.sentence(f"{where}, {row['features']} features, k = {row['k']}"))
    return told


@dataclass(frozen=True)
class Diverge:
    """What `sweep` runs for a PlaneCell: the mean over the classes of the kernel estimate, with its
    bootstrap interval and bias, and of the nearest-neighbour estimate."""

    device: str = "cpu"
    version = staticmethod(of_networks)

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


def table1(
    relations: pd.DataFrame, planes: pd.DataFrame, projection: Method = "tsne"
) -> pd.DataFrame:
    """Z's table 1 from what `run` gave for both kinds of cells (k = 5): a row a data set and
    measure, columns `value`, `low`, `high` and `printed`, NaN where the paper prints nothing."""
    import pandas as pd

    near = relations[(relations.k == 5) & (relations.features == "adversarial")].set_index("data")
    flat = planes[planes.projection == projection].set_index(["data", "features"])
    rows = []
    for name in near.index:
        parts = {
            "KL, adversarial features": (flat.loc[(name, "adversarial")], "kl", "kl_adversarial"),
            "KL, normal features": (flat.loc[(name, "normal")], "kl", "kl_normal"),
            "normalised distance": (near.loc[name], "distance", "distance"),
            "success": (near.loc[name], "success", "success"),
            "accuracy": (near.loc[name], "accuracy", "accuracy"),
        }
        for what, (row, column, printed) in parts.items():
            paper = getattr(PRINTED[name], printed) if name in PRINTED else math.nan
            bounds = [row[f"{column}{end}"] for end in ("", "_low", "_high")]
            rows.append([name, what, *bounds, paper])
    return pd.DataFrame(rows, columns=["data", "measure", "value", "low", "high", "printed"])


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Every two of the paper's data sets in `table1`, measure by measure: `value` of the first less
    the second's with its 95 % interval, the `printed` difference, and whether the order is the
    printed one: "as printed", "reversed", or "open" where the interval holds 0."""
    import pandas as pd

    rows = []
    for measure, part in table[table.printed.notna()].groupby("measure", sort=False):
        for a, b in combinations(part.to_dict("records"), 2):
            found = apart(*(Estimate(r["value"], r["low"], r["high"], 0) for r in (a, b)))
            printed = a["printed"] - b["printed"]
            told = "as printed" if found.value * printed > 0 else "reversed"
            order = "open" if found.low <= 0 <= found.high else told
            bounds = (found.value, found.low, found.high)
            rows.append([measure, f"{a['data']} - {b['data']}", *bounds, printed, order])
    names = ["measure", "difference", "value", "low", "high", "printed", "order"]
    return pd.DataFrame(rows, columns=names)


def _flat(name: str, found: Any) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
