"""What the tests share: where real data is, small trained models, and how an error must look."""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

ROOT = Path(__file__).parents[1]
CACHE = tempfile.TemporaryDirectory(prefix="advnb-tests-")

# set before the package is imported, so that subprocesses and kernels see it too
_listed = [folder for folder in os.environ.get("ADVNB_DATA", "").split(os.pathsep) if folder]
os.environ["ADVNB_DATA"] = os.pathsep.join(
    str((ROOT / Path(folder).expanduser()).resolve()) for folder in _listed
)
os.environ["ADVNB_CACHE"] = CACHE.name
os.environ["ADVNB_PROFILE"] = "smoke"
# one thread a process: a second one on a busy core costs far more than it brings
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

settings.register_profile(
    "advnb", deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
settings.load_profile("advnb")

import advnb  # noqa: E402


def pytest_unconfigure() -> None:
    CACHE.cleanup()


@contextmanager
def refused(match: str, kind: type[Exception] = ValueError) -> Iterator[None]:
    """The block must raise `kind` with a message of one line that matches."""
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message, f"more than one line: {message}"
    assert re.search(match, message, re.IGNORECASE), f"{message!r} does not match {match!r}"


def real(name: str) -> advnb.Dataset:
    """A real data set, or a skip where it is not on this machine: nothing is downloaded."""
    if advnb.data.find(name) is None:
        packed = [folder / f"{name}-jpeg.npz" for folder in advnb.data.folders()]
        found = next((path for path in packed if path.is_file()), None)
        if found is None:
            pytest.skip(f"no {name}.npz in a folder of ADVNB_DATA")
        unpack(found, advnb.data.cache_folder() / f"{name}.npz")
    return advnb.load(name)


def unpack(packed: Path, out: Path) -> None:
    """Write as a plain set what is kept as JPEG bytes, which lose a little of the official set."""
    arrays = {}
    with np.load(packed, allow_pickle=False) as file:
        for part in ("train", "test"):
            content, at = file[f"{part}_jpeg"], file[f"{part}_offsets"]
            images = (Image.open(io.BytesIO(content[a:b])) for a, b in pairwise(at))
            arrays[f"{part}_x"] = np.stack([np.asarray(image) for image in images])
            arrays[f"{part}_y"] = file[f"{part}_y"]
    advnb.files.save_arrays(out, arrays)


@pytest.fixture(scope="session")
def fonts() -> advnb.Dataset:
    return advnb.load("fonts")


@pytest.fixture(scope="session")
def mnist() -> advnb.Dataset:
    return real("mnist")


@pytest.fixture(scope="session")
def fashion() -> advnb.Dataset:
    return real("fashion")


@pytest.fixture(scope="session")
def cifar10() -> advnb.Dataset:
    return real("cifar10")


@pytest.fixture(scope="session")
def trained(fonts: advnb.Dataset) -> advnb.models.CNN:
    """A network that gets about half of FONTS right: a minute's work for nobody."""
    recipe = advnb.recipes.normal()
    return advnb.fit(advnb.models.CNN(0), fonts.train(1000), recipe, epochs=6, progress=False)


@pytest.fixture
def unkept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No data on this machine: ADVNB_DATA empty, a fresh cache folder (returned)."""
    monkeypatch.setenv("ADVNB_DATA", "")
    monkeypatch.setenv("ADVNB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
