"""S's generalization curves (sections 3.4 to 3.6) as a grid: strategies and attacks by name, and
what one cell of it measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import ClassVar

from torch import nn

from .attacks import Attack
from .checks import brief
from .data import Dataset, load
from .files import DamagedFileError, load_tensors, save_tensors
from .learned import LearnedManifold
from .models import NETWORKS, accuracy
from .perturbations import Affine, OnManifold, PerturbationSet, Pixels, manifold_of
from .recipes import Recipe, adversarial, augmented, combined, noisy, normal
from .splits import Split
from .stats import Rate
from .sweeps import key
from .training import fit

EPS = ETA = 0.3  # S's radii: of pixels, and of codes and transforms
LIMIT = 2.0  # S trains and counts on a learned manifold where all numbers of a code are this small


def true(data: Dataset) -> PerturbationSet:
    """What S's attacks on the known manifold search."""
    return OnManifold(manifold_of(data.train(1)), ETA)


@lru_cache(maxsize=4)
def _manifold(name: str) -> LearnedManifold:
    return LearnedManifold.load(name)


def learned(data: Dataset) -> PerturbationSet:
    """What S's attacks on a learned manifold search: that which ships."""
    return OnManifold(_manifold(data.name), ETA)


def _regular(data: Dataset) -> Recipe:
    return adversarial(Attack(Pixels(EPS)))


def _on_true(data: Dataset) -> Recipe:
    return adversarial(Attack(true(data)))


def _on_learned(data: Dataset) -> Recipe:
    return adversarial(Attack(learned(data)), within=LIMIT)


# S's strategies and what is to be held against them, each by a name
RECIPES: dict[str, Callable[[Dataset], Recipe]] = {
    "normal": lambda data: normal(),
    "augmented": lambda data: augmented(form="printed"),
    "augmented, plain": lambda data: augmented(),
    "regular": _regular,
    "regular, full": lambda data: adversarial(Attack(Pixels(EPS)), 1.0),
    "regular, weak": lambda data: adversarial(Attack(Pixels(EPS)), keep="first"),
    "on-true": _on_true,
    "on-learned": _on_learned,
    "transformation": lambda data: adversarial(Attack(Affine(ETA))),
    "regular and on-true": lambda data: combined([_regular(data), _on_true(data)]),
    "regular and on-learned": lambda data: combined([_regular(data), _on_learned(data)]),
    "random pixels": lambda data: noisy(Pixels(EPS)),
    "random code": lambda data: noisy(true(data)),
}

# what is measured: the error on test images, or the success of an attack on them
SETS: dict[str, Callable[[Dataset], PerturbationSet]] = {
    "regular": lambda data: Pixels(EPS),
    "on-true": true,
    "on-learned": learned,
    "transformation": lambda data: Affine(ETA),
}
ATTACKS = ("error", *SETS)


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
        known = {"model": NETWORKS, "recipe": RECIPES, "attack": ATTACKS}
        for name, there in known.items():
            if getattr(self, name) not in there:
                wrong = brief(getattr(self, name))
                raise ValueError(f"{name} must be one of {', '.join(there)}; got {wrong}")


# S's sizes: test images whose error counts (160,000 in its curves), images and starts of an attack
SIZES = {
    "error": (40_000, 1),
    "regular": (1000, 5),
    "on-true": (2500, 5),
    "on-learned": (2500, 5),
    "transformation": (1000, 5),
}


def grid(
    data: str,
    recipes: Iterable[str],
    n: Iterable[int],
    seeds: Iterable[int],
    attacks: Iterable[str] = ("error", "regular", "on-true"),
    model: str = "CNN",
    *,
    images: int | None = None,
    restarts: int | None = None,
    epochs: int = 20,
) -> list[Cell]:
    """Every combination as a cell, with S's sizes or these, or all images of a smaller set."""
    cells = []
    most = load(data).sizes[1]
    for recipe, size, seed, attack in product(recipes, n, seeds, list(attacks)):
        paper = SIZES.get(attack, (1, 1))
        looked = min(most, images or paper[0])
        starts = 1 if attack == "error" else restarts or paper[1]
        cells.append(Cell(data, model, recipe, size, seed, attack, looked, starts, epochs))
    return cells


@dataclass(frozen=True)
class Measure:
    """What `sweep` runs for a cell: train its model, or take it from `folder` where an earlier
    cell has left it, and measure. A rate: the error, or S's success rate over pairs."""

    folder: str | None = None
    device: str = "cpu"
    version: ClassVar[int] = 1  # to change where a name above comes to mean another thing

    def __call__(self, cell: Cell) -> Rate:
        model = self.model(cell)
        test = _test(cell.data, cell.images, self.device)
        if cell.attack == "error":
            right = accuracy(model, test)
            return Rate(1 - right.value, 1 - right.high, 1 - right.low, right.n)
        attack = Attack(SETS[cell.attack](load(cell.data)), restarts=cell.restarts, seed=cell.seed)
        result = attack(model, test)
        if cell.attack == "on-learned":
            return result.success_rate(correct="reconstruction", code_limit=LIMIT)
        return result.success_rate()

    def model(self, cell: Cell) -> nn.Module:
        """The cell's trained model, in eval mode on `device`."""
        return _trained(self, *(getattr(cell, n) for n in TRAINED))


TRAINED = ("data", "model", "recipe", "n", "seed", "epochs")  # what decides a cell's model


@lru_cache(maxsize=1)
def _trained(
    run: Measure, name: str, network: str, recipe: str, n: int, seed: int, epochs: int
) -> nn.Module:
    data = load(name)
    model = NETWORKS[network](seed, shape=data.shape, classes=len(data.classes)).to(run.device)
    about = dict(zip(TRAINED, (name, network, recipe, n, seed, epochs)))
    path = Path(run.folder) / f"{key(about, run)}.safetensors" if run.folder else None
    if path is not None and path.exists():
        try:
            model.load_state_dict(load_tensors(path)[0])
            return model.eval()
        except (DamagedFileError, RuntimeError):
            path.unlink()  # trained again below
    checkpoint = path.with_suffix(".checkpoint") if path else None
    split = data.train(n).to(run.device)
    fit(model, split, RECIPES[recipe](data), epochs=epochs, seed=seed, checkpoint=checkpoint,
        progress=False)  # fmt: skip
    if path is not None and checkpoint is not None:
        save_tensors(path, model.state_dict(), **about)
        checkpoint.unlink()
    return model


@lru_cache(maxsize=3)
def _test(name: str, images: int, device: str) -> Split:
    return load(name).test(images).to(device)
