"""Data sets: `load(name)` -> Dataset, whose `.train(n)` and `.test(n)` are Splits of images.

Pixels are float32 in [0, 1], images [N, C, H, W], labels int64 [N]. Sets come from a local
`.npz` (folders of ADVNB_DATA, then the user's cache) or, for the known names, by download.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np
import torch

from . import fonts
from .checks import brief, existing
from .downloads import KNOWN, download
from .files import DamagedFileError, load_arrays
from .splits import Split

TITLES = {
    "fonts": "FONTS (hard)",
    "fonts-moderate": "FONTS (moderate)",
    "fonts-easy": "FONTS (easy)",
} | {name: known.title for name, known in KNOWN.items()}


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named set: `.train(n)` and `.test(n)` are its first n images, without n all of them.

    `classes` names the labels; `shape` is (C, H, W); `manifold` the known manifold of FONTS,
    else None; `source` says where the images came from.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    source: str
    sizes: tuple[int, int]
    make: Callable[[Dataset, bool, int], Split]
    manifold: fonts.KnownManifold | None = None

    def train(self, n: int | None = None) -> Split:
        """The first n training images (S trains on these), or all."""
        return self._first(n, train=True)

    def test(self, n: int | None = None) -> Split:
        """The first n test images, or all."""
        return self._first(n, train=False)

    def _first(self, n: int | None, train: bool) -> Split:
        size = self.sizes[0 if train else 1]
        if n is None:
            return self.make(self, train, size)
        if not isinstance(n, Integral) or isinstance(n, bool) or not 1 <= n <= size:
            part = "training" if train else "test"
            raise ValueError(f"{self.title} has {size:,} {part} images; {brief(n)} were asked for")
        return self.make(self, train, int(n))

    def __repr__(self) -> str:
        return (
            f"Dataset({self.title}: {self.sizes[0]:,} training and {self.sizes[1]:,} test images "
            f"{'x'.join(map(str, self.shape))}, {len(self.classes)} classes, from {self.source})"
        )


def load(name: str | os.PathLike, *, offline: str | None = None) -> Dataset:
    """The data set of that name ("fonts", "mnist", ...), or of a local `.npz` file.

    An `.npz` holds train_x, train_y, test_x, test_y: uint8 images [N, H, W] or [N, H, W, C] and
    whole-number labels. With `offline="fonts"` that set is returned where `name` is neither on
    this machine nor to be downloaded. Raises ValueError for an unknown name, FileNotFoundError
    for an `.npz` that is not there, DamagedFileError for an unusable file, ConnectionError where
    a download fails.
    """
    if not isinstance(name, str | os.PathLike):
        raise ValueError(f"a data set is named by a string or a path; got {brief(name)}")
    if offline is not None and (not isinstance(offline, str) or offline not in TITLES):
        raise ValueError(f"offline must name a data set, 'fonts' say; got {brief(offline)}")
    path = Path(name)
    if path.suffix == ".npz":
        return _from_npz(existing(path))
    name = str(name)
    if name not in TITLES:
        near = difflib.get_close_matches(name.lower(), TITLES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(TITLES)}"
        raise ValueError(f"no data set is called {brief(name)}; {hint} (or give a path to an .npz)")
    if name.startswith("fonts"):
        return _fonts(name)
    found = find(name)
    if found is None:
        try:
            found = download(name, cache_folder() / f"{name}.npz")
        except ConnectionError as error:
            if offline is not None:
                return load(offline)
            raise ConnectionError(
                f"{TITLES[name]} is not on this machine and could not be downloaded ({error}). "
                f"These sets need no network: {', '.join(here())}. Or put {name}.npz in a folder "
                "that ADVNB_DATA names"
            ) from None
    return _from_npz(found, name)


def find(name: str) -> Path | None:
    """Where `name`.npz lies: in a folder of ADVNB_DATA, or in the cache; None if nowhere."""
    paths = [folder / f"{name}.npz" for folder in [*folders(), cache_folder()]]
    return next((path for path in paths if os.path.isfile(path)), None)


def here() -> list[str]:
    """The sets that need no network: FONTS, and what lies on this machine."""
    return [name for name in TITLES if name.startswith("fonts") or find(name)]


def folders() -> list[Path]:
    """The folders that ADVNB_DATA lists."""
    listed = os.environ.get("ADVNB_DATA", "").split(os.pathsep)
    return [Path(os.path.expanduser(folder)) for folder in listed if folder]


def cache_folder() -> Path:
    """Where downloads are kept; the variable ADVNB_CACHE overrides the user's cache folder."""
    import platformdirs

    chosen = os.path.expanduser(os.environ.get("ADVNB_CACHE", ""))
    return Path(chosen or platformdirs.user_cache_dir("advnb"))


def _fonts(name: str) -> Dataset:
    manifold = fonts.KnownManifold(name.partition("-")[2] or "hard")

    def make(dataset: Dataset, train: bool, n: int) -> Split:
        start = 0 if train else fonts.N_TRAIN
        index = torch.arange(start, start + n)
        z = fonts.latents(start, start + n, manifold.variant)
        return Split._of(index % 10, z, index // 10 % fonts.N_FONTS, dataset)

    return Dataset(
        name, TITLES[name], tuple(fonts.LETTERS), (1, fonts.SIZE, fonts.SIZE),
        "advnb's glyph atlas", (fonts.N_TRAIN, fonts.N_TEST), make, manifold,
    )  # fmt: skip


def _from_npz(path: Path, name: str = "") -> Dataset:
    """The set in a file: the known one where it was asked for by `name`; where it was asked for
    by its path, the known one of that name only if images and labels are such."""
    arrays = _read_npz(path)
    labels = np.concatenate([arrays["train_y"], arrays["test_y"]])
    height, width = arrays["train_x"].shape[1:3]
    channels = arrays["train_x"].shape[3] if arrays["train_x"].ndim == 4 else 1
    shape, most, known = (channels, height, width), int(labels.max()), KNOWN.get(name or path.stem)
    fits = known is not None and shape == known.shape and most < len(known.classes)
    if name and known and most >= len(known.classes):
        raise DamagedFileError(
            f"{path}: label {most} in a set of {len(known.classes)} classes: labels must be 0 to "
            f"{len(known.classes) - 1}"
        )
    if name and known and not fits:
        raise DamagedFileError(
            f"{path} is not {known.title}: its images are {'x'.join(map(str, shape))} and must be "
            f"{'x'.join(map(str, known.shape))}"
        )
    if not fits and most >= len(labels):  # a stray label would make a million classes
        raise DamagedFileError(
            f"{path}: label {most} among {len(labels)} images: labels must count from 0"
        )
    if not fits and int(labels.min()) > 0:
        raise DamagedFileError(
            f"{path}: labels must count from 0; the smallest of these is {labels.min()}"
        )
    own = path.name if path.stem in TITLES else path.stem
    name = path.stem if fits else own
    classes = known.classes if known and fits else tuple(str(c) for c in range(most + 1))

    def make(dataset: Dataset, train: bool, n: int) -> Split:
        part = "train" if train else "test"
        pixels = torch.from_numpy(arrays[f"{part}_x"][:n]).reshape(n, height, width, channels)
        y = torch.from_numpy(arrays[f"{part}_y"][:n].astype(np.int64))
        return Split._of(y, None, None, dataset, pixels.permute(0, 3, 1, 2))

    sizes = len(arrays["train_y"]), len(arrays["test_y"])
    return Dataset(name, TITLES.get(name, name), classes, shape, str(path.name), sizes, make)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    arrays = load_arrays(path, ("train_x", "train_y", "test_x", "test_y"))
    for part in ("train", "test"):
        x, y = arrays[f"{part}_x"], arrays[f"{part}_y"]
        if x.dtype != np.uint8 or x.ndim not in (3, 4) or 0 in x.shape:
            raise DamagedFileError(
                f"{path}: {part}_x must be uint8 [N, H, W] or [N, H, W, C], of 0 to 255 and not "
                f"empty; it is {x.dtype} {list(x.shape)}"
            )
        if 0 < x.max() < 64:  # of 0 to 1, or 0 to 16
            raise DamagedFileError(
                f"{path}: the brightest pixel of {part}_x is {x.max()} of 255, next to black: save "
                "them as 0 to 255"
            )
        if x.ndim == 4 and x.shape[1] in (1, 3, 4) and x.shape[3] not in (1, 3, 4):
            raise DamagedFileError(
                f"{path}: {part}_x {list(x.shape)} has its channels first: save it as [N, H, W, C]"
            )
        if y.dtype.kind not in "iu" or y.shape != x.shape[:1] or (y.astype(np.int64) < 0).any():
            raise DamagedFileError(
                f"{path}: {part}_y must be whole numbers >= 0 [{len(x)}]; "
                f"it is {y.dtype} {list(y.shape)}, smallest {y.min() if y.size else '-'}"
            )
    if arrays["train_x"].shape[1:] != arrays["test_x"].shape[1:]:
        raise DamagedFileError(
            f"{path}: training and test images differ in size: save them in one size"
        )
    return arrays
