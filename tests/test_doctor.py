"""The doctor finds what is planted, one line a fault, and nothing where nothing is wrong.

Most faults are planted in this process, with empty data folders and without timing an attack; a
few in a copy of the package that another process runs. `python -m advnb data` is here too.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from torch import Tensor

from advnb import data, doctor, downloads, fonts, learned, models, zoo
from advnb.__main__ import main
from advnb.files import save_arrays
from advnb.learned import SHIPPED
from advnb.splits import Split

from .conftest import ROOT

Patch = pytest.MonkeyPatch
FETCHED = ["mnist", "fashion", "emnist", "cifar10", "gtsrb", "celeba"]
LINE = re.compile(r"(ok   |FAULT) (\w+) +(\S.*)")
MEND = re.compile(r" {17}mend: (\S.*)")


@pytest.fixture
def sound(monkeypatch: Patch, tmp_path: Path) -> Path:
    """A machine without fault and without data, whose attack takes a second; returns a folder."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("ADVNB_DATA", "")
    monkeypatch.setenv("ADVNB_CACHE", str(cache))
    monkeypatch.delenv("ADVNB_PROFILE", raising=False)
    monkeypatch.setattr(doctor, "attack_seconds", lambda: 1.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**11))
    return tmp_path


def parsed(printed: str) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
    """What the doctor printed: (check, told) where all is fine, (check, told, mend) of faults."""
    *lines, last = printed.splitlines()
    fine, faults = [], []
    while lines:
        matched = LINE.fullmatch(line := lines.pop(0))
        assert matched, f"neither a finding nor its mend: {line!r}"
        assert matched.start(3) == 17, f"not in its column: {line!r}"
        if matched[1] == "FAULT":
            mend = MEND.fullmatch(lines.pop(0) if lines else "")
            assert mend, f"no mend after {line!r}"
            faults.append((matched[2], matched[3], mend[1]))
        else:
            fine.append((matched[2], matched[3]))
    assert last == (f"{len(faults)} fault(s)" if faults else "all is well")
    return fine, faults


def only(printed: str, check: str, told: str, mend: str) -> None:
    """There is one fault: of that check, and its words match."""
    _, faults = parsed(printed)
    assert len(faults) == 1, "\n".join(f"{found}: {what}" for found, what, _ in faults)
    assert faults[0][0] == check, faults[0]
    assert re.search(told, faults[0][1]), f"{faults[0][1]!r} does not match {told!r}"
    assert re.search(mend, faults[0][2]), f"{faults[0][2]!r} does not match {mend!r}"


def told(check: str) -> list[str]:
    """What one check tells."""
    return [finding.told for finding in doctor.CHECKS[check]()]


# --- planted faults -------------------------------------------------------------------------------


def flip(path: Path, at: int = -100) -> None:
    """Another value for one byte of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """The first half of a file is left."""
    os.truncate(path, path.stat().st_size // 2)


def in_zoo(change: Callable[[Path], object]) -> Callable[[Patch, Path], None]:
    """`change(folder)` in a copy of the zoo."""

    def plant(patch: Patch, folder: Path) -> None:
        copy, load = folder / "zoo", zoo.load
        shutil.copytree(zoo.FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        patch.setattr(zoo, "load", lambda name: load(name, copy))
        patch.setattr(learned, "FOLDER", copy)
        change(copy)

    return plant


def on_card(**changed: object) -> Callable[[Patch, Path], None]:
    """Other values on the card of mnist-cnn-normal."""

    def change(folder: Path) -> None:
        path = folder / "mnist-cnn-normal.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return in_zoo(change)


def swap(end: str) -> Callable[[Patch, Path], None]:
    """A file of fashion-cnn-normal under the name of mnist-cnn-normal."""
    return in_zoo(
        lambda folder: shutil.copy(
            folder / f"fashion-cnn-normal.{end}", folder / f"mnist-cnn-normal.{end}"
        )
    )


def small_mnist(path: Path, label: int = 9) -> Path:
    """A whole mnist.npz of few images; `label` is the last one's."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part, n in (("train", 40), ("test", 20)):
        arrays[f"{part}_x"] = rng.integers(0, 256, (n, 28, 28), np.uint8)
        arrays[f"{part}_y"] = np.append(np.arange(n - 1) % 10, label)
    return save_arrays(path / "mnist.npz", arrays)


def mnist_file(change: Callable[[Path], object], label: int = 9) -> Callable[[Patch, Path], None]:
    """An mnist.npz in ADVNB_DATA that was changed."""

    def plant(patch: Patch, folder: Path) -> None:
        change(small_mnist(folder / "data", label))
        patch.setenv("ADVNB_DATA", str(folder / "data"))

    return plant


def atlas(patch: Patch, folder: Path) -> None:
    patch.setattr(fonts, "ATLAS", Path(shutil.copy(fonts.ATLAS, folder)))
    patch.setattr(fonts, "read_atlas", fonts.read_atlas.__wrapped__)
    cut(fonts.ATLAS)


def variable(name: str, value: str) -> Callable[[Patch, Path], None]:
    """A value of an environment variable, in which {} is the test's folder."""
    return lambda patch, folder: patch.setenv(name, value.format(folder))


def cache_is_a_file(patch: Patch, folder: Path) -> None:
    (folder / "plain").write_text("not a folder")
    patch.setenv("ADVNB_CACHE", str(folder / "plain"))


def cache_below_a_file(patch: Patch, folder: Path) -> None:
    (folder / "plain").write_text("not a folder")
    patch.setenv("ADVNB_CACHE", str(folder / "plain" / "cache"))


def cache_is_read_only(patch: Patch, folder: Path) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "cache"))

    patch.setattr(tempfile, "TemporaryFile", refuse)  # root may write to any folder


def full(patch: Patch, folder: Path) -> None:
    patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=800_000_000))


def distribution(name: str, metadata: str | None) -> Callable[[Patch, Path], None]:
    """An installed distribution that is found before the real one."""

    def plant(patch: Patch, folder: Path) -> None:
        (folder / "site" / name).mkdir(parents=True)
        if metadata is not None:
            (folder / "site" / name / "METADATA").write_text(metadata)
        patch.syspath_prepend(str(folder / "site"))

    return plant


def uninstalled(missing: str) -> Callable[[Patch, Path], None]:
    def plant(patch: Patch, folder: Path) -> None:
        version = importlib.metadata.version

        def look(name: str) -> str:
            if name == missing:
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        patch.setattr(importlib.metadata, "version", look)

    return plant


def advnb_uninstalled(patch: Patch, folder: Path) -> None:
    def look(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    patch.setattr(doctor, "ROOT", folder)  # no clone either
    patch.setattr(importlib.metadata, "requires", look)


def torchvision(content: str) -> Callable[[Patch, Path], None]:
    """Another module torchvision that is found before the real one."""

    def plant(patch: Patch, folder: Path) -> None:
        (folder / "site").mkdir()
        (folder / "site/torchvision.py").write_text(content)
        patch.syspath_prepend(str(folder / "site"))
        patch.delitem(sys.modules, "torchvision", raising=False)

    return plant


def threads(patch: Patch, folder: Path) -> None:
    patch.setattr(doctor, "usable_cores", lambda: 3)
    patch.setattr(torch, "get_num_threads", lambda: 4)


def notebook(content: bytes) -> Callable[[Patch, Path], None]:
    """A clone with one notebook, lesson.ipynb."""

    def plant(patch: Patch, folder: Path) -> None:
        clone = folder / "clone"
        (clone / "notebooks").mkdir(parents=True)
        shutil.copy(ROOT / "pyproject.toml", clone)
        (clone / "notebooks/lesson.ipynb").write_bytes(content)
        patch.setattr(doctor, "ROOT", clone)

    return plant


def noted(about: object) -> bytes:
    """A notebook whose metadata say `about` under advnb."""
    content = {"cells": [], "metadata": {"advnb": about}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content).encode()


def gpu(
    answer: Callable[[Tensor], Tensor], name: Callable[[], object] = lambda: "Planted 9000"
) -> Callable[[Patch, Path], None]:
    """One GPU, which computes `answer` of what the CPU computes; nothing is moved anywhere."""

    def plant(patch: Patch, folder: Path) -> None:
        moved: list[object] = []
        logits = models.logits

        def to(model: models.CNN, device: object) -> models.CNN:
            moved.append(device)
            return model

        def compute(model: models.CNN, split: Split) -> Tensor:
            return answer(logits(model, split)) if moved else logits(model, split)

        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "get_device_name", lambda device: name())
        patch.setattr(torch.backends.mps, "is_available", lambda: False)
        patch.setattr(models.CNN, "to", to)
        patch.setattr(models, "logits", compute)

    return plant


def fail(message: str) -> Callable[..., Tensor]:
    def raising(*args: object) -> Tensor:
        raise RuntimeError(message)

    return raising


def crash(patch: Patch, folder: Path) -> None:
    patch.setitem(doctor.CHECKS, "settings", fail("planted\nand a second line"))


NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"
OLD_DRIVER = "The NVIDIA driver on your system is too old"
GPU_MEND = r"torch build for this GPU.*CUDA_VISIBLE_DEVICES"
AGAIN = r"install advnb again, or `python -m advnb zoo train mnist-cnn-normal`"
CACHE_MEND = "set ADVNB_CACHE to a folder"
NOTEBOOK = ("notebooks", r"lesson\.ipynb is not a notebook", r"git checkout -- .*lesson\.ipynb$")
MNIST_MEND = r"move .*data.mnist\.npz away, then run `python -m advnb data mnist`"
DAMAGED = ("sets", r"^MNIST: .*mnist\.npz is damaged", MNIST_MEND)

# what is planted: (how, the check that finds it, words of what it tells, words of its mend)
FAULTS: dict[str, tuple[Callable[[Patch, Path], None], str, str, str]] = {
    "weights with another byte": (
        in_zoo(lambda folder: flip(folder / "mnist-cnn-normal.safetensors")),
        "weights", r"^mnist-cnn-normal: .*checksum", AGAIN,
    ),
    "half a file of weights": (
        in_zoo(lambda folder: cut(folder / "mnist-cnn-normal.safetensors")),
        "weights", r"^mnist-cnn-normal: .*safetensors", AGAIN,
    ),
    "no weights": (
        in_zoo(lambda folder: (folder / "mnist-cnn-normal.safetensors").unlink()),
        "weights", r"^mnist-cnn-normal: .*no such file", AGAIN,
    ),
    "a manifold with another byte": (
        in_zoo(lambda folder: flip(folder / "fashion-flow.safetensors")), "weights",
        r"^fashion-flow: .*checksum", "python -m advnb vaegan train fashion --kind flow",
    ),
    "no manifold": (
        in_zoo(lambda folder: (folder / "fonts-vaegan.safetensors").unlink()), "weights",
        r"^fonts-vaegan: .*no such file", "python -m advnb vaegan train fonts --kind vaegan",
    ),
    "weights of another model": (
        swap("safetensors"), "weights", r"^mnist-cnn-normal: .*not the file its card", AGAIN,
    ),
    "no card": (
        in_zoo(lambda folder: (folder / "mnist-cnn-normal.json").unlink()),
        "weights", r"^mnist-cnn-normal: .*mnist-cnn-normal\.json is missing", AGAIN,
    ),
    "the card of another model": (
        swap("json"), "weights", r"^mnist-cnn-normal: .*not the card of mnist-cnn-normal", AGAIN,
    ),
    "a card with another number of classes": (
        on_card(classes=7), "weights", r"^mnist-cnn-normal: ", AGAIN,
    ),
    "a card with a network that there is not": (
        on_card(network="Nothing"), "weights", r"^mnist-cnn-normal: ", AGAIN,
    ),
    "half an atlas": (atlas, "sets", r"FONTS.*fonts\.npz is damaged", "install advnb again"),
    "half an mnist.npz": (mnist_file(cut), *DAMAGED),
    "an mnist.npz with another byte": (mnist_file(lambda path: flip(path, 5000)), *DAMAGED),
    "an empty mnist.npz": (mnist_file(lambda path: path.write_bytes(b"")), *DAMAGED),
    "a label beyond the classes": (
        mnist_file(lambda path: None, label=12), "sets", "^MNIST: .*label 12 .* 10 classes",
        MNIST_MEND,
    ),
    "a data folder that is not there": (
        variable("ADVNB_DATA", "{}/nowhere"), "settings", "ADVNB_DATA names .*nowhere",
        "correct ADVNB_DATA",
    ),
    "a data folder of nobody": (
        variable("ADVNB_DATA", "~no-such-user/data"), "settings",
        "ADVNB_DATA names ~no-such-user.data", "correct ADVNB_DATA",
    ),
    "a profile of this name": (
        variable("ADVNB_PROFILE", "lecture"), "settings",
        "ADVNB_PROFILE is 'lecture'.*smoke, course, paper", "ADVNB_PROFILE",
    ),
    "a file for the cache": (cache_is_a_file, "cache", "cache .*plain cannot be", CACHE_MEND),
    "a cache below a file": (cache_below_a_file, "cache", "cache .*plain.* cannot be", CACHE_MEND),
    "a cache to read only": (cache_is_read_only, "cache", "cannot be .*Permission", CACHE_MEND),
    "no room in the cache": (full, "cache", r"cache .* has 0\.8 GB left", "1 GB.*make room"),
    "a kernel that blocks": (
        distribution(
            "ipykernel-7.4.0.dist-info", "Metadata-Version: 2.1\nName: ipykernel\nVersion: 7.4.0\n"
        ),
        "packages", r"^ipykernel 7\.4\.0 does not suit", '^pip install "ipykernel.*<7.4.*"$',
    ),
    "the rest of an interrupted installation": (
        distribution("umap_learn-0.5.12.dist-info", None),
        "packages", "^umap-learn ", "^pip install .*umap-learn",
    ),
    "no umap": (
        uninstalled("umap-learn"), "packages", "^umap-learn is not installed",
        '^pip install "umap-learn"$',
    ),
    "no ipykernel": (
        uninstalled("ipykernel"), "packages", "^ipykernel is not installed",
        '^pip install "ipykernel.*<7.4.*"$',
    ),
    "no advnb": (advnb_uninstalled, "packages", "^advnb itself is not", "pip install -e"),
    "a torchvision for another torch": (
        torchvision('raise RuntimeError("operator torchvision::nms does not exist")'),
        "vision", "torchvision cannot be imported: operator torchvision::nms does not exist",
        "pip install --force-reinstall torch torchvision",
    ),
    "more threads than cores": (
        threads, "devices", r"4 thread\(s\) on 3 usable core\(s\)", "OMP_NUM_THREADS=3",
    ),
    "a GPU without kernels": (
        gpu(fail(f"{NO_KERNEL}\nCompile with TORCH_USE_CUDA_DSA")),
        "devices", rf"^cuda:0 \(Planted 9000\) does not work: {NO_KERNEL}$", GPU_MEND,
    ),
    "a GPU that is off": (
        gpu(lambda out: out + 0.25), "devices", r"^cuda:0 .* results are off by 0\.25$", GPU_MEND,
    ),
    "a GPU of NaN": (
        gpu(lambda out: out * float("nan")), "devices", "^cuda:0 .*does not work", GPU_MEND,
    ),
    "a GPU with an old driver": (
        gpu(fail(OLD_DRIVER), fail(OLD_DRIVER)),  # torch is asked for the name first
        "devices", f"^cuda:0.* does not work: {OLD_DRIVER}", GPU_MEND,
    ),
    "a notebook that is no JSON": (notebook(b"<html>"), *NOTEBOOK),
    "an empty notebook": (notebook(b""), *NOTEBOOK),
    "a notebook of another encoding": (notebook(b'{"metadata": {"\xff": 1}}'), *NOTEBOOK),
    "a notebook that is a list": (notebook(b"[]"), *NOTEBOOK),
    "a notebook without metadata": (notebook(b"{}"), *NOTEBOOK),
    "a notebook with a number for metadata": (notebook(b'{"metadata": 3}'), *NOTEBOOK),
    "a notebook with half a time": (
        notebook(noted({"seconds": 60})), "notebooks", r"^lesson(\.ipynb)? ", ".",
    ),
    "a check that crashes": (
        crash, "settings", "this check failed: RuntimeError: planted$", "fresh environment",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_the_only_one(
    fault: str, sound: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant, check, words, mend = FAULTS[fault]
    plant(monkeypatch, sound)
    code = main(["doctor"])
    printed = capsys.readouterr()
    only(printed.out, check, words, mend)
    assert code == 1
    assert printed.err == ""
    fine, _ = parsed(printed.out)
    others = set(doctor.CHECKS) - {check}
    assert {name for name, _ in fine} >= others, "a check did not run"


def test_without_a_fault(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr()
    fine, faults = parsed(printed.out)
    assert faults == []
    assert {name for name, _ in fine} == set(doctor.CHECKS)
    assert printed.err == ""
    assert f"{len(zoo.names())} models of the zoo match their checksums" in printed.out
    assert f"checksums, {sum(map(len, SHIPPED.values()))} manifolds too" in printed.out


def test_every_fault_is_told(
    sound: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = ["no umap", "a GPU that is off", "a data folder that is not there", "no card"]
    for fault in planted:
        FAULTS[fault][0](monkeypatch, sound)
    full(monkeypatch, sound)
    assert main(["doctor"]) == 1
    _, faults = parsed(capsys.readouterr().out)
    assert [check for check, _, _ in faults] == [
        "packages", "devices", "settings", "weights", "cache"
    ]  # fmt: skip


@pytest.mark.parametrize("check", doctor.CHECKS)
def test_a_check_that_crashes_does_not_stop_the_others(
    check: str, sound: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setitem(doctor.CHECKS, check, fail(""))
    found = list(doctor.examine())
    faults = [(name, finding.told) for name, finding in found if finding.mend]
    assert faults == [(check, "this check failed: RuntimeError: RuntimeError")]
    assert list(dict.fromkeys(name for name, _ in found)) == list(doctor.CHECKS)


# --- packages and devices -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ipykernel", "torch", "pillow", "umap-learn"])
def test_the_mend_of_a_package_is_what_the_project_asks_for(
    name: str, sound: Path, monkeypatch: Patch
) -> None:
    uninstalled(name)(monkeypatch, sound)
    mends = [finding.mend for finding in doctor.packages() if finding.mend]
    assert len(mends) == 1
    asked = re.fullmatch(r'pip install "([^"]+)"', mends[0])
    assert asked, mends[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in project["dependencies"]]
    assert [line for line in wanted if line.name == name] == [Requirement(asked[1])]


def test_without_a_clone_the_installed_package_says_what_it_needs(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    lines = ["numpy>=1", "xyzzy>=2", 'plugh; extra == "test"', 'frotz; sys_platform == "amiga"']
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    faults = [finding for finding in doctor.packages() if finding.mend]
    assert [fault.told for fault in faults] == ["xyzzy is not installed"]
    assert told("notebooks") == [
        "no notebooks beside the package: clone the repository to have them"
    ]


def test_a_gpu_that_computes_what_the_cpu_does_is_fine(sound: Path, monkeypatch: Patch) -> None:
    gpu(lambda out: out + 1e-5)(monkeypatch, sound)
    findings = list(doctor.devices())
    assert not any(finding.mend for finding in findings)
    assert findings[-1].told == "cuda:0 (Planted 9000) computes what the CPU does"


def test_no_gpu_is_fine(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert not any(finding.mend for finding in doctor.devices())
    assert told("devices")[-1].startswith("no GPU")


QUOTAS = {  # a machine of 8 cores: what a container's file says, and the cores left
    "200000 100000\n": 2, "150000 100000\n": 2, "50000 100000\n": 1, "1000 100000\n": 1,
    "1600000 100000\n": 8, "max 100000\n": 8, "": 8, "nonsense": 8, None: 8,
}  # fmt: skip


@pytest.mark.parametrize(("content", "cores"), QUOTAS.items())
def test_usable_cores_of_a_container(content: str | None, cores: int, monkeypatch: Patch) -> None:
    def read(path: Path, *args: object, **options: object) -> str:
        assert path == Path("/sys/fs/cgroup/cpu.max")
        if content is None:
            raise FileNotFoundError(path)
        return content

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(Path, "read_text", read)
    assert doctor.usable_cores() == cores


@pytest.mark.parametrize(("known", "cores"), [(6, 6), (None, 1)])
def test_usable_cores_where_affinity_is_unknown(
    known: int | None, cores: int, monkeypatch: Patch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: known)
    monkeypatch.setattr(Path, "read_text", lambda path: "max 100000\n")
    assert doctor.usable_cores() == cores


# --- data sets ------------------------------------------------------------------------------------


def test_absent_sets_are_listed_and_no_fault(sound: Path) -> None:
    findings = list(doctor.sets())
    assert not any(finding.mend for finding in findings)
    assert findings[-1].told.endswith(f": {', '.join(FETCHED)}")
    assert len(findings) > 1
    assert all(finding.told.startswith("FONTS") for finding in findings[:-1])


def test_a_present_set_is_told_with_its_size_and_place(sound: Path, monkeypatch: Patch) -> None:
    mnist_file(lambda path: None)(monkeypatch, sound)
    path = sound / "data" / "mnist.npz"
    assert f"MNIST: 40 + 20 images 1x28x28, {path}" in told("sets")
    assert told("sets")[-1].endswith(f": {', '.join(FETCHED[1:])}")


def test_a_large_set_is_not_read_through(sound: Path, monkeypatch: Patch) -> None:
    mnist_file(lambda path: None)(monkeypatch, sound)
    monkeypatch.setattr(doctor, "LARGE", 1000)
    found = [finding for finding in doctor.sets() if finding.told.startswith("MNIST: ")]
    assert [finding.mend for finding in found] == [""]
    assert "large, not read through" in found[0].told


def test_a_large_set_that_was_cut_off_is_a_fault(sound: Path, monkeypatch: Patch) -> None:
    mnist_file(cut)(monkeypatch, sound)
    monkeypatch.setattr(doctor, "LARGE", 1000)
    (found,) = [finding for finding in doctor.sets() if finding.told.startswith("MNIST: ")]
    assert "damaged or cut off" in found.told
    assert "move" in found.mend


# --- the time that notebooks take -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "there", "here", "minutes"),
    [(60, 0.5, 1.0, "2.0"), (60, 2.0, 1.0, "0.5"), (600, 1.0, 1.0, "10.0"), (1, 1.0, 1.0, "0.1")],
)
def test_minutes_of_a_notebook_scale_with_the_machine(
    seconds: float, there: float, here: float, minutes: str, sound: Path, monkeypatch: Patch
) -> None:
    notebook(noted({"seconds": seconds, "attack_seconds": there}))(monkeypatch, sound)
    monkeypatch.setattr(doctor, "attack_seconds", lambda: here)
    assert told("notebooks") == [f"lesson: about {minutes} minutes (course profile)"]


def test_a_notebook_without_a_time(sound: Path, monkeypatch: Patch) -> None:
    notebook(b'{"cells": [], "metadata": {}}')(monkeypatch, sound)
    findings = list(doctor.notebooks())
    assert findings == [doctor.Finding("lesson: not measured yet")]


def test_the_attack_that_is_timed() -> None:
    assert 0.001 < doctor.attack_seconds() < 30


# --- the command in a process of its own ----------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of what a clone holds, to be damaged and run."""
    folder = tmp_path / "clone"
    hidden = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("advnb", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=hidden)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (tmp_path / "cache").mkdir()
    return folder


def run(clone: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python -m advnb doctor` in the copy."""
    wanted = {"ADVNB_CACHE": str(clone.parent / "cache"), "OMP_NUM_THREADS": "1"} | variables
    began = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "advnb", "doctor"],
        cwd=clone, env=os.environ | wanted, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    print(f"the doctor took {time.perf_counter() - began:.1f} s")
    assert ran.stderr == ""
    return ran


def listing(folder: Path) -> dict[str, str]:
    """Every file and folder with its content, but for Python's own cache."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def test_a_sound_clone_is_well_and_left_as_it_was(clone: Path) -> None:
    before = listing(clone.parent)
    ran = run(clone)
    fine, faults = parsed(ran.stdout)
    assert faults == []
    assert ran.returncode == 0
    assert list(dict.fromkeys(name for name, _ in fine)) == list(doctor.CHECKS)
    assert str(clone / "advnb" / "fonts.npz") in ran.stdout, "another copy was looked at"
    assert listing(clone.parent) == before


def test_a_cache_that_is_not_there_yet_is_no_fault_and_not_made(sound: Path) -> None:
    (sound / "cache").rmdir()
    assert not any(finding.mend for finding in doctor.cache())
    assert not (sound / "cache").exists()


def test_another_byte_in_the_weights_of_a_clone(clone: Path) -> None:
    path = clone / "advnb/zoo/mnist-cnn-adversarial.safetensors"
    flip(path)
    ran = run(clone, ADVNB_DATA="")
    only(ran.stdout, "weights", f"^mnist-cnn-adversarial: {path} .*checksum", "zoo train mnist-cnn")
    assert ran.returncode == 1


def test_half_an_atlas_in_a_clone(clone: Path) -> None:
    cut(clone / "advnb/fonts.npz")
    ran = run(clone, ADVNB_DATA="")
    only(ran.stdout, "sets", f"{clone}.*fonts.npz is damaged", "install advnb again")
    assert ran.returncode == 1


# --- fetching data --------------------------------------------------------------------------------


@pytest.fixture
def asked(unkept: Path, monkeypatch: Patch) -> list[object]:
    """No data and no network; the list holds every server that was asked."""
    calls: list[object] = []

    def unreachable(addresses: object) -> bool:
        calls.append(addresses)
        return False

    monkeypatch.setattr(downloads, "reachable", unreachable)
    return calls


def test_data_that_is_here(
    asked: list[object], tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    mnist_file(lambda path: None)(monkeypatch, tmp_path)
    assert main(["data", "mnist", "fonts"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"{data.load('mnist')!r} in {tmp_path / 'data' / 'mnist.npz'}",
        f"{data.load('fonts')!r} in the package",
    ]
    assert printed.err == ""
    assert asked == []


def test_data_is_fetched_once(
    unkept: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched: list[str] = []

    def fetch(name: str, path: Path) -> Path:
        fetched.append(name)
        return small_mnist(path.parent)

    monkeypatch.setattr(data, "download", fetch)
    for _ in range(2):
        assert main(["data", "mnist"]) == 0
        assert str(unkept / "mnist.npz") in capsys.readouterr().out
    assert fetched == ["mnist"]


def test_an_unknown_name_is_told_before_anything_is_fetched(
    asked: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "mnist", "cifra10", "fashion"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert "'cifra10'" in printed.err
    assert "did you mean 'cifar10'" in printed.err
    assert asked == []


@pytest.mark.parametrize("name", FETCHED)
def test_offline_the_sets_that_need_no_network_are_named(
    name: str, asked: list[object], unkept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", name]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith(f"advnb: {data.TITLES[name]} is not on this machine")
    assert "need no network: fonts, fonts-moderate, fonts-easy." in printed.err
    assert len(asked) == 1
    assert not unkept.exists()


def test_data_of_a_file_names_its_place(
    asked: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_mnist(tmp_path)
    assert main(["data", str(path)]) == 0
    assert capsys.readouterr().out.strip().endswith(f"in {path}")
