"""Small trained models that ship with the package, each with a card that says how it was made.

`load(name)` returns one; `python -m advnb zoo train NAME` makes it again.
"""

from __future__ import annotations

import difflib
import json
import os
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import certify
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
from ..stats import rate
from ..training import fit
from .entries import ENTRIES, Entry, pgd

__all__ = [
    "ENTRIES", "Entry", "card", "entry", "hardware", "load", "made", "measure", "names", "pgd",
    "rounded", "train",
]  # fmt: skip

FOLDER = Path(__file__).parent
# what `load` and the command need of a card
FIELDS = {"name", "network", "shape", "classes", "note", "measured", "checksum"}


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
    folder = Path(folder)
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
