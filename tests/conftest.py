"""What the tests share: where real data is, small trained models, and how an error must look."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

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
    folders = [folder for folder in os.environ["ADVNB_DATA"].split(os.pathsep) if folder]
    if not any((Path(folder) / f"{name}.npz").is_file() for folder in folders):
        pytest.skip(f"no {name}.npz in a folder of ADVNB_DATA")
    return advnb.load(name)


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
