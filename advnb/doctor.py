"""Is this machine ready for the course? `python -m advnb doctor` looks and tells what to mend.

A check yields findings; one with a `mend` is a fault. No check changes anything, and none stops the
others.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from . import data, fonts, learned, models, zoo
from .attacks import Attack
from .files import DamagedFileError
from .perturbations import Pixels
from .profiles import profile, usable_cores
from .splits import Split
from .stats import generator

ROOM = 1_000_000_000  # bytes that the cache should have left: CIFAR-10 while it is unpacked
LARGE = 500_000_000  # bytes from which a data file is not read to its end
ROOT = Path(__file__).parents[1]  # of a clone


@dataclass(frozen=True)
class Finding:
    """What a check saw; `mend` says what to do about a fault and is empty where there is none."""

    told: str
    mend: str = ""


def packages() -> Iterator[Finding]:
    """Everything that pyproject.toml asks for is there in a version that it allows."""
    from packaging.requirements import Requirement

    project = ROOT / "pyproject.toml"
    try:
        if project.is_file():  # a clone: what is asked for now, not when it was installed
            lines = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
        else:
            lines = importlib.metadata.requires("advnb") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("advnb itself is not installed", "pip install -e . in its folder")
        return
    wanted = [Requirement(line) for line in lines]
    fine = []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = requirement.name
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(f"{name} is not installed", f'pip install "{requirement}"')
            continue
        except FileNotFoundError:  # how the backport importlib_metadata, once imported, says it
            version = None
        if version is None:  # its metadata are gone
            mend = f'pip install --force-reinstall "{requirement}"'
            yield Finding(f"{name} is only half installed", mend)
        elif requirement.specifier.contains(version, prereleases=True):
            fine.append(f"{name} {version}")
        else:
            yield Finding(
                f"{name} {version} does not suit ({requirement})", f'pip install "{requirement}"'
            )
    yield Finding(f"Python {platform.python_version()}, {', '.join(fine)}")


def vision() -> Iterator[Finding]:
    """torchvision loads: it does not beside a torch of another build."""
    try:
        module = importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        yield Finding(f"torchvision needs {error.name}", f"pip install {error.name}")
    except Exception as error:
        yield Finding(
            f"torchvision cannot be imported: {_first_line(error)}",
            "pip install --force-reinstall torch torchvision, both from one place",
        )
    else:
        yield Finding(f"torchvision {module.__version__} fits torch {torch.__version__}")


def devices() -> Iterator[Finding]:
    """Every device computes what the CPU does, and no more threads run than there are cores."""
    cores, threads = usable_cores(), torch.get_num_threads()
    told = f"CPU: {threads} thread(s) on {cores} usable core(s)"
    yield Finding(
        told, f"set OMP_NUM_THREADS={cores}: more threads than cores cost many times the speed"
        if threads > cores else "",
    )  # fmt: skip
    names = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    if not names:
        yield Finding("no GPU that this torch can use: fine for the course profile")
    split, model = _noise(8), models.CNN(0).eval()
    expected = models.logits(model, split)
    for name in names:
        title = name
        try:
            kind = torch.cuda.get_device_name(name) if name.startswith("cuda") else "Apple GPU"
            title = f"{name} ({kind})"
            off = (models.logits(model.to(name), split) - expected).abs().max().item()
            wrong = "" if off < 1e-3 else f"its results are off by {off:.2g}"
        except (RuntimeError, ValueError) as error:
            wrong = _first_line(error)
        if wrong:
            yield Finding(
                f"{title} does not work: {wrong}",
                "install the torch build for this GPU and its driver, or hide the GPU "
                "(CUDA_VISIBLE_DEVICES=)",
            )
        else:
            yield Finding(f"{title} computes what the CPU does")


def settings() -> Iterator[Finding]:
    """The profile exists, and so does every folder of ADVNB_DATA."""
    try:
        yield Finding(f"profile {profile().name}")
    except ValueError as error:
        yield Finding(_first_line(error), "unset ADVNB_PROFILE, or set it to one of these")
    for folder in data.folders():
        if not os.path.isdir(folder):
            yield Finding(
                f"ADVNB_DATA names {folder}, which is not a folder",
                "correct ADVNB_DATA (relative paths count from where Jupyter was started)",
            )


def sets() -> Iterator[Finding]:
    """Which data sets are here, and that they are whole."""
    absent, damaged = [], False
    for name, title in data.TITLES.items():
        path = fonts.ATLAS if name.startswith("fonts") else data.find(name)
        if path is None:
            absent.append(name)
            continue
        if path == fonts.ATLAS and damaged:
            continue  # one atlas, one fault
        try:
            told = "large, not read through"
            if not zipfile.is_zipfile(path):
                raise DamagedFileError(f"{path} is damaged or cut off")
            if path.stat().st_size <= LARGE:
                found = data.load(name)
                size = "x".join(map(str, found.test(1).x.shape[1:]))  # FONTS: reads the atlas
                told = f"{found.sizes[0]:,} + {found.sizes[1]:,} images {size}"
            yield Finding(f"{title}: {told}, {path}")
        except (ValueError, OSError) as error:
            damaged = damaged or path == fonts.ATLAS
            mend = "install advnb again" if path == fonts.ATLAS else f"move {path} away, then run "
            mend += "" if path == fonts.ATLAS else f"`python -m advnb data {name}`"
            yield Finding(f"{title}: {_first_line(error)}", mend)
    if absent:
        yield Finding(f"not here, downloaded when first asked for: {', '.join(absent)}")


def weights() -> Iterator[Finding]:
    """Every model of the zoo is the one that its card describes, every manifold a whole file."""
    kept: list[tuple[str, Callable[[], object], str]] = [
        (name, partial(zoo.load, name), f"zoo train {name}") for name in zoo.names()
    ]
    zoos = len(kept)
    for name, kinds in learned.SHIPPED.items():
        kept += [
            (f"{name}-{kind}", partial(learned.LearnedManifold.load, name, kind),
             f"vaegan train {name} --kind {kind.replace('-shared', ' --shared')}")
            for kind in kinds
        ]  # fmt: skip
    fine = [0, 0]
    for number, (name, load, again) in enumerate(kept):
        try:
            load()
            fine[number >= zoos] += 1
        except (ValueError, OSError) as error:
            mend = f"install advnb again, or `python -m advnb {again}`"
            yield Finding(f"{name}: {_first_line(error)}", mend)
    yield Finding(f"{fine[0]} models of the zoo match their checksums, {fine[1]} manifolds too")


def cache() -> Iterator[Finding]:
    """Downloads can be kept."""
    folder = data.cache_folder()
    mend = "set ADVNB_CACHE to a folder that you can write to"
    try:
        above = (folder, *folder.absolute().parents)
        there = next((f for f in above if os.path.exists(f)), folder)
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        yield Finding(f"the cache {folder} cannot be written: {_first_line(error)}", mend)
        return
    told = f"the cache {folder} has {free / 1e9:.1f} GB left"
    yield Finding(told, f"{mend} with 1 GB left, or make room" if free < ROOM else "")


def notebooks() -> Iterator[Finding]:
    """How long each notebook takes here: its time where it was last executed, scaled by how long
    one small attack takes there and here."""
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    if not paths:
        yield Finding("no notebooks beside the package: clone the repository to have them")
        return
    here = attack_seconds()
    for path in paths:
        try:
            about = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("advnb")
            told = "not measured yet"
            if about is not None:
                minutes = about["seconds"] * here / about["attack_seconds"] / 60
                told = f"about {max(minutes, 0.1):.1f} minutes (course profile)"
            yield Finding(f"{path.stem}: {told}")
        except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, OSError):
            yield Finding(f"{path.name} is not a notebook", f"git checkout -- {path}")


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    check.__name__: check
    for check in (packages, vision, devices, settings, sets, weights, cache, notebooks)
}


def examine() -> Iterator[tuple[str, Finding]]:
    """(check, finding) one after the other; a check that fails itself is a fault, not the end."""
    for name, check in CHECKS.items():
        try:
            for finding in check():
                yield name, finding
        except Exception as error:
            told = f"this check failed: {type(error).__name__}: {_first_line(error)}"
            absent = error.name if isinstance(error, ModuleNotFoundError) else None
            mend = f"pip install {absent}" if absent else "install advnb in a fresh environment"
            yield name, Finding(told, mend)


def attack_seconds() -> float:
    """Seconds of one small attack, the best of three: how fast this machine is at what the
    notebooks do."""
    split, model = _noise(200), models.CNN(0).eval()
    attack = Attack(Pixels(1e-4), steps=10, keep="strongest")
    times = []
    for _ in range(3):
        began = time.perf_counter()
        attack(model, split)
        times.append(time.perf_counter() - began)
    return min(times)


def _noise(n: int) -> Split:
    """Images that need no file: whether the atlas is whole is another check's."""
    return Split(torch.rand(n, 1, 28, 28, generator=generator(0)), torch.zeros(n).long())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
