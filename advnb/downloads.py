"""The public data sets: what torchvision fetches, as arrays of whole images with one label each.

Every `fetch` leaves downloads, bars and MD5 sums to torchvision and returns uint8 images
[N, H, W] or [N, H, W, 3] and labels [N] for "train" and "test".
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .files import save_arrays

Arrays = dict[str, np.ndarray]
PARTS = ("train", "test")
TIMEOUT = 8.0  # seconds until a server that does not answer counts as no network


@dataclass(frozen=True)
class Known:
    """A set that can be downloaded: any one of its `servers` must answer."""

    title: str
    classes: tuple[str, ...]
    servers: tuple[str, ...]
    fetch: Callable[[Path], Arrays]


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
    included) and resized to 32x32. The training images come class by class and thirty of one
    sign in a row: they are shuffled, once and for all, so that the first n are a sample."""
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
        arrays[f"{part}_x"] = _images(rows.Path, (32, 32), boxes)
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


def _images(paths: Sequence, size: tuple[int, int], boxes: np.ndarray | None = None) -> np.ndarray:
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


_MNIST_SERVERS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
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
    "100 km/h", "120 km/h", "no passing", "no passing for lorries", "right of way",
    "priority road", "yield", "stop", "no vehicles", "no lorries", "no entry", "danger",
    "curve left", "curve right", "double curve", "bumpy road", "slippery road", "road narrows",
    "road works", "traffic signals", "pedestrians", "children", "bicycles", "snow", "animals",
    "end of limits", "turn right", "turn left", "ahead only", "ahead or right", "ahead or left",
    "keep right", "keep left", "roundabout", "passing allowed", "passing allowed for lorries",
)  # fmt: skip
KNOWN = {
    "mnist": Known("MNIST", DIGITS, _MNIST_SERVERS, _attributes("MNIST")),
    "fashion": Known(
        "Fashion-MNIST", CLOTHES,
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        _attributes("FashionMNIST"),
    ),
    "emnist": Known("EMNIST digits", DIGITS, ("https://biometrics.nist.gov/",), _emnist),
    "cifar10": Known(
        "CIFAR-10", THINGS, ("https://www.cs.toronto.edu/",), _attributes("CIFAR10")
    ),
    "gtsrb": Known("GTSRB", SIGNS, ("https://sid.erda.dk/",), _gtsrb),
    "celeba": Known("CelebA", ("female", "male"), ("https://drive.google.com/",), _celeba),
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
        folder = tempfile.mkdtemp(dir=path.parent, prefix=".download-")
    except OSError:
        raise ConnectionError(f"{path.parent} cannot be written") from None
    patience = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(TIMEOUT)  # a server that falls silent is no network either
        arrays = known.fetch(Path(folder))
        # not compressed: reading is what must be quick
        return save_arrays(path, arrays)
    except Exception as error:  # of torchvision, gdown, requests, a full disk: all end here
        why = " ".join(str(error).split())[-100:] or type(error).__name__
        raise ConnectionError(why) from None
    finally:
        socket.setdefaulttimeout(patience)
        shutil.rmtree(folder, ignore_errors=True)


def reachable(addresses: Sequence[str]) -> bool:
    """Whether any of the servers answers within TIMEOUT seconds (a name look-up can hang)."""
    from urllib.error import HTTPError
    from urllib.request import urlopen

    answered = threading.Event()

    def ask(address: str) -> None:
        try:
            urlopen(address, timeout=TIMEOUT).close()
            answered.set()
        except HTTPError:  # it is there, even if it has no front page
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
