"""How good learned manifolds are, and the comparison of both kinds that picked the default."""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import zoo
from .attribution import to_letter
from .checks import brief, existing, whole
from .data import Dataset
from .files import write
from .learned import FOLDER, KINDS, LearnedManifold
from .models import accuracy
from .vaegan import Settings, train

if TYPE_CHECKING:
    import pandas as pd

# The rule by which the default was chosen, written down before the runs: on FONTS, width 16, three
# seeds of each kind trained for equal time (3,000 steps a class of the flow, 1,680 of the VAE-GAN),
# the flow is the default if its mean over the seeds is better in at least two of these three, and
# else the VAE-GAN: the reconstruction's mean squared error on test images; a classifier's accuracy
# on class samples; the samples' median L2 distance to the known manifold of their letter.

JUDGES = {
    "fonts": "fonts-cnn-adversarial",
    "mnist": "mnist-cnn-normal",
    "fashion": "fashion-cnn-normal",
}


def measure(manifold: LearnedManifold, data: Dataset, *, n: int = 10_000) -> dict[str, Any]:
    """How good a manifold is: the mean squared error a pixel of decode(encode(x)) on the first n
    test images; the accuracy of a model of the zoo on them, on their reconstructions and on n
    samples (codes within 2); on FONTS the median L2 distance of 100 samples to the known manifold
    of their letter, over all faces, and of 100 test images, which lie on it (the search's own
    error: it does not always find the face)."""
    n = min(n, data.sizes[1])
    test = data.test(n)
    made = manifold.reconstruct(test)
    labels = torch.arange(n) % len(data.classes)
    samples = manifold.sample(labels)
    found: dict[str, Any] = {"reconstruction": (made.x - test.x).square().mean().item()}
    if data.name in JUDGES:
        judge = zoo.load(JUDGES[data.name])
        parts = {"test images": test, "reconstructions": made, "samples": samples}
        found["accuracy"] = {name: vars(accuracy(judge, part)) for name, part in parts.items()}
    if data.manifold is not None:
        far = to_letter(samples[:100].x, samples[:100].y, data.manifold)
        found["distance of samples"] = far.median().item()
        found["distance of test images"] = _floor(data)
    return found


@lru_cache(maxsize=8)
def _floor(data: Dataset) -> float:
    assert data.manifold is not None
    few = data.test()[torch.arange(100) * (data.sizes[1] // 100 - 1)]  # of all faces and letters
    return to_letter(few.x, few.y, data.manifold).median().item()


def compare(data: Dataset, folder: str | os.PathLike, *, seeds: int = 3) -> pd.DataFrame:
    """A row for each kind and seed: its training time and `measure`. What `folder` already holds
    is measured, the rest trained; the table is written there as well."""
    import pandas as pd

    rows = []
    whole("seeds", seeds, 1)
    for kind, seed in product(KINDS, range(seeds)):
        settings = Settings(kind, seed=seed)
        path = Path(folder) / f"{data.name}-{kind}-{seed}.safetensors"
        if not path.exists():
            make(data, settings, path)
        manifold = LearnedManifold.read(path)
        # a file of `train` alone has no measures
        found = manifold.about.get("measured") or measure(manifold, data)
        row = {key: manifold.about[key] for key in ("kind", "parameters", "minutes", "data")}
        row |= {"seed": seed, "steps": settings.steps}
        rows.append(row | pd.json_normalize(found).iloc[0].to_dict())
    table = pd.DataFrame(rows)
    write(Path(folder) / f"{data.name}-generative.csv", lambda p: table.to_csv(p, index=False))
    return table


def table(name: str) -> pd.DataFrame:
    """What `compare` found for a data set, as it ships. FileNotFoundError where nothing does."""
    import pandas as pd

    return pd.read_csv(existing(FOLDER / f"{name}-generative.csv"))


def make(data: Dataset, settings: Settings, path: str | os.PathLike) -> LearnedManifold:
    """Train on all training images, measure what comes back from the file, and keep the numbers in
    it; a killed run goes on."""
    if not isinstance(path, str | os.PathLike) or Path(path).is_dir():
        raise ValueError(f"path must name a file; got {brief(path)}")
    path = Path(path)
    told = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]  # others have their own place
    checkpoint = path.with_name(f".{path.name}.{told}.parts")
    trained = train(data.train(), settings, checkpoint=checkpoint).save(checkpoint / path.name)
    manifold = LearnedManifold.read(trained)  # in half precision, as others will have it
    manifold.about["measured"] = measure(manifold, data)
    manifold.save(path)
    shutil.rmtree(checkpoint)
    return manifold
