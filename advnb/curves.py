"""S's generalization curves (sections 3.4 to 3.6) as a grid: strategies and attacks by name, and
what one cell of it measures."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from . import checks, fonts
from .attacks import Attack
from .checks import brief, existing, whole
from .data import cache_folder, find, load
from .downloads import KNOWN
from .files import load_arrays
from .fonts import unseen_faces
from .learned import SHIPPED
from .minimal import CarliniWagner
from .models import NETWORKS, accuracy
from .profiles import Profile
from .splits import Split
from .stats import Rate
from .strategies import ATTACKS, BASE, LEARNED, LIMIT, RECIPES, SOURCE, searched
from .sweeps import key, pool, shipped, sweep
from .trained import TRAINED, trained

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cell:
    """A model and what is measured of it: trained on the first `n` images of `data` by the
    strategy `recipe`, attacked on the first `images` test images from `restarts` starts; with
    attack="error" the share of them that it gets wrong."""

    data: str
    model: str
    recipe: str
    n: int
    seed: int
    attack: str
    images: int
    restarts: int = 1
    epochs: int = 20

    def __post_init__(self) -> None:
        for name, there in (("model", [*NETWORKS]), ("recipe", [*RECIPES]), ("attack", ATTACKS)):
            if getattr(self, name) not in there:
                wrong = brief(getattr(self, name))
                raise ValueError(f"{name} must be one of {', '.join(there)}; got {wrong}")
        for name in ("n", "images", "restarts", "epochs"):
            whole(name, getattr(self, name), 1)


# S's sizes: test images whose error counts (160,000 in its curves), images and starts of an attack
SIZES = {
    "error": (40_000, 1),
    "regular": (1000, 5),
    "on-true": (2500, 5),
    "on-learned": (2500, 5),
    "on-shared": (2500, 5),
    "transformation": (1000, 5),
}


def grid(
    data: str,
    recipes: Sequence[str],
    n: Sequence[int],
    seeds: Sequence[int],
    attacks: Sequence[str],
    model: str = "CNN",
    *,
    profile: Profile | None = None,
) -> list[Cell]:
    """Every combination as a cell: 20 epochs, and S's test images and starts, or a smaller
    profile's; never more images than the test set has. ValueError for more training images than
    there are."""
    cells, (have, most) = [], load(data).sizes
    n, seeds = [whole("n", size, 1) for size in n], [whole("seed", seed) for seed in seeds]
    for recipe, size, seed, attack in product(recipes, n, seeds, attacks):
        if size > have:
            raise ValueError(f"n must be at most {have:,}, all training images; got {size:,}")
        base, _, form = attack.rpartition("-") if attack not in BASE else (attack, "", "")
        images, starts = SIZES.get(base, (1, 1))  # an unknown name is told by its Cell
        if form in ("l2", "cw"):
            starts = 1
        if profile is not None and profile.name != "paper":
            images = min(images, 10_000 if base == "error" else profile.attacked)
            starts = min(starts, profile.restarts)
        cells.append(Cell(data, model, recipe, size, seed, attack, min(images, most), starts))
    return cells


def figure(
    data: str,
    profile: Profile,
    *,
    recipes: Sequence[str] | None = None,
    attacks: Sequence[str] | None = None,
    n: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    model: str = "CNN",
) -> list[Cell]:
    """The cells of S's Fig. 5 and 6 for a data set in a profile's sizes, or a part of them: the
    strategies and attacks that can be had for it, at the profile's sizes, up to all training images
    there are, and seeds."""
    loaded = load(data)
    have = loaded.sizes[0]
    sizes = n or [size for size in profile.curve if size <= have] or [have]
    known = loaded.manifold is not None
    able = {"on-true": known, "on-learned": loaded.name in SHIPPED}
    recipes = recipes or [recipe for recipe in FIGURE if able.get(recipe, True)]
    attacks = attacks or [attack for attack in MEASURED if able.get(attack, True)]
    return grid(
        data, recipes, sizes, seeds or range(profile.seeds), attacks, model,
        profile=profile,
    )  # fmt: skip


# the measures of Fig. 5 and 6, and their strategies in the order of the legend
MEASURED = ("error", "regular", "on-true", "on-learned")
FIGURE = ("normal", "augmented", "transformation", "on-true", "on-learned", "regular")


def run(
    cells: Sequence[Cell],
    *,
    cache: str | os.PathLike | None = None,
    device: str = "cpu",
    workers: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """Sweep the cells on this machine: `sweep`'s table, a row a cell. The trained models lie in the
    folder `cache` too (default: the user's own). `device` is "cpu", "cuda" or "mps"; on an NVIDIA
    GPU the models that differ in their seeds alone are trained together. ValueError for no such
    device, OSError where the cache cannot be written."""
    checks.device(device)  # told once, not for every cell
    workers = whole("workers", workers, 1)
    folder = Path(cache) if cache is not None else cache_folder() / "sweep"
    try:  # told before a model is trained
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{error.strerror}: {folder} cannot be written, name another") from None
    stacked = device.startswith("cuda")
    seeds = tuple(sorted({cell.seed for cell in cells})) if stacked else ()
    measure = Measure(str(folder / "models"), device, seeds)
    within = ["attack", "images", "restarts", *(["seed"] if stacked else [])]
    with pool(workers) if workers > 1 else nullcontext() as executor:
        return sweep(
            cells, measure, cache=folder, executor=executor, within=within, progress=progress
        )


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over the seeds, its 95 % interval (Student's t) and their number, for every strategy,
    attack and n. The interval is NaN for a single seed. A cell that is there twice counts once."""
    import pandas as pd
    from scipy.stats import t

    same = [name for name in Cell.__dataclass_fields__ if name != "seed"]
    # a table that ships has no `error`, and of one that was read it is NaN where it was empty
    done = table[table.error.fillna("") == ""] if "error" in table else table
    if done.empty:
        return pd.DataFrame(columns=[*same, "value", "low", "high", "seeds"])
    rows = done.drop_duplicates([*same, "seed"]).groupby(same, sort=False).value
    mean, count, spread = rows.mean(), rows.count(), rows.std()
    half = spread / count**0.5 * t.ppf(0.975, (count - 1).where(count > 1))
    low, high = (mean - half).clip(lower=0), (mean + half).clip(upper=1)
    found = {"value": mean, "low": low, "high": high, "seeds": count}
    return pd.DataFrame(found).reset_index()


def printed(figure: str = "curves") -> pd.DataFrame:
    """The numbers of S's figures: "curves" (Fig. 5 and 6), "combined" and "long" (Fig. 7),
    "celeba" (Fig. 8), and the supplement's "models", "l2", "transfer", "variants" and
    "class-agnostic". Columns data, model, recipe, n, error, attack, value."""
    table = shipped("stutz2019")
    if figure not in set(table.figure):
        known = ", ".join(dict.fromkeys(table.figure))
        raise ValueError(f"figure must be one of {known}; got {brief(figure)}")
    return table[table.figure == figure].drop(columns="figure").reset_index(drop=True)


VERSION = 1
ATLAS = "3e68ce710d4c1cd07df9e3480fff9369d1d28f7816ac9f342e88c81bbba53721"  # SHA-256 of FONTS'


def _own(name: str) -> Path | None:
    """The file of a set that its name does not tell: an .npz, another atlas than the one that
    ships, a known set with another number of images."""
    if name.endswith(".npz"):
        return Path(name)
    if name.startswith("fonts"):
        return None if _sha256(*_stamp(fonts.ATLAS)) == ATLAS else fonts.ATLAS
    path = find(name) if name in KNOWN else None
    return path if path and _sizes(*_stamp(path)) != KNOWN[name].sizes else None


def _stamp(path: Path) -> tuple[Path, int, int]:
    """A file as of now: it is asked for with every cell, and read when it has changed."""
    found = existing(path).absolute()
    return found, found.stat().st_mtime_ns, found.stat().st_size


@lru_cache(maxsize=100)
def _sha256(path: Path, *stamp: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=100)
def _sizes(path: Path, *stamp: int) -> tuple[int, int]:
    labels = load_arrays(path, ("train_y", "test_y"))
    return len(labels["train_y"]), len(labels["test_y"])


@dataclass(frozen=True)
class Measure:
    """What `sweep` runs for a cell: train its model, or take it from `folder` where an earlier
    cell has left it, and measure. A rate: the error, or S's success rate over pairs.

    `together`: seeds of models that are trained with a cell's own as one `Stack`, and left in
    `folder`. On a GPU five networks take half as long as one after another; on a CPU as long.
    """

    folder: str | None = None
    device: str = "cpu"
    together: tuple[int, ...] = ()

    @staticmethod
    def version(fields: Mapping[str, Any]) -> Any:
        """What decides a result beside the cell's fields. To change where a name above comes to
        mean another thing."""
        path = _own(str(fields["data"]))
        return VERSION if path is None else [VERSION, _sha256(*_stamp(path))]

    def __call__(self, cell: Cell) -> Rate:
        base = cell.attack.removesuffix("-unseen")
        name = base.removesuffix("-transfer")
        if name != "error":  # what cannot be searched is told before a model is trained
            found = searched(load(cell.data), name)
        model = self.model(cell)
        test = _test(cell.data, str(self.version(vars(cell))), cell.images, self.device)
        if base != cell.attack:
            test = unseen_faces(test)
        if base == "error":
            right = accuracy(model, test)
            return Rate(1 - right.value, 1 - right.high, 1 - right.low, right.n)
        attack: Attack | CarliniWagner = Attack(found, restarts=cell.restarts, seed=cell.seed)
        if name.endswith("-cw"):
            attack = CarliniWagner.printed(found, cell.seed)
        counts: dict[str, Any] = {}  # S's, on a learned manifold
        if name.startswith(LEARNED):
            counts = {"correct": "reconstruction", "code_limit": LIMIT}
        if name != base:
            n, seed = SOURCE
            other = self.model(replace(cell, recipe="normal", n=n, seed=seed))
            return attack(other, test).transferred(model, **counts)
        return attack(model, test).success_rate(**counts)

    def cost(self, cell: Cell) -> float:
        """About how long a cell takes, in forward and backward passes of the CNN: a model is
        trained for the first of its attacks, "error"."""
        if cell.attack != "error":
            each = 60 if cell.attack.startswith(LEARNED) else 20
            return cell.images * cell.restarts * each
        return cell.n * cell.epochs * (1 + _steps(cell.data, cell.recipe)) + cell.images / 3

    def path(self, k: str) -> Path | None:
        """Where the model whose key is `k` is left."""
        return Path(self.folder) / f"{k}.safetensors" if self.folder else None

    def model(self, cell: Cell) -> nn.Module:
        """The cell's trained model, in eval mode on `device`."""
        about = {name: getattr(cell, name) for name in TRAINED}
        return trained(self, json.dumps(about), key(about, self))


@lru_cache(maxsize=200)
def _steps(data: str, recipe: str) -> float:
    """Steps of attacks for an image that a strategy trains on."""
    parts = RECIPES[recipe](load(data)).parts
    return sum(part.share * (part.attack.steps + 1) for part in parts if part.attack)


@lru_cache(maxsize=3)
def _test(name: str, version: str, images: int, device: str) -> Split:
    return load(name).test(images).to(device)
