"""Bad files, arguments and states get one clear line: what is wrong, and what to do about it.

A row of the table is a call, the kind of exception it must raise, words that say what is wrong and
words that say how to mend it (what to do, or what is allowed). The error must come from this
package and not from a library's depths, and show no other error beside it.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import advnb
from advnb import (
    Affine,
    Attack,
    OnManifold,
    Pixels,
    Split,
    downloads,
    files,
    fonts,
    glyphs,
    recipes,
    stats,
    vaegan,
    zoo,
)
from advnb.attribution import plane, to_letter
from advnb.autoencoders import Autoencoder
from advnb.blindspots import table
from advnb.checkpoints import OtherRunError
from advnb.files import DamagedFileError, load_tensors, save_tensors
from advnb.live import AttackPanel, BlindspotPanel, LatentPanel, StepPanel
from advnb.manifolds import LearnedManifold, NeighbourManifold
from tests.conftest import refused

Patch = pytest.MonkeyPatch
Act = Callable[[Path, Patch], object]
Row = tuple[Act, type[Exception], str, str]

MODEL = advnb.models.CNN(0).eval()
FONTS = advnb.load("fonts")
TEN = FONTS.test(10)
NORMAL = recipes.normal()
PGD = Attack(Pixels(0.1), steps=2)
SQUARE = np.zeros((20, 20))  # its text has 20 lines
NAN = float("nan")
LETTERS = "fonts-cnn-normal"
ABOUT = {
    "kind": "vaegan", "title": FONTS.title, "classes": 10, "shape": [1, 28, 28], "width": 2,
    "kernel": 4, "couplings": 0, "shared": False, "networks": 10,
}  # fmt: skip
MANIFOLD = LearnedManifold(  # of nothing yet
    [Autoencoder(k, width=2, kernel=4, normalised=False) for k in range(10)],
    -torch.ones(10), torch.ones(10), ABOUT,
)  # fmt: skip


# --- files


def npz(here: Path, name: str = "own", **changed: object) -> Path:
    """A small set of twelve and six grey images; `changed` replaces arrays, None leaves one out."""
    arrays: dict[str, object] = {
        "train_x": np.zeros((12, 9, 7), np.uint8), "train_y": np.arange(12) % 5,
        "test_x": np.zeros((6, 9, 7), np.uint8), "test_y": np.arange(6) % 5,
    }  # fmt: skip
    kept = {k: np.asarray(v) for k, v in (arrays | changed).items() if v is not None}
    np.savez(here / f"{name}.npz", **kept)  # type: ignore[arg-type]
    return here / f"{name}.npz"


def own(**changed: object) -> Act:
    """Load a set of one's own in which arrays are changed."""
    return lambda here, patch: advnb.load(npz(here, **changed))


def holding(content: bytes) -> Act:
    """Load an .npz of this content."""

    def act(here: Path, patch: Patch) -> object:
        (here / "own.npz").write_bytes(content)
        return advnb.load(here / "own.npz")

    return act


def npy() -> bytes:
    """One array alone, as numpy writes it."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def cut_off(here: Path, patch: Patch) -> object:
    path = npz(here)
    path.write_bytes(path.read_bytes()[:-100])
    return advnb.load(path)


def one_bit(here: Path, patch: Patch) -> object:
    path = npz(here)
    content = bytearray(path.read_bytes())
    content[400] ^= 1
    path.write_bytes(content)
    return advnb.load(path)


def folder_as_a_set(here: Path, patch: Patch) -> object:
    (here / "own.npz").mkdir()
    return advnb.load(here / "own.npz")


def known(here: Path, patch: Patch, **changed: object) -> object:
    """Load "mnist", which lies, changed, in a folder of ADVNB_DATA."""
    npz(here, "mnist", **changed)
    patch.setenv("ADVNB_DATA", str(here))
    return advnb.load("mnist")


def fetched(reachable: bool, why: str = "", cache: str = "cache", **options: str) -> Act:
    """Load "mnist" where nothing is kept, from servers that fail with `why`."""

    def fail(folder: Path) -> dict:
        raise RuntimeError(why)

    def act(here: Path, patch: Patch) -> object:
        (here / "file").write_text("no folder")
        patch.setenv("ADVNB_DATA", "")
        patch.setenv("ADVNB_CACHE", str(here / cache))
        patch.setattr(downloads, "reachable", lambda addresses: reachable)
        patch.setitem(downloads.KNOWN, "mnist", replace(downloads.KNOWN["mnist"], fetch=fail))
        return advnb.load("mnist", **options)

    return act


def made(here: Path) -> Path:
    """A folder with two models of the zoo and their cards."""
    for number, name in enumerate((LETTERS, "fonts-cnn-adversarial")):
        weights = advnb.models.CNN(number).state_dict()
        save_tensors(here / f"{name}.safetensors", weights)
        about = {"name": name, "network": "CNN", "shape": [1, 28, 28], "classes": 10}
        about |= {"checksum": files.digest(weights), "measured": {}, "note": ""}
        (here / f"{name}.json").write_text(json.dumps(about))
    return here


def zoo_card(content: bytes | None) -> Act:
    """Load a model of the zoo whose card holds `content`, or is not there."""

    def act(here: Path, patch: Patch) -> object:
        path = made(here) / f"{LETTERS}.json"
        path.unlink() if content is None else path.write_bytes(content)
        return zoo.load(LETTERS, here)

    return act


def zoo_card_says(**changed: object) -> Act:
    def act(here: Path, patch: Patch) -> object:
        path = made(here) / f"{LETTERS}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
        return zoo.load(LETTERS, here)

    return act


def zoo_weights(change: Callable[[Path], object]) -> Act:
    """Load a model of the zoo after `change` has been at its weights' file."""

    def act(here: Path, patch: Patch) -> object:
        change(made(here) / f"{LETTERS}.safetensors")
        return zoo.load(LETTERS, here)

    return act


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def other_weights(path: Path) -> None:
    shutil.copy(path.with_name("fonts-cnn-adversarial.safetensors"), path)


def other_card(here: Path, patch: Patch) -> object:
    shutil.copy(made(here) / "fonts-cnn-adversarial.json", here / f"{LETTERS}.json")
    return zoo.load(LETTERS, here)


def trained(checkpoint: object, **options: object) -> nn.Module:
    """An epoch on ten letters."""
    settings = {"epochs": 1, "progress": False} | options
    model = advnb.models.CNN(0)
    return advnb.fit(model, TEN, NORMAL, checkpoint=checkpoint, **settings)  # type: ignore[arg-type]


def resumed(change: Callable[[Path], object], **options: object) -> Act:
    """Go on from a checkpoint after `change` has been at it."""

    def act(here: Path, patch: Patch) -> object:
        trained(here / "run")
        change(here / "run")
        return trained(here / "run", **options)

    return act


def manifold_file(change: Callable[[Path], object]) -> Act:
    """Read a learned manifold after `change` has been at its file."""

    def act(here: Path, patch: Patch) -> object:
        change(MANIFOLD.save(here / "learned"))
        return LearnedManifold.read(here / "learned")

    return act


def without_a_tensor(path: Path) -> None:
    tensors, about = load_tensors(path)
    save_tensors(path, {k: t for k, t in tensors.items() if k != "mean.bias"}, **about)


def without_part_of_the_run(path: Path) -> None:
    tensors, about = load_tensors(path)
    save_tensors(path, {k: t for k, t in tensors.items() if "head" not in k}, **about)


def below_a_file(here: Path) -> Path:
    (here / "file").write_text("no folder")
    return here / "file" / "run"


def faces(*names: str, **options: object) -> Act:
    """Build an atlas from a folder with files of these names that hold no face."""

    def act(here: Path, patch: Patch) -> object:
        (here / "faces").mkdir()
        for name in names:
            (here / "faces" / name).write_text("no face")
        return glyphs.build([here / "faces"], here / "atlas.npz")

    return act


def a_face(here: Path) -> Path:
    """A folder with one face that can be used."""
    shutil.copy(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", here)
    return here


def tensors_of(content: bytes | None) -> Act:
    """Read tensors from a file of this content, or from a folder."""

    def act(here: Path, patch: Patch) -> object:
        path = here / "tensors"
        path.mkdir() if content is None else path.write_bytes(content)
        return load_tensors(path)

    return act


def without_a_checksum(here: Path, patch: Patch) -> object:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, here / "tensors")
    return load_tensors(here / "tensors")


def profile(here: Path, patch: Patch) -> object:
    patch.setenv("ADVNB_PROFILE", "coarse")
    return advnb.profile()


FILES: dict[str, Row] = {
    # own images
    "no file": (
        lambda here, _: advnb.load(here / "own.npz"), FileNotFoundError,
        "own.npz: there is no such file", "check|give|name",
    ),
    "a folder named .npz": (folder_as_a_set, FileNotFoundError, "folder", "name a file|a file is"),
    "an empty file": (holding(b""), DamagedFileError, "damaged or not an .npz", "delete it"),
    "words": (
        holding(b"hello " * 99), DamagedFileError, "cannot be read|not an .npz", "save|delete",
    ),
    "a file cut off": (cut_off, DamagedFileError, "damaged", "delete it and get it again"),
    "a file of one changed bit": (one_bit, DamagedFileError, "damaged", "delete it"),
    "one array in place of four": (
        holding(npy()), DamagedFileError, "train_x", "must hold|save it",
    ),
    "an array missing": (own(test_y=None), DamagedFileError, "test_y", "must hold the arrays"),
    "float images": (
        own(train_x=np.zeros((12, 9, 7))), DamagedFileError, "it is float64", "must be uint8",
    ),
    "images in one row": (
        own(test_x=np.zeros((6, 63), np.uint8)), DamagedFileError, r"it is uint8 \[6, 63\]",
        r"must be uint8 \[N, H, W\] or",
    ),
    "no test images": (
        own(test_x=np.zeros((0, 9, 7), np.uint8), test_y=np.zeros(0, int)), DamagedFileError,
        r"it is uint8 \[0, 9, 7\]", "must be",
    ),
    "labels that are not whole": (
        own(train_y=np.zeros(12)), DamagedFileError, "train_y.*it is float64", "must be whole",
    ),
    "negative labels": (
        own(test_y=-np.ones(6, int)), DamagedFileError, "smallest|-1|negative",
        "must be whole .*>= 0",
    ),
    "too few labels": (
        own(train_y=np.zeros(11, int)), DamagedFileError, r"it is int64 \[11\]",
        r"must be .*\[12\]",
    ),
    "labels one-hot": (
        own(train_y=np.zeros((12, 5), int)), DamagedFileError, r"int64 \[12, 5\]", "must be whole",
    ),
    "a label of a million in twelve images": (
        own(train_y=np.arange(12) * 100_000), DamagedFileError, "label 1,?100,?000", "must|from 0",
    ),
    "pickled labels": (
        own(train_y=np.array([{}] * 12)), DamagedFileError, "pickled", "save it as plain arrays",
    ),
    "images of two sizes": (
        own(test_x=np.zeros((6, 9, 8), np.uint8)), DamagedFileError, "differ in size",
        "must|save|give",
    ),
    "a label that the classes lack": (
        lambda here, patch: known(here, patch, test_y=np.arange(6) + 7), DamagedFileError,
        "label 12 .* 10 classes", "delete it|must|save|get",
    ),
    "a known set that is damaged": (
        lambda here, patch: known(here, patch, test_x=None), DamagedFileError,
        "mnist.npz must hold", "save it with them|delete it",
    ),
    "a name of two lines": (
        lambda *_: advnb.load("my\nset.npz"), FileNotFoundError, "no such file", "check|give|name",
    ),
    "a name of no end": (
        lambda *_: advnb.load("x" * 5000), ValueError, "no data set is called 'xxx", "there are",
    ),
    "a path of no end": (
        lambda *_: advnb.load("x" * 5000 + ".npz"), FileNotFoundError, "no such file",
        "check|give|name",
    ),
    # downloads
    "no network": (
        fetched(False), ConnectionError, "not on this machine .*no network", "put mnist.npz in",
    ),
    "a cache that cannot be written": (
        fetched(True, cache="file/cache"), ConnectionError, "cannot be written", "put mnist.npz in",
    ),
    "a download that fails at length": (
        fetched(True, "the server\nsays no " * 99), ConnectionError, "the server says no",
        "put mnist.npz in",
    ),
    "a fall-back that is not there either": (
        fetched(False, offline="mnist"), ConnectionError, "no network", "put mnist.npz in",
    ),
    # the zoo
    "an unknown model": (
        lambda *_: zoo.load("fonts-cnn-normale"), ValueError, "no model",
        f"did you mean '{LETTERS}'",
    ),
    "a number for a zoo model": (lambda *_: zoo.load(3), ValueError, "no model 3", "lists|did"),
    "a list for a zoo model": (
        lambda *_: zoo.load([LETTERS]), ValueError, "no model|string",
        "there are|did you mean|must",
    ),
    "a card missing": (
        zoo_card(None), FileNotFoundError, f"{LETTERS}.json is missing",
        f"run .* zoo train {LETTERS}",
    ),
    "a card missing from a folder's name": (
        lambda here, _: zoo.load(LETTERS, str(here)), FileNotFoundError,
        f"{LETTERS}.json is missing", f"run .* zoo train {LETTERS}",
    ),
    "a card cut off": (
        zoo_card(b'{"name": "fon'), DamagedFileError, "is not the card of", "train the model again",
    ),
    "a card of brackets": (
        zoo_card(b"[" * 100_000), DamagedFileError, "is not the card of", "train the model again",
    ),
    "a card that is no text": (
        zoo_card(bytes(range(256))), DamagedFileError, "is not the card of",
        "train the model again",
    ),
    "another model's card": (
        other_card, DamagedFileError, "not the card of", "train the model again",
    ),
    "a card of an unknown network": (
        zoo_card_says(network="CNM"), DamagedFileError, "another network", "train it again",
    ),
    "a card of other images": (
        zoo_card_says(shape=[3, 32, 32]), DamagedFileError, "another network", "train it again",
    ),
    "weights missing": (
        zoo_weights(Path.unlink), FileNotFoundError, f"{LETTERS}.safetensors", "train|check",
    ),
    "weights cut off": (
        zoo_weights(lambda path: path.write_bytes(path.read_bytes()[:5000])), DamagedFileError,
        "not a whole safetensors file", "delete it",
    ),
    "weights of one changed bit": (
        zoo_weights(flip_a_bit), DamagedFileError, "its own checksum", "delete it",
    ),
    "another model's weights": (
        zoo_weights(other_weights), DamagedFileError, "not the file its card", "train it again",
    ),
    # checkpoints and tensors
    "a folder for a checkpoint": (
        lambda here, _: trained(here), ValueError, "is a folder", "must name a file",
    ),
    "a number for a checkpoint": (
        lambda *_: trained(3), ValueError, "checkpoint.*3", "must name a file",
    ),
    "a checkpoint below a file": (
        lambda here, _: trained(below_a_file(here)), ValueError, "cannot be written", "name|give",
    ),
    "words for a checkpoint": (
        resumed(lambda path: path.write_text("hello")), DamagedFileError, "safetensors",
        "delete it",
    ),
    "a checkpoint cut off": (
        resumed(lambda path: path.write_bytes(path.read_bytes()[:-9])), DamagedFileError,
        "not a whole", "delete it",
    ),
    "a checkpoint of one changed bit": (
        resumed(flip_a_bit), DamagedFileError, "checksum", "delete it",
    ),
    "a checkpoint without its head": (
        resumed(without_part_of_the_run), DamagedFileError, "lacks part of the run", "delete it",
    ),
    "other tensors for a checkpoint": (
        resumed(lambda path: save_tensors(path, MODEL.state_dict())), ValueError,
        "another kind of file", "name another one",
    ),
    "tensors from nowhere": (
        lambda here, _: load_tensors(here / "tensors"), FileNotFoundError, "no such file",
        "check|name",
    ),
    "tensors from a folder": (
        tensors_of(None), FileNotFoundError, "is a folder", "name a file|a file is",
    ),
    "tensors from words": (tensors_of(b"hello"), DamagedFileError, "not a whole", "delete it"),
    "tensors without a checksum": (without_a_checksum, DamagedFileError, "checksum", "delete it"),
    "tensors below a file": (
        lambda here, _: save_tensors(below_a_file(here), MODEL.state_dict()), OSError,
        "cannot be written", "name|give",
    ),
    # learned manifolds
    "no manifold": (
        manifold_file(Path.unlink), FileNotFoundError, "learned: there is no such file",
        "check|name",
    ),
    "a manifold cut off": (
        manifold_file(lambda path: path.write_bytes(path.read_bytes()[:-9])), DamagedFileError,
        "learned is not a whole", "delete it",
    ),
    "a manifold of one changed bit": (
        manifold_file(flip_a_bit), DamagedFileError, "learned .*checksum", "delete it",
    ),
    "a classifier for a manifold": (
        manifold_file(lambda path: save_tensors(path, MODEL.state_dict())), DamagedFileError,
        "learned holds no learned manifold", "train it again",
    ),
    "a manifold without one of its tensors": (
        manifold_file(without_a_tensor), DamagedFileError, "learned holds no learned manifold",
        "train it again",
    ),
    "a manifold below a file": (
        lambda here, _: MANIFOLD.save(below_a_file(here)), OSError, "cannot be written",
        "name|give",
    ),
    "a sweep whose cache lies below a file": (
        lambda here, _: advnb.curves.run(
            advnb.curves.grid("fonts", ["normal"], [100], [0], ["error"]), cache=below_a_file(here)
        ),
        OSError, "cannot be written", "name|give",
    ),
    # the fonts
    "no folder of fonts": (
        lambda here, _: glyphs.build([here / "fonts"], here / "atlas.npz"), ValueError,
        "no .ttf, .otf or .ttc file in", "name|give|folder",
    ),
    "an empty folder of fonts": (faces(), ValueError, "no .ttf, .otf or .ttc file", "name|give"),
    "a folder without a font": (faces("a.txt"), ValueError, "no .ttf, .otf or .ttc", "name|give"),
    "fonts that are none": (
        faces("a.ttf", "b.ttc"), ValueError, "no usable face among 2", "name|give|must",
    ),
    "a word for the folders": (
        lambda here, _: glyphs.build("zz", here / "atlas.npz"), ValueError, "'zz'",
        "must be a list",
    ),
    "a negative seed for an atlas": (
        lambda here, _: glyphs.build([a_face(here)], here / "atlas.npz", -1), ValueError,
        "seed.*-1", "must be a whole number",
    ),
    # settings
    "an unknown profile": (
        profile, ValueError, "ADVNB_PROFILE is 'coarse'", "set it to one of smoke, course, paper",
    ),
}  # fmt: skip


# --- arguments


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape)


def zeros(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.int64)


def split(x: object, y: object, **more: object) -> Act:
    return lambda *_: Split(x, y, **more)  # type: ignore[arg-type]


def fit(
    recipe: object = NORMAL, model: object = None, data: object = TEN, **options: object
) -> Act:
    """Train on ten letters, a fresh network if none is given."""

    def act(here: Path, patch: Patch) -> object:
        mine = advnb.models.CNN(0) if model is None else model
        settings = {"epochs": 1, "progress": False} | options
        return advnb.fit(mine, data, recipe, **settings)  # type: ignore[arg-type]

    return act


def learned(data: object = TEN, **options: object) -> Act:
    """A step of learning a manifold."""
    settings = vaegan.Settings(steps=1, **options)  # type: ignore[arg-type]
    return lambda *_: vaegan.train(data, settings, progress=False)  # type: ignore[arg-type]


def blind(pairs: object, attack: object = PGD) -> Act:
    return lambda *_: table(MODEL, TEN, attack, pairs, progress=False)  # type: ignore[arg-type]


def shown(kind: type, submit: dict | None = None, **options: object) -> Act:
    """Make a panel, and set its controls."""

    def act(here: Path, patch: Patch) -> object:
        panel = kind(MODEL, TEN, **options)
        return panel.submit(**submit) if submit else panel

    return act


ARGUMENTS: dict[str, Row] = {
    # images
    "arrays for a split": (
        split(np.zeros((1, 1, 2, 2)), np.zeros(1)), ValueError, "got ndarray",
        "must be a float tensor",
    ),
    "images without an axis": (
        split(ones(2, 3, 3), zeros(2)), ValueError, r"\[2, 3, 3\]", r"must be .*\[N, C, H, W\]",
    ),
    "images of bytes": (
        split(ones(2, 1, 3, 3).byte(), zeros(2)), ValueError, "torch.uint8",
        "must be a float tensor",
    ),
    "images without channels": (
        split(ones(2, 0, 3, 3), zeros(2)), ValueError, "no pixels", "must|give|at least",
    ),
    "no images": (
        split(ones(0, 1, 3, 3), zeros(0)), ValueError, "empty", "needs at least one image",
    ),
    "images of NaN": (
        split(ones(2, 1, 3, 3) * NAN, zeros(2)), ValueError, "NaN", "clean the images",
    ),
    "pixels up to 255": (
        split(ones(2, 1, 3, 3) * 255, zeros(2)), ValueError, "to 255", r"must lie in \[0, 1\]",
    ),
    "one label for two images": (
        split(ones(2, 1, 3, 3), zeros(1)), ValueError, r"int64 \[1\]", r"must be int64 \[2\]",
    ),
    "labels of float": (
        split(ones(2, 1, 3, 3), ones(2)), ValueError, "torch.float32", "must be int64",
    ),
    "labels below 0": (
        split(ones(2, 1, 3, 3), zeros(2) - 1), ValueError, "smallest here is -1",
        "must be 0 or more",
    ),
    "codes for other images": (
        split(ones(2, 1, 3, 3), zeros(2), z=ones(3, 6)), ValueError, "z has 3 rows", "2 images",
    ),
    "a number for the codes": (
        split(ones(2, 1, 3, 3), zeros(2), z=3), ValueError, "z .*int", "must be",
    ),
    "an unknown device": (
        lambda *_: TEN.to("gpu"), ValueError, "'gpu'", "must be|one of|there are",
    ),
    "a device that is not there": (
        lambda *_: TEN.to("cuda:99"), ValueError, "cuda:99", "must be|one of|there are|there is",
    ),
    "a word for the order": (
        lambda *_: TEN.shuffled("a"), ValueError, "'a'", "seed must be a whole",
    ),
    "other images for a split, too few": (
        lambda *_: TEN.with_x(ones(9, 1, 28, 28)), ValueError, "9", "must",
    ),
    # data sets
    "no test images at all": (lambda *_: FONTS.test(0), ValueError, "0 were asked for", "160,000"),
    "too many training images": (
        lambda *_: FONTS.train(10**7), ValueError, "10000000 were asked for", "960,000 training",
    ),
    "half a test image": (lambda *_: FONTS.test(2.5), ValueError, "2.5 were asked for", "160,000"),
    "an array of test images": (lambda *_: FONTS.test(SQUARE), ValueError, "asked for", "160,000"),
    "a number for a data set": (lambda *_: advnb.load(3), ValueError, "got 3", "named by a string"),
    "an array for a data set": (
        lambda *_: advnb.load(SQUARE), ValueError, r"got array", "named by a string",
    ),
    "no name for a data set": (
        lambda *_: advnb.load(""), ValueError, "called ''", "there are fonts",
    ),
    "a misspelt data set": (
        lambda *_: advnb.load("mnits"), ValueError, "mnits", "did you mean 'mnist'",
    ),
    "an unknown fall-back": (
        lambda *_: advnb.load("fonts", offline="zz"), ValueError, "'zz'", "offline must name",
    ),
    "a list for a fall-back": (
        lambda *_: advnb.load("fonts", offline=["fonts"]), ValueError, "'fonts'",
        "offline must name",
    ),
    # networks
    "a network for images of two axes": (
        lambda *_: advnb.models.CNN(shape=(28, 28)), ValueError, r"got \(28, 28\)", "must be three",
    ),
    "a network for a word": (
        lambda *_: advnb.models.MLP(shape="1x28x28"), ValueError, "got '1x28x28'", "must be three",
    ),
    "a network of no classes": (
        lambda *_: advnb.models.CNN(classes=0), ValueError, "got 0", "classes must be",
    ),
    "a network for small images": (
        lambda *_: advnb.models.CNN(shape=(1, 4, 4)), ValueError, "1x4x4", "needs larger images",
    ),
    "another network for small images": (
        lambda *_: advnb.models.WRM(shape=(3, 8, 8)), ValueError, "3x8x8", "needs larger images",
    ),
    "a word for a network's seed": (
        lambda *_: advnb.models.CNN("a"), ValueError, "'a'", "seed must be a whole number",
    ),
    "a function to wrap": (
        lambda *_: advnb.models.wrap(len, [0.5], [0.5]), ValueError, "got builtin",
        "must be a torch.nn",
    ),
    "a mean longer than std": (
        lambda *_: advnb.models.wrap(MODEL, [0.5] * 3, [0.5]), ValueError, "3 numbers and std 1",
        "one a channel",
    ),
    "a mean of no list": (
        lambda *_: advnb.models.wrap(MODEL, 0.5, 0.5), ValueError, "got 0.5", "must be lists",
    ),
    "a mean up to 255": (
        lambda *_: advnb.models.wrap(MODEL, [128], [50]), ValueError, r"got \[128.0\]",
        "divide by 255",
    ),
    "a std of 0": (
        lambda *_: advnb.models.wrap(MODEL, [0.5], [0]), ValueError, r"\[0.0\]", r"std in \(0, 1\]",
    ),
    # attacks
    "a negative radius": (
        lambda *_: Pixels(-0.1), ValueError, "eps .* got -0.1", "must be a positive",
    ),
    "a radius of NaN": (lambda *_: Pixels(NAN), ValueError, "eps .* got nan", "must be a positive"),
    "an endless radius": (
        lambda *_: Pixels(float("inf"), "l2"), ValueError, "eps .* got inf", "must be a positive",
    ),
    "words for a radius": (lambda *_: Pixels("0.1"), ValueError, "got '0.1'", "must be a positive"),
    "an array for a radius": (
        lambda *_: Pixels(SQUARE), ValueError, "got array", "must be a positive",
    ),
    "a text of no end for a radius": (
        lambda *_: Pixels("0.1" * 999), ValueError, "got '0.10.1", "must be a positive",
    ),
    "an unknown norm": (
        lambda *_: Pixels(0.1, "l1"), ValueError, "norm .* got 'l1'", 'must be "linf"',
    ),
    "a radius in 255ths": (
        lambda *_: Pixels(8), ValueError, "eps .* got 8:", "8/255 say",
    ),
    "a function for lr that returns nothing": (
        lambda *_: Attack(Pixels(0.1), lr=lambda t: None, keep="strongest")(MODEL, TEN), ValueError,
        "lr.1. .* got None", "must be a number",
    ),
    "an attack of -1 steps": (
        lambda *_: Attack(Pixels(0.1), steps=-1), ValueError, "steps .* got -1", "must be a whole",
    ),
    "half a step": (
        lambda *_: Attack(Pixels(0.1), steps=2.5), ValueError, "steps .* got 2.5",
        "must be a whole",
    ),
    "an attack of no start": (
        lambda *_: Attack(Pixels(0.1), restarts=0), ValueError, "restarts .* got 0",
        "must be a whole",
    ),
    "steps of no length": (
        lambda *_: Attack(Pixels(0.1), lr=0), ValueError, "lr .* got 0",
        "must be a positive number",
    ),
    "a truth value for lr": (
        lambda *_: Attack(Pixels(0.1), lr=True), ValueError, "lr .* got True", "must be a positive",
    ),
    "an unknown optimizer": (
        lambda *_: Attack(Pixels(0.1), optimizer="sgd"), ValueError, "got 'sgd'",
        "one of .*adam.*sign",
    ),
    "an unknown start": (
        lambda *_: Attack(Pixels(0.1), start="random"), ValueError, "got 'random'",
        "one of .*uniform",
    ),
    "an unknown loss": (
        lambda *_: Attack(Pixels(0.1), loss="hinge"), ValueError, "got 'hinge'", 'must be "ce"',
    ),
    "a list for a loss": (
        lambda *_: Attack(Pixels(0.1), loss=["ce"]), ValueError, r"got \['ce'\]", "loss must be",
    ),
    "to keep what there is not": (
        lambda *_: Attack(Pixels(0.1), keep="best"), ValueError, "got 'best'",
        "must be one of .*first",
    ),
    "an attack on batches of none": (
        lambda *_: Attack(Pixels(0.1), batch_size=0), ValueError, "batch_size .* got 0",
        "must be a wh",
    ),
    "a class for a set": (
        lambda *_: Attack(Pixels), ValueError, "got <class", "must be a perturbation",
    ),
    "a model for a set": (
        lambda *_: Attack(MODEL), ValueError, "got CNN", "must be a perturbation set",
    ),
    "a word for an attack's seed": (
        lambda *_: Attack(Pixels(0.1), seed="a")(MODEL, TEN), ValueError, "'a'",
        "seed must be a whole",
    ),
    "arguments swapped": (
        lambda *_: PGD(TEN, MODEL), ValueError, "got Split", "must be a torch.nn.Mod",
    ),
    "nothing for the split": (
        lambda *_: PGD(MODEL, None), ValueError, "got NoneType", "a Split is need",
    ),
    "a success rate over pixels": (
        lambda *_: PGD(MODEL, TEN).success_rate("pixels"), ValueError, "got 'pixels'",
        'must be "pairs"',
    ),
    "a success rate of another reading": (
        lambda *_: PGD(MODEL, TEN).success_rate(correct="code"), ValueError, "got 'code'",
        'must be "x" or "reconstruction"',
    ),
    "a limit of codes for pixels": (
        lambda *_: PGD(MODEL, TEN).success_rate(code_limit=2), ValueError, "not for pixels",
        "is for sets that search a code",
    ),
    "a limit of codes of 0": (
        lambda *_: PGD(MODEL, TEN).success_rate(code_limit=0), ValueError, "code_limit .* got 0",
        "must be a positive",
    ),
    "a ball of codes of 0": (
        lambda *_: OnManifold(FONTS.manifold, 0), ValueError, "eta .* got 0", "must be a positive",
    ),
    "a ball of transforms below 0": (
        lambda *_: Affine(-0.3), ValueError, "eta .* got -0.3", "must be a positive",
    ),
    "a data set for a manifold": (
        lambda *_: OnManifold(FONTS, 0.3), ValueError, "got Dataset", "data.manifold say",
    ),
    # manifolds
    "a manifold that does not ship": (
        lambda *_: LearnedManifold.load("cifar10"), ValueError, "'flow' of 'cifar10' ships",
        "only of fonts .*vaegan train",
    ),
    "an unknown kind of manifold": (
        lambda *_: LearnedManifold.load("fonts", "gan"), ValueError, "'gan' of 'fonts' ships",
        "only of fonts .*vaegan train",
    ),
    "a number for a manifold's data": (
        lambda *_: LearnedManifold.load(3), ValueError, "of 3 ships", "only of fonts .*vaegan tr",
    ),
    "codes within 0": (
        lambda *_: MANIFOLD.within(0), ValueError, "limit .* got 0", "must be a positive",
    ),
    "endless samples": (
        lambda *_: MANIFOLD.sample(zeros(2), limit=float("inf")), ValueError, "limit .* got inf",
        "must be a positive",
    ),
    "samples of float labels": (
        lambda *_: MANIFOLD.sample(ones(2)), ValueError, "float32", "must be int64",
    ),
    "a word for a sample's seed": (
        lambda *_: MANIFOLD.sample(zeros(2), seed="a"), ValueError, "seed .* got 'a'",
        "must be a whole",
    ),
    "images on a line to other letters": (
        lambda *_: MANIFOLD.interpolate(TEN, TEN[::-1]), ValueError, "interpolation",
        "needs images of the same classes",
    ),
    "one image on a line": (
        lambda *_: MANIFOLD.interpolate(TEN, TEN, 1), ValueError, "steps .* got 1",
        "must be a whole number >= 2",
    ),
    "learned codes of six numbers": (
        lambda *_: MANIFOLD.decode(ones(10, 6), TEN), ValueError, r"got .*\[10, 6\]",
        r"must be floats \[10, 10\]",
    ),
    "learned codes far outside": (
        lambda *_: MANIFOLD.decode(9 * ones(10, 10), TEN), ValueError, "z lies far outside",
        "see manifold.bounds",
    ),
    "learned codes of NaN": (
        lambda *_: MANIFOLD.decode(NAN * ones(10, 10), TEN), ValueError, "z lies far outside",
        "see manifold.bounds",
    ),
    "a tensor for a learned manifold": (
        lambda *_: MANIFOLD.encode(TEN.x), ValueError, "got tensor", "must be a Split",
    ),
    "nearest images of NaN": (
        lambda *_: MANIFOLD.nearest(TEN.x * NAN, TEN), ValueError, r"got \[10, 1, 28, 28\]",
        "must be finite images",
    ),
    "nearest images of other images": (
        lambda *_: MANIFOLD.distance(TEN.x[:9], TEN), ValueError, r"got \[9, 1, 28, 28\]",
        r"must be .*\[10, 1, 28, 28\]",
    ),
    "more neighbours than images": (
        lambda *_: NeighbourManifold(TEN, 11), ValueError, "got 11", "k must be at most the 10",
    ),
    "labels for a letter's images": (
        lambda *_: to_letter(TEN.x, TEN.y[:9], FONTS.manifold), ValueError, "letter must be",
        r"a label of 0 to 9 an image, \[10\]",
    ),
    # learning a manifold
    "an unknown kind to learn": (
        lambda *_: vaegan.Settings("gan"), ValueError, "got 'gan'", "must be one of flow, vaegan",
    ),
    "networks of no width": (
        lambda *_: vaegan.Settings(width=0), ValueError, "width .* got 0", "must be a whole",
    ),
    "a kernel of 5": (
        lambda *_: vaegan.Settings(kernel=5), ValueError, "got 5", "must be even, 4 or 6",
    ),
    "a kernel of 2": (
        lambda *_: vaegan.Settings(kernel=2), ValueError, "kernel .* got 2", "number >= 4",
    ),
    "no steps to learn in": (
        lambda *_: vaegan.Settings(steps=0), ValueError, "steps .* got 0", "must be a whole",
    ),
    "words for what weighs a reconstruction": (
        lambda *_: vaegan.Settings(beta="3"), ValueError, "beta .* got '3'", "must be a positive",
    ),
    "a class that weighs nothing": (
        lambda *_: vaegan.Settings(beta=(3.0, 0.0)), ValueError, "beta .* got 0.0",
        "must be a positive",
    ),
    "half a seed to learn from": (
        lambda *_: vaegan.Settings(seed=0.5), ValueError, "seed .* got 0.5", "must be a whole",
    ),
    "two weights for ten classes": (
        learned(kind="vaegan", beta=(1.0, 2.0)), ValueError, "got 2",
        "beta must be one number or 10, one a model",
    ),
    "pixels of 0 and 1": (
        own(train_x=np.eye(63, dtype=np.uint8)[:12].reshape(12, 9, 7)), DamagedFileError,
        "train_x is 1 of 255", "save them as 0 to 255",
    ),
    "pixels of 0 to 16": (
        own(test_x=np.arange(378, dtype=np.uint8).reshape(6, 9, 7) % 17), DamagedFileError,
        "test_x is 16 of 255", "save them as 0 to 255",
    ),
    "labels from 1": (
        own(train_y=np.arange(12) % 3 + 1, test_y=np.arange(6) % 3 + 1), DamagedFileError,
        "the smallest of these is 1", "must count from 0",
    ),
    "labels from 1 in a file of a known name": (
        lambda here, _: advnb.load(
            npz(here, "mnist", train_y=np.arange(12) % 3 + 1, test_y=np.arange(6) % 3 + 1)
        ),
        DamagedFileError, "the smallest of these is 1", "must count from 0",
    ),
    "a class without images": (
        learned(TEN[:9]), ValueError, "no image is of class J", "give it some",
    ),
    "a data set to learn from": (
        learned(FONTS), ValueError, "got Dataset", r"data.train\(\) say",
    ),
    "images of no set to learn from": (
        learned(Split(TEN.x, TEN.y)), ValueError, "got Split", r"must be one of a data set",
    ),
    "images too small to learn": (
        lambda here, _: vaegan.train(advnb.load(npz(here)).train(), progress=False), ValueError,
        r"these are \(1, 9, 7\)", "must be 8 pixels or more",
    ),
    # accuracy
    "a tensor for the split": (
        lambda *_: advnb.accuracy(MODEL, TEN.x), ValueError, "got Tensor", "a Split is needed",
    ),
    "a data set for the split": (
        lambda *_: advnb.accuracy(MODEL, FONTS), ValueError, "got Dataset",
        r"use its \.train\(n\) or",
    ),
    "a function for the model": (
        lambda *_: advnb.accuracy(len, TEN), ValueError, "got builtin", "must be a torch.nn.Module",
    ),
    "a batch of none": (
        lambda *_: advnb.accuracy(MODEL, TEN, 0), ValueError, "batch_size .* got 0",
        "must be a whole",
    ),
    "words for a batch": (
        lambda *_: advnb.accuracy(MODEL, TEN, "all"), ValueError, "got 'all'",
        "must be a whole number",
    ),
    # recipes
    "no attack": (
        lambda *_: recipes.adversarial(None), ValueError, "got None", "an Attack is needed",
    ),
    "a set for an attack": (
        lambda *_: recipes.adversarial(Pixels(0.1)), ValueError, "got Pixels",
        "an Attack is needed",
    ),
    "a model for an attack": (
        lambda *_: recipes.adversarial(MODEL), ValueError, "got CNN", "an Attack is needed",
    ),
    "no part attacked": (
        lambda *_: recipes.adversarial(PGD, 0), ValueError, "got 0",
        r"fraction must be a number in \(0, 1\]",
    ),
    "words for a fraction": (
        lambda *_: recipes.adversarial(PGD, "half"), ValueError, "got 'half'", "fraction must",
    ),
    "half an image a batch": (
        lambda *_: recipes.normal(batch_size=2.5), ValueError, "got 2.5",
        "batch_size must be a whole",
    ),
    "a batch that cannot be shared": (
        lambda *_: recipes.adversarial(PGD, batch_size=1), ValueError, "too small",
        "must|at least|larg",
    ),
    "a warm-up before the start": (
        lambda *_: recipes.normal(warmup=-1), ValueError, "got -1",
        "warmup must be a number .* >= 0",
    ),
    "a warm-up of NaN": (
        lambda *_: recipes.normal(warmup=NAN), ValueError, "got nan", "warmup must be",
    ),
    "an endless warm-up": (
        lambda *_: recipes.normal(warmup=float("inf")), ValueError, "got inf", "warmup must be",
    ),
    "shares of a half": (
        lambda *_: recipes.Recipe((recipes.Part(0.5),)), ValueError, r"got \[0.5\]",
        "must .* sum to 1",
    ),
    "no parts": (
        lambda *_: recipes.Recipe(()), ValueError, r"got \[\]", "must be positive and sum to 1",
    ),
    "a part for the parts": (
        lambda *_: recipes.Recipe(recipes.Part(1.0)), ValueError, "Part", "must be|tuple",
    ),
    "numbers for the parts": (
        lambda *_: recipes.Recipe((0.5, 0.5)), ValueError, "0.5",
        "must be .*Part|Parts? (is|are) needed",
    ),
    "a set for a part's attack": (
        lambda *_: recipes.Recipe((recipes.Part(1.0, Pixels(0.1)),)), ValueError, "Pixels",
        "must be|an Attack is needed",
    ),
    # training
    "no recipe": (fit(None), ValueError, "got None", "fit needs a Recipe"),
    "a recipe not called": (fit(recipes.normal), ValueError, "got <function", "fit needs a Recipe"),
    "a model for a recipe": (fit(MODEL), ValueError, "got CNN", "fit needs a Recipe"),
    "no epochs": (fit(epochs=0), ValueError, "got 0", "epochs must be a whole number >= 1"),
    "epochs backwards": (
        fit(epochs=-1), ValueError, "got -1", "epochs must be a whole number >= 1",
    ),
    "half an epoch": (fit(epochs=2.5), ValueError, "got 2.5", "epochs must be a whole number >= 1"),
    "no seed for training": (fit(seed=None), ValueError, "None", "seed must be a whole number"),
    "a number for a schedule": (
        lambda *_: recipes.normal(schedule=0.01), ValueError, "0.01", "schedule must be",
    ),
    "a decay from below 0": (
        lambda *_: recipes.Decay(-0.01), ValueError, "start .* got -0.01", "a positive number",
    ),
    "a decay from nowhere": (
        lambda *_: recipes.Decay(NAN), ValueError, "start .* got nan", "a positive number",
    ),
    "a schedule that falls below 0": (
        fit(recipes.normal(schedule=lambda epoch, epochs: -0.1)), ValueError,
        "rate .* got -0.1", "a number >= 0",
    ),
    "a schedule of a text": (
        fit(recipes.normal(schedule=lambda epoch, epochs: "slow")), ValueError,
        "rate .* got 'slow'", "a number >= 0",
    ),
    "a cycle of no number": (
        fit(recipes.normal(schedule=recipes.OneCycle(NAN))), ValueError,
        "rate .* got nan", "a number >= 0",
    ),
    "pixels of small codes": (
        fit(recipes.adversarial(PGD, within=2.0)), ValueError, "not for pixels",
        "within is for sets that search a code",
    ),
    "one beta": (lambda *_: recipes.normal(betas=0.9), ValueError, "0.9", "betas must"),
    "a beta of 2": (
        lambda *_: recipes.normal(betas=(2.0, 0.9)), ValueError, "2.0", "betas must|must lie",
    ),
    "a negative weight decay": (
        lambda *_: recipes.normal(weight_decay=-1), ValueError, "-1", "weight_decay must be",
    ),
    # blind spots
    "an array to scale": (
        lambda *_: advnb.scale_shift(np.zeros((1, 1, 2, 2)), 0.9, 0), ValueError, "got ndarray",
        "must be a float tensor",
    ),
    "images of none to scale": (
        lambda *_: advnb.scale_shift(ones(0, 1, 2, 2), 0.9, 0), ValueError,
        r"empty|none|\[0, 1, 2, 2\]", "must|at least one",
    ),
    "contrast of 0": (
        lambda *_: advnb.scale_shift(TEN.x, 0, 0), ValueError, "got 0",
        "alpha must be a positive",
    ),
    "words for beta": (
        lambda *_: advnb.scale_shift(TEN.x, 0.9, "a"), ValueError, "'a'",
        "must be a number",
    ),
    "pixels moved out of range": (
        lambda *_: advnb.scale_shift(TEN.x, 0.9, 0.2), ValueError, "moves pixels to",
        "choose beta with",
    ),
    "a shift of NaN": (
        lambda *_: advnb.scale_shift(TEN.x, 0.9, NAN), ValueError, "got nan",
        "must be a number",
    ),
    "words for alpha": (
        lambda *_: advnb.valid_shift("a"), ValueError, "'a'", r"must be a number in \(0, 1\]",
    ),
    "an array for alpha": (
        lambda *_: advnb.valid_shift(SQUARE), ValueError, "array", r"must be a number in \(0, 1\]",
    ),
    "alpha above 1": (lambda *_: advnb.valid_shift(2), ValueError, "2", "must be a number in"),
    "an invalid late pair": (
        blind([(1, 0), (0.9, 0.2)]), ValueError, "beta = 0.2 is not valid",
        "may go from -0.05 to 0.05",
    ),
    "words in a pair": (blind([(0.9, "b")]), ValueError, "'b'", "must|may go from"),
    "half a pair": (blind([(0.9,)]), ValueError, r"0.9", "must|pairs"),
    "numbers for pairs": (blind([0.9, 0.8]), ValueError, "0.9", "must|pairs"),
    "a number for the pairs": (blind(0.9), ValueError, "0.9", "must|pairs"),
    "a table of no attack": (blind(None, None), ValueError, "got None", "an Attack is needed"),
    # panels
    "a panel above its sliders": (
        shown(BlindspotPanel, eps=2), ValueError, "eps .* got 2", "number between 0.005 and 0.5",
    ),
    "a panel of NaN": (
        shown(AttackPanel, eps=NAN), ValueError, "eps .* got nan", "number between",
    ),
    "words for a panel's radius": (shown(AttackPanel, eps="a"), ValueError, "eps.*'a'", "must"),
    "nothing for a panel's steps": (
        shown(AttackPanel, steps=None), ValueError, "steps.*None", "must",
    ),
    "half an image for a panel": (shown(AttackPanel, image=0.5), ValueError, "image.*0.5", "must"),
    "a panel past its images": (
        shown(AttackPanel, image=99), ValueError, "image .* got 99", "number between 0 and 9",
    ),
    "a panel of an unknown control": (
        shown(AttackPanel, show=["colour"]), ValueError, "no control is called 'colour'",
        "there are image, eps",
    ),
    "a panel with an invalid shift": (
        shown(BlindspotPanel, alpha=0.9, beta=0.2), ValueError, "beta", "may go from -0.05 to 0.05",
    ),
    "words for a panel's shift": (
        shown(BlindspotPanel, alpha=0.9, beta="a"), ValueError, "beta.*'a'", "must|may go from",
    ),
    "a panel of too little contrast": (
        shown(BlindspotPanel, alpha=0.2), ValueError, "alpha .* got 0.2",
        "number between 0.5 and 1",
    ),
    "a panel of no images": (
        shown(BlindspotPanel, images=0), ValueError, "got 0", "images must be a whole number >= 1",
    ),
    "a panel without a split": (
        lambda *_: AttackPanel(MODEL, None), ValueError, "got NoneType", "a Split is needed",
    ),
    "a panel of a function": (
        lambda *_: BlindspotPanel(len, TEN), ValueError, "got builtin", "must be a torch.nn.Module",
    ),
    "a box of no size for a panel": (
        shown(LatentPanel, eta=0), ValueError, "eta .* got 0", "number between 0.01 and 1",
    ),
    "a code past its images": (
        shown(LatentPanel, image=99), ValueError, "image .* got 99", "number between 0 and 9",
    ),
    "codes of images from nowhere": (
        lambda *_: LatentPanel(MODEL, Split(TEN.x, TEN.y)), ValueError, "no known manifold",
        "give a LearnedManifold",
    ),
    "codes of a manifold of other images": (
        lambda *_: LatentPanel(WIDE_MODEL, WIDE, MANIFOLD), ValueError, r"got \(3, 32, 32\)",
        r"makes images \(1, 28, 28\)",
    ),
    "codes without a split": (
        lambda *_: LatentPanel(MODEL, FONTS), ValueError, "got Dataset", r"use its .train\(n\)",
    ),
    "steps of images from nowhere": (
        lambda *_: StepPanel(MODEL, Split(TEN.x, TEN.y), {"pgd": PGD}), ValueError,
        "no known manifold", "give a LearnedManifold",
    ),
    "steps of no attack": (
        lambda *_: StepPanel(MODEL, TEN, {}), ValueError, "attacks must", "regular.*Attack",
    ),
    "steps of words": (
        lambda *_: StepPanel(MODEL, TEN, {"pgd": "pgd"}), ValueError, "attacks must",
        "regular.*Attack",
    ),
    "steps past their images": (
        lambda *_: StepPanel(MODEL, TEN, {"pgd": PGD}, image=10), ValueError, "image .* got 10",
        "number between 0 and 9",
    ),
    # planes
    "a plane of one cell": (
        lambda *_: plane(MODEL, TEN[0], TEN[1].x, TEN[2].x, cells=1), ValueError, "got 1",
        "cells must be a whole number >= 2",
    ),
    "a plane of ten images": (
        lambda *_: plane(MODEL, TEN, TEN.x, TEN.x, cells=2), ValueError, "one FONTS image",
        "needs a split of one",
    ),
    "a plane through a line": (
        lambda *_: plane(MODEL, TEN[0], TEN[1].x, TEN[1].x, cells=2), ValueError, "on a line",
        "give others",
    ),
    "a plane of images from nowhere": (
        lambda *_: plane(MODEL, Split(TEN.x, TEN.y)[0], TEN[1].x, TEN[2].x, cells=2), ValueError,
        "one FONTS image", "needs a split",
    ),
    # numbers
    "no seed": (
        lambda *_: stats.generator(None), ValueError, "None", "a seed must be a whole number",
    ),
    "half a seed": (
        lambda *_: stats.generator(1, 0.5), ValueError, "0.5", "a seed must be a whole",
    ),
    "an array for a seed": (
        lambda *_: stats.generator(SQUARE), ValueError, "array", "a seed must be a whole number",
    ),
    "a list for a rate": (lambda *_: stats.rate([True]), ValueError, "list", "must be"),
    "a test of two lengths": (
        lambda *_: stats.mcnemar(ones(3) > 0, ones(4) > 0), ValueError, "3.*4",
        "must be|same images",
    ),
}  # fmt: skip


# --- states


class Made(nn.Module):
    """A small network whose logits go through a function."""

    def __init__(self, change: Callable[[Tensor], object], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = advnb.models.CNN(0) if inner is None else inner
        self.change = change
        self.eval()

    def forward(self, x: Tensor) -> object:
        return self.change(self.inner(x))


def looked(model: nn.Module, data: Split = TEN) -> Act:
    return lambda *_: advnb.accuracy(model, data)


class Bare:
    """A set that cannot decode."""

    def region(self, split: Split) -> object:
        return advnb.Pixels(0.1).region(split)


class Decoding(Bare):
    """A set whose images are made from their pixels."""

    norm = "linf"

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        self.make = make

    def decode(self, code: Tensor, split: Split) -> Tensor:
        return self.make(code)


class Bounded:
    """A manifold whose bounds are numbers."""

    bounds = (-1, 1)


def attacked(model: nn.Module = MODEL, data: Split = TEN, **options: object) -> Act:
    attack = replace(PGD, **options)  # type: ignore[arg-type]
    return lambda *_: attack(model, data)


def picked(key: object) -> Act:
    return lambda *_: TEN[key]  # type: ignore[index]


def spoilt() -> nn.Module:
    """A network with NaN among its weights."""
    model = advnb.models.CNN(0)
    with torch.no_grad():
        model.head.weight.fill_(NAN)  # type: ignore[operator]
    return model.eval()


def complain(output: Tensor) -> Tensor:
    raise RuntimeError("this is wrong\nand so is that")


WIDE = Split(torch.rand(4, 3, 32, 32), zeros(4))
SMALL = Split(torch.rand(4, 1, 20, 20), zeros(4))
WIDE_MODEL = advnb.models.CNN(0, shape=(3, 32, 32)).eval()
ON = Attack(OnManifold(FONTS.manifold, 0.3), steps=1)
LETTER_K = Split(TEN.x, TEN.y + 3)
FIT = "must|give|made for|check"  # how to mend images and a model that do not fit


def atlas(content: Callable[[Path], object]) -> Act:
    """Look at a letter where the atlas is another file."""

    def act(here: Path, patch: Patch) -> object:
        content(here / "atlas.npz")
        patch.setattr(fonts, "ATLAS", here / "atlas.npz")
        patch.setattr(fonts, "read_atlas", fonts.read_atlas.__wrapped__)  # and nothing is kept
        return advnb.load("fonts").test(100).x  # of ten faces

    return act


def few_faces(path: Path) -> None:
    arrays = files.load_arrays(fonts.ATLAS, ("glyphs", "names", "licences", "licence"))
    np.savez(path, **(arrays | {"glyphs": arrays["glyphs"][:5]}))  # type: ignore[arg-type]


def other_run(**options: object) -> Act:
    return resumed(lambda path: None, **options)


def used_after(end: Callable[[AttackPanel], object], **submit: object) -> Act:
    """Set a panel's controls after it has ended."""

    def act(here: Path, patch: Patch) -> object:
        panel = AttackPanel(MODEL, TEN, steps=1)
        end(panel)
        return panel.submit(**submit)

    return act


def huge() -> nn.Module:
    model = advnb.models.CNN(0)
    nn.init.constant_(model.head.bias, 1e5)
    return model


STATES: dict[str, Row] = {
    # images and models that do not fit
    "images of another size": (
        looked(MODEL, WIDE), ValueError, "cannot read .* images of 3x32x32", FIT,
    ),
    "an attack on images of another size": (
        attacked(MODEL, SMALL), ValueError, "cannot read .* images of 1x20x20", FIT,
    ),
    "training on images of another size": (
        fit(model=advnb.models.MLP(0), data=SMALL), ValueError, "cannot read .* of 1x20x20", FIT,
    ),
    "a mean of three channels on grey images": (
        looked(advnb.models.wrap(MODEL, [0.5] * 3, [0.5] * 3)), ValueError,
        "cannot read .* of 1x28x28", FIT,
    ),
    "a model that wants rows": (
        looked(nn.Sequential(nn.BatchNorm1d(784), nn.Flatten())), ValueError,
        "cannot read .* 1x28x28", FIT,
    ),
    "a model of float64": (
        looked(advnb.models.CNN(0).double()), ValueError, "read torch.float32", "call its .to",
    ),
    "a model without forward": (
        looked(nn.Module()), ValueError, "cannot read .* missing .*forward", FIT,
    ),
    "a model that complains in two lines": (
        looked(Made(complain)), ValueError, "cannot read .*this is wrong", FIT,
    ),
    "labels beyond the model's classes": (
        looked(MODEL, LETTER_K), ValueError, "label 12 .* 10 classes",
        "must|give|make|needs|from 0",
    ),
    "training on labels beyond the classes": (
        fit(data=LETTER_K), ValueError, "label 12 .* 10 classes", "must|give|make|needs|from 0",
    ),
    # outputs
    "a model of NaN": (looked(spoilt()), ValueError, "returned NaN", "check its weights"),
    "an attack on a model of NaN": (
        attacked(spoilt()), ValueError, "returned NaN", "check its weights",
    ),
    "training a model of NaN": (
        fit(model=spoilt()), ValueError, "returned NaN", "check its weights",
    ),
    "a model of two outputs": (
        looked(Made(lambda o: (o, o))), ValueError, "gave tuple",
        r"must return logits \[8, classes\]",
    ),
    "a model of one number": (
        looked(Made(lambda o: o.mean())), ValueError, r"float32 \[\]", r"must return logits",
    ),
    "a model of one number an image": (
        attacked(Made(lambda o: o[:, 0])), ValueError, r"float32 \[8\]", r"must return logits",
    ),
    "probabilities of too many axes": (
        attacked(Made(lambda o: o.softmax(1)[:, None])), ValueError, r"float32 \[8, 1, 10\]",
        "must return",
    ),
    "a model of too few rows": (
        looked(Made(lambda o: o[:3])), ValueError, r"float32 \[3, 10\]",
        r"must return logits \[8, classes\]",
    ),
    "a model of whole numbers": (
        attacked(Made(lambda o: o.long())), ValueError, "int64|whole", "must return",
    ),
    # training
    "a frozen model": (
        fit(model=advnb.models.CNN(0).requires_grad_(False)), ValueError, "no parameter to train",
        r"requires_grad_?\(",
    ),
    "a model of no parameters": (
        fit(model=nn.Flatten()), ValueError, "no parameter", "must|give|needs|requires_grad_?\\(",
    ),
    "training a model cut off from its weights": (
        fit(model=Made(lambda o: o.detach())), ValueError, "way back|gradient|cut off",
        "must|keep|remove",
    ),
    "batch normalisation over one row": (
        fit(recipes.normal(batch_size=1), advnb.models.MLP(0)), ValueError,
        "batch|one image|1 value", "must|larger|at least",
    ),
    "weights that fly off": (
        fit(recipes.normal(schedule=recipes.Decay(1e30)), epochs=3), ValueError,
        "diverged to NaN", "lower",
    ),
    "a checkpoint of another seed": (
        other_run(seed=1), OtherRunError, "another run", "delete it or name another file",
    ),
    "a checkpoint of fewer epochs": (
        other_run(epochs=2), OtherRunError, "another run .*epochs",
        "delete it or name another file",
    ),
    # losses and the way back
    "an attack on a model cut off from the image": (
        attacked(Made(lambda o: o.detach())), ValueError, "the model's output is cut off",
        r"remove detach\(\)",
    ),
    "a set that lacks a part": (
        lambda *_: Attack(Bare()), ValueError, "lacks decode", "see PerturbationSet",
    ),
    "a set whose images are of another size": (
        attacked(set=Decoding(lambda c: c[..., :9])), ValueError,
        r"make images \[8, 1, 28, 28\]; its decode gave \[8, 1, 28, 9\]", "must",
    ),
    "a set of NaN": (
        attacked(set=Decoding(lambda c: c * NAN)), ValueError, "hold NaN", "check its decode",
    ),
    "a set cut off from its code": (
        attacked(set=Decoding(lambda c: c.detach())), ValueError, "images are cut off",
        r"remove detach\(\)",
    ),
    "bounds that are numbers": (
        lambda *_: OnManifold(Bounded(), 0.3), ValueError, r"got \(-1, 1\)", "must be two tensors",
    ),
    "distances in place of a manifold": (
        lambda *_: OnManifold(NeighbourManifold(TEN, k=3), 0.3), ValueError, "has no codes",
        "must be a manifold",
    ),
    "half precision to train in": (
        lambda *_: advnb.fit(
            advnb.models.CNN(0).half(), TEN.with_x(TEN.x.half()), advnb.recipes.normal(),
            progress=False,
        ),
        ValueError, "float16 is too coarse", "take float32",
    ),
    "a checkpoint's loss that is a module": (
        lambda here, _: advnb.fit(
            advnb.models.CNN(0), TEN,
            advnb.recipes.adversarial(replace(PGD, loss=nn.CrossEntropyLoss(reduction="none"))),
            checkpoint=here / "run", progress=False,
        ),
        ValueError, "CrossEntropyLoss.* says too little", "give it a function with a name",
    ),
    "no image that is right": (
        lambda *_: advnb.find_blindspot(
            MODEL, Split(TEN.x, (advnb.models.logits(MODEL, TEN).argmax(1) + 1) % 10),
            progress=False,
        ),
        ValueError, "gets none of these images right", "look at labels and model",
    ),
    "a loss of one number": (
        attacked(loss=lambda o, y: o.mean()), ValueError, r"returned \[\]",
        "must return one number per",
    ),
    "a loss of one number a class": (
        attacked(loss=lambda o, y: o), ValueError, r"returned \[10, 10\]",
        "must return one number per",
    ),
    "a loss that is no tensor": (
        attacked(loss=lambda o, y: 0.5), ValueError, "float", "must return .*one number per image",
    ),
    "a loss cut off from the image": (
        attacked(loss=lambda o, y: o.detach()[:, 0]), ValueError, "loss",
        "must .* keep the way back",
    ),
    "a loss of NaN": (
        attacked(loss=lambda o, y: o[:, 0] * NAN), ValueError, "the loss is NaN",
        "check the loss funct",
    ),
    # selections
    "a range of nothing": (
        picked(slice(5, 5)), IndexError, "selects nothing", "split of 10 images",
    ),
    "a list of nothing": (picked([]), IndexError, r"\[\] selects nothing", "split of 10 images"),
    "a mask of nothing": (
        picked(torch.zeros(10, dtype=torch.bool)), IndexError, "selects nothing",
        "split of 10 images",
    ),
    "a mask of another length": (
        picked(torch.tensor([True, False, True])), IndexError, "mask of 3", "must be|split of 10",
    ),
    "an image past the end": (
        picked(99), IndexError, "99", "split of 10|must|from 0 to 9|there are 10",
    ),
    "images past the end": (
        picked([3, 99]), IndexError, "99", "split of 10|must|from 0 to 9|there are 10",
    ),
    "words for an index": (
        picked(["a"]), IndexError, r"got \['a'\]|selects", "indexed by whole numbers",
    ),
    "nothing for an index": (picked([None]), IndexError, r"\[None\]", "indexed by whole numbers"),
    "half an index": (
        picked([0.5]), IndexError, r"got \[0.5\]", "indexed by whole numbers or a mask",
    ),
    "an index of rows": (
        picked([[0, 1], [2, 3]]), IndexError, r"got \[\[0, 1\]",
        "indexed by whole numbers or a mask",
    ),
    "a tensor of rows for an index": (
        picked(torch.zeros(9, 9)), IndexError, r"got tensor", "indexed by whole numbers or a mask",
    ),
    # the atlas and the manifold
    "an atlas that is not there": (
        atlas(lambda path: None), FileNotFoundError, "atlas.npz",
        "build|install|check|get it again",
    ),
    "a damaged atlas": (
        atlas(lambda path: path.write_bytes(b"PK\3\4hello")), DamagedFileError,
        "atlas.npz is damaged", "delete it and get it again",
    ),
    "an atlas without glyphs": (
        atlas(lambda path: np.savez(path, names=np.zeros(3))), DamagedFileError,
        "atlas.npz .*glyphs", "must hold the arrays",
    ),
    "an atlas of five faces": (
        atlas(few_faces), DamagedFileError, "atlas.npz .*5", "needs|must|get it again|build",
    ),
    "codes of other images": (
        lambda *_: FONTS.manifold.encode(WIDE), ValueError, "only FONTS images",
        "load a 'fonts' data set",
    ),
    "codes of seven numbers": (
        lambda *_: FONTS.manifold.decode(ones(10, 7), TEN), ValueError, r"got \[10, 7\]",
        r"must be \[10,",
    ),
    "codes outside a letter's bounds": (
        lambda *_: FONTS.manifold.decode(TEN.z + torch.eye(6)[0], TEN), ValueError,
        "t_x in z lies outside", "bounds of the hard manifold, -0.2 to 0.2",
    ),
    "an attack on codes that there are not": (
        lambda *_: ON(MODEL, Split(TEN.x, TEN.y)), ValueError, "only FONTS images",
        "use a LearnedManifold",
    ),
    "a manifold of another data set": (
        lambda *_: MANIFOLD.encode(advnb.load("fonts-easy").test(3)), ValueError,
        r"from FONTS \(hard\), and the images are of FONTS \(easy\)", "load theirs",
    ),
    "a manifold of fewer classes": (
        lambda *_: MANIFOLD.encode(LETTER_K), ValueError, "a label is 12", "knows 10 classes",
    ),
    "a manifold of other images": (
        lambda *_: MANIFOLD.reconstruct(WIDE), ValueError, r"got \(3, 32, 32\)",
        r"makes images \(1, 28, 28\)",
    ),
    "an attack on a manifold of other images": (
        lambda *_: Attack(OnManifold(MANIFOLD, 0.1))(WIDE_MODEL, WIDE), ValueError,
        r"got \(3, 32, 32\)", r"makes images \(1, 28, 28\)",
    ),
    "an unknown manifold": (
        lambda *_: fonts.KnownManifold("extreme").bounds, ValueError, "extreme",
        "one of|there are|must",
    ),
    # panels at work
    "a control that there is not": (
        shown(AttackPanel, {"colour": 1}), ValueError, "no control is called 'colour'",
        "there are image",
    ),
    "a control set to words": (
        shown(AttackPanel, {"eps": "a"}, steps=1), ValueError, "eps.*'a'", "expected|must",
    ),
    "a number of a code that there is not": (
        shown(LatentPanel, {"z1": 1}), ValueError, "no control is called 'z1'", "t_x, t_y",
    ),
    "a code set to words": (
        shown(LatentPanel, {"rotation": "a"}), ValueError, "rotation.*'a'", "expected|must",
    ),
    "an attack that was not given": (
        lambda *_: StepPanel(MODEL, TEN, {"pgd": PGD}).submit(attack="adam"), ValueError,
        "attack.*'adam'", "one of .*pgd",
    ),
    "weights beyond half precision": (
        lambda *_: zoo.rounded(huge(), 16), ValueError, "do not fit half precision", "train with",
    ),
    "a choice that there is not": (
        shown(AttackPanel, {"norm": "l1"}, steps=1), ValueError, "norm.*'l1'", "linf|one of|must",
    ),
    "a panel whose work has ended": (
        used_after(AttackPanel.stop, loss="hinge"), ValueError, "loss.*'hinge'",
        "one of|margin|must",
    ),
}  # fmt: skip


TABLE = FILES | ARGUMENTS | STATES
PACKAGE = Path(advnb.__file__).parent


@pytest.mark.parametrize("row", TABLE)
def test_one_clear_line(row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act, kind, what, mend = TABLE[row]
    monkeypatch.chdir(tmp_path)
    try:
        with pytest.raises(Exception) as caught:
            act(tmp_path, monkeypatch)
    finally:
        advnb.live.close_all()
        for thread in threading.enumerate():
            if thread.name == "advnb panel":
                thread.join(10)
    error, message = caught.value, str(caught.value)
    last = error.__traceback__
    while last.tb_next:
        last = last.tb_next
    raised = last.tb_frame.f_code.co_filename
    said = message.replace(str(tmp_path), "")  # the folder's name holds the row's
    assert type(error) is kind, f"{type(error).__name__}: {message}"
    assert "\n" not in message, f"more than one line: {message}"
    assert len(message) <= 300, f"{len(message)} characters: {message}"
    assert re.search(what, said, re.IGNORECASE), f"{said!r} does not say {what!r}"
    assert re.search(mend, said, re.IGNORECASE), f"{said!r} does not mend by {mend!r}"
    assert Path(raised).is_relative_to(PACKAGE), f"raised in {raised}: {message}"
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__, repr(error.__context__)


def test_the_table_is_long_enough_and_no_row_hides_another() -> None:
    groups = (FILES, ARGUMENTS, STATES)
    assert all(len(group) >= 15 for group in groups)
    assert len(TABLE) == sum(map(len, groups)) >= 60


# --- the command line


def damaged(here: Path) -> str:
    (here / "own.npz").write_text("hello")
    return str(here / "own.npz")


COMMANDS: dict[str, tuple[Callable[[Path], Sequence[str]], str]] = {
    "a misspelt data set": (lambda here: ["data", "mnits"], "did you mean 'mnist'"),
    "a known and a misspelt one": (lambda here: ["data", "fonts", "mnits"], "did you mean 'mnist'"),
    "no file": (lambda here: ["data", str(here / "own.npz")], "no such file"),
    "a damaged file": (lambda here: ["data", damaged(here)], "own.npz"),
    "no network": (lambda here: ["data", "mnist"], "no network"),
    "an unknown model": (lambda here: ["zoo", "train", "mnist-cnn"], "did you mean 'mnist-cnn-"),
    "a misspelt set to learn": (
        lambda here: ["vaegan", "train", "mnits"],
        "did you mean 'mnist'",
    ),
    "an unknown kind to learn": (
        lambda here: ["vaegan", "train", "fonts", "--kind", "gan"],
        "one of flow, vaegan",
    ),
    "nothing to learn": (
        lambda here: ["vaegan", "train", "fonts", "--steps", "0"],
        "steps must be a whole",
    ),
    "no file to learn": (
        lambda here: ["vaegan", "train", str(here / "own.npz")],
        "no such file",
    ),
    "a misspelt set to compare on": (
        lambda here: ["vaegan", "compare", "mnits", "--out", str(here)],
        "did you mean 'mnist'",
    ),
    "a table of a misspelt model": (
        lambda here: ["blindspots", "mnist-cnn-advesarial"],
        "did you mean 'mnist-cnn-adv",
    ),
    "no fonts": (lambda here: ["fonts", "build", str(here), "--out", "atlas.npz"], "no .ttf"),
    "too few faces": (
        lambda here: ["fonts", "build", str(a_face(here)), "--out", str(here / "atlas.npz")],
        "needs 1,000 faces: name more folders",
    ),
    "an atlas onto a folder": (
        lambda here: ["fonts", "build", str(a_face(here)), "--out", str(here)],
        "folder|directory",
    ),
}


@pytest.mark.parametrize("row", COMMANDS)
def test_a_command_ends_in_one_line(
    row: str, unkept: Path, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    from advnb.__main__ import main

    command, what = COMMANDS[row]
    monkeypatch.setattr(downloads, "reachable", lambda addresses: False)
    monkeypatch.setattr("tqdm.auto.tqdm", lambda items, **_: items)  # no bar on stderr
    assert main(list(command(tmp_path))) == 2
    told = capsys.readouterr().err
    assert told.startswith("advnb: ")
    assert told.count("\n") == 1
    assert told.endswith("\n")
    assert len(told) <= 300
    assert re.search(what, told, re.IGNORECASE), told


# --- what is no bad input


def test_backwards_and_other_libraries_numbers() -> None:
    assert torch.equal(TEN[::-1].y, TEN.y.flip(0))
    assert Attack(Pixels(np.float32(0.1)), steps=np.int64(2)).steps == 2


def test_a_checkpoint_knows_the_images_and_not_only_their_codes(tmp_path: Path) -> None:
    path = tmp_path / "run"
    split = FONTS.train(100)
    advnb.fit(
        advnb.models.CNN(0), split, recipes.normal(), epochs=1, checkpoint=path, progress=False
    )
    grey = split.with_x(advnb.scale_shift(split.x, 0.7, 0.1))
    with refused("another run"):
        advnb.fit(
            advnb.models.CNN(0), grey, recipes.normal(), epochs=1, checkpoint=path, progress=False
        )
