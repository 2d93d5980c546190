"""Small trained models that ship with the package, each with a card that says how it was made.

`load(name)` returns one; `python -m advnb zoo train NAME` makes it again.
"""

from __future__ import annotations

import difflib
import json
import os
import platform
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import certify
from ..attacks import Attack
from ..checks import brief
from ..data import Dataset
from ..data import load as load_data
from ..files import (
    DamagedFileError,
    digest,
    load_tensors,
    packed,
    save_tensors,
    unpacked,
    write,
)
from ..models import NETWORKS, Network, accuracy, device_of
from ..perturbations import Pixels
from ..recipes import OneCycle, Recipe, adversarial, certified, cured, normal, wrm
from ..stats import rate
from ..training import fit

FOLDER = Path(__file__).parent
BOTH = (-1.0, 1.0)  # darker and lighter shifts
FIELDS = {"name", "network", "shape", "classes", "checksum"}  # what `load` needs of a card


def pgd(eps: float, lr: float = 0.01, restarts: int = 5) -> Attack:
    """Madry et al.'s PGD-40: steps of `lr` along the sign, uniform starts. They and Zhang et al.
    measure MNIST (eps 0.3) and Fashion-MNIST (0.1) with 0.01, CIFAR-10 (8/255) with 2/255."""
    return Attack(
        Pixels(eps), steps=40, lr=lr, optimizer="sign", start="uniform", restarts=restarts
    )


def _attack(eps: float) -> Attack:
    return Attack(Pixels(eps), steps=7, lr=2.5 * eps / 7, optimizer="sign", start="uniform")


def _madry(eps: float, peak: float, warmup: float) -> Recipe:
    """100 % adversarial batches from 7 large steps, in place of 40 small ones: a small network
    on a laptop's clock. The radius warms up, or training at 0.3 may never take off."""
    return adversarial(
        _attack(eps),
        1.0,
        schedule=OneCycle(peak),
        warmup=warmup,
        betas=(0.9, 0.999),
        weight_decay=0.0,
    )


def _cured(eps: float, lowest: float, shifts: tuple[float, float] = (0.0, 1.0)) -> Recipe:
    return cured(
        _attack(eps), lowest, shifts=shifts, schedule=OneCycle(0.01), warmup=2, betas=(0.9, 0.999),
        weight_decay=0.0,
    )  # fmt: skip


def _paper(eps: float) -> Recipe:
    """Madry et al.'s, 40 steps of 0.01, with five times their batch of 50 images and a fifth of
    their 100,000 batches and less."""
    attack = Attack(Pixels(eps), steps=40, lr=0.01, optimizer="sign", start="uniform")
    return adversarial(
        attack, 1.0, batch_size=250, schedule=OneCycle(0.0005), warmup=2, betas=(0.9, 0.999),
        weight_decay=0.0,
    )  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """How one model of the zoo is made, and which attack measures it."""

    data: str
    network: str
    n: int
    recipe: Recipe
    epochs: int
    attack: Attack
    attacked: int  # the first images of the test set that the card's success rate counts
    seed: int = 0
    certify: float | None = None  # the radius of the card's certified error
    ships: bool = True  # else `zoo train` makes it, where its data is
    bits: int = 16  # a weight that is kept: 16, or 8 with a scale for every 64


ENTRIES = {
    "mnist-cnn-normal": Entry("mnist", "CNN", 60_000, normal(), 20, pgd(0.3), 1000),
    "mnist-cnn-adversarial": Entry(
        "mnist", "CNN", 60_000, _madry(0.3, 0.01, 2), 12, pgd(0.3), 10_000
    ),
    "fashion-cnn-normal": Entry("fashion", "CNN", 60_000, normal(), 20, pgd(0.1), 1000),
    "fashion-cnn-adversarial": Entry(
        "fashion", "CNN", 60_000, _madry(0.1, 0.01, 2), 12, pgd(0.1), 10_000
    ),
    "fonts-cnn-normal": Entry(
        "fonts", "CNN", 5000, normal(), 20, Attack(Pixels(0.3), restarts=5), 1000
    ),
    "fonts-cnn-adversarial": Entry("fonts", "CNN", 40_000, _madry(0.1, 0.01, 1), 8, pgd(0.1), 2000),
    "cifar10-cnn-normal": Entry(
        "cifar10", "WideCNN", 50_000, normal(), 20, pgd(8 / 255, 2 / 255), 1000, bits=8
    ),
    "cifar10-cnn-adversarial": Entry(
        "cifar10", "WideCNN", 50_000, _madry(8 / 255, 0.005, 1), 30, pgd(8 / 255, 2 / 255), 10_000
    ),
    "mnist-small-certified": Entry(
        "mnist", "WongKolter", 60_000, certified(0.1), 20, pgd(0.1), 10_000, certify=0.1
    ),
    "fashion-small-certified": Entry(
        "fashion", "WongKolter", 60_000, certified(0.1), 20, pgd(0.1), 10_000, certify=0.1
    ),
    "fonts-small-certified": Entry(
        "fonts",
        "WongKolter",
        40_000,
        certified(0.1, warmup=4.0),
        10,
        pgd(0.1),
        2000,
        certify=0.1,
        bits=8,
    ),
    "cifar-small-certified": Entry(
        "cifar10",
        "WongKolter",
        50_000,
        certified(2 / 255),
        40,
        pgd(2 / 255, 0.5 / 255),
        10_000,
        certify=2 / 255,
        bits=8,
    ),
    # 11 of the authors' 25 epochs
    "mnist-wrm": Entry("mnist", "WRM", 60_000, wrm(), 11, pgd(0.1), 2000, bits=8),
    "fashion-wrm": Entry("fashion", "WRM", 60_000, wrm(), 11, pgd(0.1), 2000, bits=8),
    "mnist-cnn-cured": Entry(
        "mnist", "CNN", 60_000, _cured(0.3, 0.7), 12, pgd(0.3), 10_000, bits=8
    ),
    "fashion-cnn-cured": Entry(
        "fashion", "CNN", 60_000, _cured(0.1, 0.8), 12, pgd(0.1), 10_000, bits=8
    ),
    "fonts-cnn-cured": Entry("fonts", "CNN", 40_000, _cured(0.1, 0.8), 8, pgd(0.1), 2000, bits=8),
    "mnist-cnn-cured-both": Entry(
        "mnist", "CNN", 60_000, _cured(0.3, 0.7, BOTH), 12, pgd(0.3), 10_000, bits=8
    ),
    "fashion-cnn-cured-both": Entry(
        "fashion", "CNN", 60_000, _cured(0.1, 0.8, BOTH), 12, pgd(0.1), 10_000, bits=8
    ),
    "fonts-cnn-cured-both": Entry(
        "fonts", "CNN", 40_000, _cured(0.1, 0.8, BOTH), 8, pgd(0.1), 2000, bits=8
    ),
    # the network of Z's tables 2 and 3: 6.5 MB
    "mnist-madry": Entry(
        "mnist", "MadryMNIST", 60_000, _paper(0.3), 20, pgd(0.3), 10_000, ships=False
    ),
    "fashion-madry": Entry(
        "fashion", "MadryMNIST", 60_000, _paper(0.1), 20, pgd(0.1), 10_000, ships=False
    ),
    # 26,640 images: those that torchvision calls the training set
    "gtsrb-cnn-normal": Entry(
        "gtsrb", "WideCNN", 26_640, normal(), 20, pgd(8 / 255, 2 / 255), 1000, ships=False
    ),
    "gtsrb-cnn-adversarial": Entry(
        "gtsrb",
        "WideCNN",
        26_640,
        _madry(8 / 255, 0.005, 1),
        30,
        pgd(8 / 255, 2 / 255),
        10_000,
        ships=False,
    ),
}


def names() -> tuple[str, ...]:
    """The models that ship."""
    return tuple(name for name, made in ENTRIES.items() if made.ships)


def entry(name: str) -> Entry:
    """The recipe of a model; ValueError with the nearest name for one that does not exist."""
    if not isinstance(name, str) or name not in ENTRIES:
        near = difflib.get_close_matches(str(name), ENTRIES, 1)
        hint = f"did you mean {near[0]!r}?" if near else "zoo.ENTRIES lists them"
        raise ValueError(f"the zoo has no model {brief(name)}; {hint}")
    return ENTRIES[name]


def made(name: str, folder: Path = FOLDER) -> bool:
    """Whether there is a model of that name to load."""
    return name in ENTRIES and (Path(folder) / f"{name}.json").is_file()


def card(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """What is known of a model: recipe, data, seed, time, hardware, measured numbers, checksum."""
    entry(name)
    path = Path(folder) / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `python -m advnb zoo train {name}`")
    try:
        about = json.loads(path.read_text())
        if about["name"] == name and about.keys() >= FIELDS:
            return about
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise DamagedFileError(f"{path} is not the card of {name}: train the model again")


def load(name: str, folder: Path = FOLDER) -> Network:
    """A trained model in eval mode, on the CPU, in float32 (it is kept in half precision).
    DamagedFileError if its weights were changed."""
    about = card(name, folder)
    path = Path(folder) / f"{name}.safetensors"
    tensors, _ = load_tensors(path)
    if digest(tensors) != about["checksum"]:
        raise DamagedFileError(f"{path} is not the file its card describes: train it again")
    try:
        network = NETWORKS[about["network"]](shape=tuple(about["shape"]), classes=about["classes"])
        network.load_state_dict(tensors)
    except (LookupError, TypeError, ValueError, RuntimeError):
        raise DamagedFileError(
            f"{path.with_suffix('.json')} describes another network than its weights: train it "
            "again"
        ) from None
    return network.eval()


def train(
    name: str, folder: Path = FOLDER, *, note: str = "", device: str = "cpu", progress: bool = True
) -> dict[str, Any]:
    """Make a model and its card; a killed run goes on from its checkpoint. Returns the card.

    `note` goes on the card: what a reader must know about this copy of the data, say.
    """
    recipe = entry(name)
    data = load_data(recipe.data)
    split = data.train(recipe.n).to(device)
    model = NETWORKS[recipe.network](recipe.seed, shape=data.shape, classes=len(data.classes))
    model = model.to(device)
    checkpoint = folder / f".{name}.checkpoint"
    resumed, began = checkpoint.exists(), time.perf_counter()
    fit(
        model, split, recipe.recipe, epochs=recipe.epochs, seed=recipe.seed,
        checkpoint=checkpoint, progress=progress,
    )  # fmt: skip
    minutes = (time.perf_counter() - began) / 60
    weights = rounded(model, recipe.bits)
    measured = measure(name, model, data)
    about = {
        "name": name,
        "network": recipe.network,
        "shape": list(data.shape),
        "classes": len(data.classes),
        "data": f"the first {recipe.n:,} training images of {data.title}",
        "data_sha256": digest(split.content()),
        "note": note,
        "recipe": str(recipe.recipe),
        "epochs": recipe.epochs,
        "seed": recipe.seed,
        "minutes": None if resumed else round(minutes, 1),
        "hardware": hardware(device),
        "torch": torch.__version__,
        "date": str(date.today()),
        "measured": measured,
        "checksum": digest(unpacked(weights)),
    }
    save_tensors(folder / f"{name}.safetensors", weights)
    write(folder / f"{name}.json", lambda path: path.write_text(json.dumps(about, indent=1) + "\n"))
    os.unlink(checkpoint)
    return about


def rounded(model: nn.Module, bits: int) -> dict[str, Tensor]:
    """The model's tensors in 16 or 8 bits, to be saved, and the model itself rounded to them:
    what is measured is what is shipped."""
    state = model.state_dict()
    weights = packed(state) if bits == 8 else {
        k: t.half() if t.is_floating_point() else t for k, t in state.items()
    }  # fmt: skip
    if not all(t.isfinite().all() for t in weights.values()):
        raise ValueError("the weights do not fit half precision: train with another seed")
    model.load_state_dict(unpacked(weights))
    return weights


def hardware(device: str) -> str:
    """What a model was made on, as its card says it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = f"{torch.get_num_threads()} thread(s), {platform.machine()} CPU"
    return threads if device == "cpu" else f"{device}, {threads}"


def measure(name: str, model: nn.Module, data: Dataset, n: int | None = None) -> dict[str, Any]:
    """The numbers of a card: accuracy on the test set (20,000 images of FONTS) and the success
    of the entry's attack on the first `n` test images, over images and over pairs; where the
    entry names a radius, the share of the test set that is certified within it."""
    recipe = entry(name)
    test = data.test(min(data.sizes[1], 20_000)).to(device_of(model))
    result = recipe.attack(model, test[: n or recipe.attacked])
    found = {
        "attack": str(recipe.attack),
        "accuracy": vars(accuracy(model, test)),
        "success": vars(result.success_rate("images")),
        "success_pairs": vars(result.success_rate("pairs")),
    }
    if recipe.certify is not None:
        sure = certify.certified(model, test, recipe.certify, inner="ibp")
        found["certified"] = {"eps": recipe.certify} | vars(rate(sure))
    return found
