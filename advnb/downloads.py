"""The public data sets: what torchvision fetches, as arrays of whole images with one label each.

Every `fetch` leaves downloads, bars and MD5 sums to torchvision and returns uint8 images
[N, H, W] or [N, H, W, 3] and labels [N] for "train" and "test".
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .files import save_arrays

Arrays = dict[str, np.ndarray]
PARTS = ("train", "test")
TIMEOUT = 8.0  # seconds until a server that does not answer counts as no network
STALL = 60.0  # seconds until one that has answered, and fell silent, does
DAY = 86_400.0


@dataclass(frozen=True)
class Known:
    """A set that can be downloaded: `sizes` are its training and test images, `room` is the GB that
    this takes at its height, `servers` those of which one must answer."""

    title: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    sizes: tuple[int, int]
    room: float
    fetch: Callable[[Path], Arrays]
    servers: tuple[str, ...]


def _attributes(kind: str, **options: object) -> Callable[[Path], Arrays]:
    """Sets whose torchvision class holds all images in memory."""

    def fetch(folder: Path) -> Arrays:
        import torchvision

        arrays: Arrays = {}
        for part in PARTS:
            images = getattr(torchvision.datasets, kind)(
                folder, train=part == "train", download=True, **options
            )
            arrays[f"{part}_x"] = np.asarray(images.data, np.uint8)
            arrays[f"{part}_y"] = np.asarray(images.targets, np.int64)
        return arrays

    return fetch


def _emnist(folder: Path) -> Arrays:
    """EMNIST digits; its raw images are transposed, here they are upright."""
    arrays = _attributes("EMNIST", split="digits")(folder)
    for part in PARTS:
        arrays[f"{part}_x"] = arrays[f"{part}_x"].transpose(0, 2, 1)
    return arrays


def _gtsrb(folder: Path) -> Arrays:
    """Traffic signs, cropped to the sign (the annotated region, its right and lower edges not
    included) and resized to 32x32. The training images, torchvision's (the competition's, fewer
    than the 39,209 of the later release), come class by class and thirty of one sign in a row:
    they are shuffled, once and for all, so that the first n are a sample."""
    import pandas as pd
    import torchvision

    arrays: Arrays = {}
    for part in PARTS:
        torchvision.datasets.GTSRB(folder, split=part, download=True)
        base = folder / "gtsrb"
        tables = [(base / "GT-final_test.csv", base / "GTSRB/Final_Test/Images")]
        if part == "train":
            found = sorted((base / "GTSRB/Training").glob("*/GT-*.csv"))
            tables = [(table, table.parent) for table in found]
        frames = [pd.read_csv(table, sep=";") for table, _ in tables]
        for frame, (_, at) in zip(frames, tables):
            frame["Path"] = f"{at}/" + frame.Filename
        rows = pd.concat(frames)
        if part == "train":
            rows = rows.iloc[np.random.default_rng(0).permutation(len(rows))]
        boxes = rows[["Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2"]].to_numpy()
        arrays[f"{part}_x"] = _images(rows.Path.tolist(), (32, 32), boxes)
        arrays[f"{part}_y"] = rows.ClassId.to_numpy(np.int64)
    return arrays


def _celeba(folder: Path) -> Arrays:
    """Aligned faces resized to 56x48, labelled male or female. As in S the validation images
    are part of the training set (182,637 images)."""
    import torchvision

    arrays: Arrays = {}
    for part, splits in (("train", ("train", "valid")), ("test", ("test",))):
        sets = [torchvision.datasets.CelebA(folder, split=s, download=True) for s in splits]
        paths = [folder / "celeba/img_align_celeba" / name for s in sets for name in s.filename]
        arrays[f"{part}_x"] = _images(paths, (48, 56))
        labels = [s.attr[:, s.attr_names.index("Male")].numpy() for s in sets]
        arrays[f"{part}_y"] = np.concatenate(labels).astype(np.int64)
    return arrays


def _images(
    paths: Sequence[str | Path], size: tuple[int, int], boxes: np.ndarray | None = None
) -> np.ndarray:
    """Image files, each cut to its box (left, upper, right, lower) and resized to (W, H)."""
    from PIL import Image
    from tqdm.auto import tqdm

    out = np.empty((len(paths), size[1], size[0], 3), np.uint8)
    for number, path in enumerate(tqdm(paths, unit="image", desc="reading")):
        with Image.open(path) as image:
            box = None if boxes is None else tuple(boxes[number].tolist())
            small = image.convert("RGB").crop(box).resize(size, Image.Resampling.BILINEAR)
            out[number] = np.asarray(small)
    return out


DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
THINGS = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
SIGNS = (
    "20 km/h", "30 km/h", "50 km/h", "60 km/h", "70 km/h", "80 km/h", "end of 80 km/h",
    "100 km/h", "120 km/h", "no passing", "no passing > 3.5 t", "right of way",
    "priority road", "yield", "stop", "no vehicles", "no vehicles > 3.5 t", "no entry",
    "general caution", "curve left", "curve right", "double curve", "bumpy road",
    "slippery road", "road narrows", "road works", "traffic signals", "pedestrians", "children",
    "bicycles", "snow", "wild animals", "end of all limits", "turn right ahead",
    "turn left ahead", "ahead only", "ahead or right", "ahead or left", "keep right",
    "keep left", "roundabout", "end of no passing", "end of no passing > 3.5 t",
)  # fmt: skip
GREY, COLOUR = (1, 28, 28), (3, 32, 32)
KNOWN = {
    "mnist": Known(
        "MNIST", DIGITS, GREY, (60_000, 10_000), 0.3, _attributes("MNIST"),
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    ),
    "fashion": Known(
        "Fashion-MNIST", CLOTHES, GREY, (60_000, 10_000), 0.3, _attributes("FashionMNIST"),
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    ),
    "emnist": Known(
        "EMNIST digits", DIGITS, GREY, (240_000, 40_000), 4, _emnist,
        ("https://biometrics.nist.gov/",),
    ),
    "cifar10": Known(
        "CIFAR-10", THINGS, COLOUR, (50_000, 10_000), 1, _attributes("CIFAR10"),
        ("https://www.cs.toronto.edu/",),
    ),
    "gtsrb": Known(
        "GTSRB", SIGNS, COLOUR, (26_640, 12_630), 1.5, _gtsrb, ("https://sid.erda.dk/",)
    ),
    "celeba": Known(
        "CelebA", ("female", "male"), (3, 56, 48), (182_637, 19_962), 6, _celeba,
        ("https://drive.google.com/",),
    ),
}  # fmt: skip


def download(name: str, path: Path) -> Path:
    """Fetch a set, keep it as `path`, an .npz that `advnb.load` reads; nothing else is left.

    Raises ConnectionError, with the reason, where that cannot be done.
    """
    known = KNOWN[name]
    if not reachable(known.servers):
        raise ConnectionError("no network")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(".download-*"):  # of a process that was killed
            with suppress(FileNotFoundError):  # of one that has just ended
                if time.time() - old.stat().st_mtime > DAY:
                    shutil.rmtree(old, ignore_errors=True)
        folder = tempfile.mkdtemp(dir=path.parent, prefix=".download-")
        free = shutil.disk_usage(folder).free / 1e9
    except OSError:
        raise ConnectionError(f"{path.parent} cannot be written") from None
    patience = socket.getdefaulttimeout()
    try:
        if free < known.room:
            raise OSError(f"{known.room} GB are needed in {path.parent}, {free:.1f} are left")
        socket.setdefaulttimeout(STALL)  # of urllib's transfers; gdown, for CelebA, has none
        arrays = known.fetch(Path(folder))
        # not compressed: reading is what must be quick
        return save_arrays(path, arrays)
    except Exception as error:  # of torchvision, gdown, requests, a full disk: all end here
        why = " ".join(str(error).split()) or type(error).__name__
        why = why if len(why) <= 120 else f"{why[:77]} … {why[-40:]}"
        raise ConnectionError(why) from None
    finally:
        socket.setdefaulttimeout(patience)
        shutil.rmtree(folder, ignore_errors=True)


def reachable(addresses: Sequence[str]) -> bool:
    """Whether any of the servers answers within TIMEOUT seconds (a name look-up can hang)."""
    import ssl
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    answered = threading.Event()

    def ask(address: str) -> None:
        try:
            urlopen(address, timeout=TIMEOUT).close()
            answered.set()
        except (HTTPError, HTTPException):  # it is there, even if it has no front page
            answered.set()
        except URLError as error:
            if isinstance(error.reason, ssl.SSLError):  # the download will say what is wrong
                answered.set()
        except (OSError, ValueError):
            pass

    threads = [threading.Thread(target=ask, args=(a,), daemon=True) for a in addresses]
    for thread in threads:
        thread.start()
    waited = 0.0
    while waited < TIMEOUT and not answered.is_set() and any(t.is_alive() for t in threads):
        answered.wait(0.1)
        waited += 0.1
    return answered.is_set()
