"""The trained model of a curve's cell: read where an earlier cell has left it, or trained."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .checkpoints import OtherRunError
from .data import Dataset, load
from .files import DamagedFileError, load_tensors, save_tensors
from .models import NETWORKS, Network
from .stacks import Stack
from .strategies import RECIPES
from .sweeps import key
from .training import fit

if TYPE_CHECKING:
    from .curves import Measure

TRAINED = ("data", "model", "recipe", "n", "seed", "epochs")  # what decides a cell's model


@lru_cache(maxsize=2)  # a transfer needs two
def trained(run: Measure, about: str, k: str) -> nn.Module:
    """The model of TRAINED's fields, a JSON text `about`, whose key is `k`: read from where `run`
    leaves models, or trained, with those of `run.together` where they can be stacked."""
    cell = json.loads(about)
    data = load(cell["data"])
    path, seeds = run.path(k), [cell["seed"]]
    if path is not None and path.exists():
        try:
            kept = _new(cell, data, run.device)
            kept.load_state_dict(load_tensors(path)[0])
            return kept.eval()
        except (DamagedFileError, RuntimeError):
            pass  # trained again
    if run.together and _stackable(cell, data):
        seeds = _together(cell, run)
    paths = {seed: run.path(key(cell | {"seed": seed}, run)) for seed in seeds}
    first = paths[seeds[0]]
    checkpoint = first and first.with_suffix(f".{'-'.join(map(str, seeds))}.checkpoint")

    def train(checkpoint: Path | None) -> list[Network]:
        networks = [_new(cell | {"seed": seed}, data, run.device) for seed in seeds]
        alone = len(seeds) == 1
        fit(
            networks[0] if alone else (stack := Stack(networks)),
            data.train(cell["n"]).to(run.device), RECIPES[cell["recipe"]](data),
            epochs=cell["epochs"], seed=seeds[0] if alone else seeds, checkpoint=checkpoint,
            progress=False,
        )  # fmt: skip
        return networks if alone else stack.unstack()

    try:
        models = train(checkpoint)
    except (DamagedFileError, OtherRunError):  # of an older version of this package, say
        assert checkpoint is not None
        checkpoint.unlink(missing_ok=True)
        models = train(checkpoint)
    for (seed, path), model in zip(paths.items(), models):
        if path is not None:
            save_tensors(path, model.state_dict(), **cell | {"seed": seed})
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)  # another process may have been at the same
    return models[seeds.index(cell["seed"])]


def _together(cell: dict[str, Any], run: Measure) -> list[int]:
    """The seeds of a stack, in order: those of one that was killed, some of whose models may be
    saved, or all that have no model yet."""
    every, missing = sorted({cell["seed"], *run.together}), []
    for seed in every:
        path = run.path(key(cell | {"seed": seed}, run))
        if path is None:  # the others' models would be lost
            return [cell["seed"]]
        for left in path.parent.glob(f"{path.stem}.*.checkpoint"):
            seeds = [int(number) for number in re.findall(r"(?<!\d)-?\d+", left.suffixes[0])]
            if cell["seed"] in seeds:
                return seeds
        if seed == cell["seed"] or not path.exists():
            missing.append(seed)
    return missing


def _stackable(cell: dict[str, Any], data: Dataset) -> bool:
    try:
        Stack([_new(cell, data, "cpu")])
    except ValueError:  # MadryCIFAR looks at all channels at once
        return False
    return True


def _new(cell: dict[str, Any], data: Dataset, device: str) -> Network:
    network = NETWORKS[cell["model"]](cell["seed"], shape=data.shape, classes=len(data.classes))
    return network.to(device)
