"""The public sets: files in their official layout, written by hand and served by a stand-in for
the network, end as the right pixels with the right labels; where there is no network, one line
says what to do. No test really goes there. Own files of any size go all the way to the panels."""

from __future__ import annotations

import errno
import functools
import gzip
import hashlib
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import advnb
from advnb import downloads
from advnb.attacks import Attack
from advnb.live import AttackPanel, BlindspotPanel
from advnb.live.panel import Panel
from advnb.perturbations import Pixels

from .conftest import ROOT, refused
from .test_data import arrays

Files = dict[str, bytes]  # what a server gives, by name
NAMES = tuple(downloads.KNOWN)
FONTS = "fonts, fonts-moderate, fonts-easy"

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


# --- the official files, in small


def idx(values: np.ndarray) -> bytes:
    """The format of MNIST: two zeros, type 8, the number of axes, their lengths, the bytes."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def zipped(members: Files) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return out.getvalue()


def ppm(image: np.ndarray) -> bytes:
    """[H, W, 3] as a binary portable pixmap."""
    return b"P6\n%d %d\n255\n" % image.shape[1::-1] + image.tobytes()


def encoded(image: np.ndarray, kind: str = "png") -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind)
    return out.getvalue()


def grey_files(numbers: np.ndarray) -> Files:
    """MNIST and Fashion-MNIST: image i is black but for one pixel, row 3 and column 20, that is
    `numbers[i]`; the label is its last digit. The last two images are the test set."""
    images = np.zeros((len(numbers), 28, 28), np.uint8)
    images[:, 3, 20] = numbers
    labels = numbers % 10
    return {
        "train-images-idx3-ubyte.gz": gzip.compress(idx(images[:-2])),
        "train-labels-idx1-ubyte.gz": gzip.compress(idx(labels[:-2])),
        "t10k-images-idx3-ubyte.gz": gzip.compress(idx(images[-2:])),
        "t10k-labels-idx1-ubyte.gz": gzip.compress(idx(labels[-2:])),
    }


def emnist_files() -> Files:
    """Two raw images lie on their side: row 20, column 3 is what an upright image has in row 3,
    column 20. Other splits of EMNIST are in the same archive."""
    members = {}
    for split, numbers in (("letters", [251, 252]), ("digits", [11, 22]), ("mnist", [253, 254])):
        for part, more in (("train", 0), ("test", 5)):
            images = np.zeros((2, 28, 28), np.uint8)
            images[:, 20, 3] = np.array(numbers) + more
            images[1, 0, 1:] = 99  # an upper edge in the file: the left edge when upright
            where = f"gzip/emnist-{split}-{part}"
            labels = np.array([number % 10 for number in numbers]) + more
            members[f"{where}-images-idx3-ubyte.gz"] = gzip.compress(idx(images))
            members[f"{where}-labels-idx1-ubyte.gz"] = gzip.compress(idx(labels))
        members[f"gzip/emnist-{split}-mapping.txt"] = b"0 48\n1 49\n"
    return {"gzip.zip": zipped(members)}


def cifar_files() -> Files:
    """Batches of two images, each a row of 3072: 1024 red, 1024 green, 1024 blue. Image i has the
    pixel (11 + i, 22 + i, 33 + i) in row 3, column 7, and one red upper right corner."""
    members, i = {}, 0
    for batch in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5",
                  "test_batch"):  # fmt: skip
        data, labels = np.zeros((2, 3072), np.uint8), []
        for row in data:
            row[[3 * 32 + 7, 1024 + 3 * 32 + 7, 2048 + 3 * 32 + 7]] = 11 + i, 22 + i, 33 + i
            row[31] = 255
            labels.append((3 * i + 1) % 10)
            i += 1
        content = {
            "batch_label": batch, "labels": labels, "data": data, "filenames": ["a.png", "b.png"],
        }  # fmt: skip
        members[batch] = pickle.dumps(content, protocol=2)
    meta = {
        "num_cases_per_batch": 2, "num_vis": 3072,
        "label_names": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse",
                        "ship", "truck"],
    }  # fmt: skip
    members["batches.meta"] = pickle.dumps(meta, protocol=2)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return {"cifar-10-python.tar.gz": out.getvalue(), **members}


def sign(label: int, number: int, size: int) -> tuple[np.ndarray, list[int]]:
    """A glaring frame around a sign of `size` pixels a side, and the sign's box in it. Of 32
    pixels: (7 y, 7 x, 5 label + number); of 64: four quarters."""
    image = np.full((size + 13, size + 8, 3), (255, 0, 254), np.uint8)
    left, upper = 3, 6
    inside = image[upper : upper + size, left : left + size]
    if size == 32:
        inside[..., 0] = 7 * np.arange(32)[:, None]
        inside[..., 1] = 7 * np.arange(32)
    else:
        inside[:32, :32, :2], inside[:32, 32:, :2] = (10, 20), (30, 40)
        inside[32:, :32, :2], inside[32:, 32:, :2] = (50, 60), (70, 80)
    inside[..., 2] = 5 * label + number
    return image, [left, upper, left + size, upper + size]


SIGN_COLUMNS = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"


def gtsrb_files() -> Files:
    """Classes 0, 14 and 42 with five images each, the last of them of twice the size; four test
    images, which their table lists in an order of its own."""

    def row(file: str, image: np.ndarray, box: list[int], *label: int) -> str:
        return ";".join(map(str, [file, image.shape[1], image.shape[0], *box, *label]))

    training: Files = {"GTSRB/Readme-Images.txt": b"German Traffic Signs"}
    for label in (0, 14, 42):
        table = [SIGN_COLUMNS]
        for number in range(5):
            image, box = sign(label, number, 64 if number == 4 else 32)
            file = f"00000_{number:05}.ppm"
            training[f"GTSRB/Training/{label:05}/{file}"] = ppm(image)
            table.append(row(file, image, box, label))
        text = "\n".join([*table, ""])
        training[f"GTSRB/Training/{label:05}/GT-{label:05}.csv"] = text.encode()
    folder, final, images = "GTSRB/Final_Test/Images", [SIGN_COLUMNS], {}
    unlabelled = [SIGN_COLUMNS.rpartition(";")[0]]
    for number, label in ((2, 33), (0, 1), (3, 33), (1, 25)):
        image, box = sign(label, number, 32)
        images[f"{folder}/{number:05}.ppm"] = ppm(image)
        final.append(row(f"{number:05}.ppm", image, box, label))
        unlabelled.append(row(f"{number:05}.ppm", image, box))
    images[f"{folder}/GT-final_test.test.csv"] = "\n".join([*unlabelled, ""]).encode()
    return {
        "GTSRB-Training_fixed.zip": zipped(training),
        "GTSRB_Final_Test_Images.zip": zipped(images),
        "GTSRB_Final_Test_GT.zip": zipped({"GT-final_test.csv": "\n".join([*final, ""]).encode()}),
    }


ATTRIBUTES = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose "
    "Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee "
    "Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard "
    "Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair "
    "Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young"
)
FACES = [  # colour, part (0 training, 1 validation, 2 test), 1 for male and -1 for female
    ((10, 20, 30), 0, -1),
    ((40, 50, 60), 2, 1),
    ((70, 80, 90), 1, 1),
    ((100, 110, 120), 0, 1),
    ((130, 140, 150), 1, -1),
    ((160, 170, 180), 2, -1),
    ((190, 200, 210), 0, -1),
]


def celeba_files() -> Files:
    """Seven faces of one colour; the first has a black right half, the second a black lower half,
    and the last is a JPEG file, as the official ones are."""
    images, names = {}, [f"{number + 1:06}.jpg" for number in range(len(FACES))]
    for name, (colour, _, _) in zip(names, FACES):
        face = np.full((218, 178, 3), colour, np.uint8)
        if name == names[0]:
            face[:, 89:] = 0
        if name == names[1]:
            face[109:] = 0
        kind = "jpeg" if name == names[-1] else "png"
        images[f"img_align_celeba/{name}"] = encoded(face, kind)

    def text(head: list[str], rows: list[str]) -> bytes:
        return "\n".join([*head, *(f"{a} {b}" for a, b in zip(names, rows)), ""]).encode()

    n, male = str(len(names)), ATTRIBUTES.split().index("Male")
    attributes = []
    for i, (_, _, gender) in enumerate(FACES):
        signs = [1 if (i + j) % 2 else -1 for j in range(40)]
        signs[male] = gender
        attributes.append(" ".join(f"{value:2}" for value in signs))
    marks = ["lefteye", "righteye", "nose", "leftmouth", "rightmouth"]
    places = " ".join(f"{mark}_{axis}" for mark in marks for axis in "xy")
    return {
        "img_align_celeba.zip": zipped(images),
        "list_attr_celeba.txt": text([n, ATTRIBUTES + " "], attributes),
        "identity_CelebA.txt": text([], [str(2880 + i) for i in range(len(FACES))]),
        "list_bbox_celeba.txt": text(
            [n, "image_id x_1 y_1 width height"], ["   95  71 226 313"] * len(FACES)
        ),
        "list_landmarks_align_celeba.txt": text(
            [n, places], ["69  109  106  113   77  142   73  152  108  154"] * len(FACES)
        ),
        "list_eval_partition.txt": text([], [str(part) for _, part, _ in FACES]),
    }


@functools.cache
def official(name: str) -> Files:
    """The files that the servers have of a set."""
    makers: dict[str, Callable[[], Files]] = {
        "mnist": lambda: grey_files(np.array([121, 45, 99, 250, 18, 73])),
        "fashion": lambda: grey_files(np.array([200, 13, 86, 57, 31, 99, 8])),
        "emnist": emnist_files,
        "cifar10": cifar_files,
        "gtsrb": gtsrb_files,
        "celeba": celeba_files,
    }
    return makers[name]()


# --- a stand-in for the network


class Answer(io.BytesIO):
    def __init__(self, url: str, content: bytes) -> None:
        super().__init__(content)
        self.url, self.length = url, len(content)


class Network:
    """Gives `files` by name, whatever the server, unless it is one of `down`; has no front pages,
    and remembers the addresses it was asked for."""

    def __init__(self, files: Files) -> None:
        self.files, self.asked = files, []
        self.down: tuple[str, ...] = ()

    def urlopen(self, request: str | urllib.request.Request, *_: object, **__: object) -> Answer:
        url = request if isinstance(request, str) else request.full_url
        self.asked.append(url)
        name = url.rpartition("/")[2]
        if url.startswith(self.down):  # never by an empty tuple
            raise URLError("no route to host")
        if name not in self.files:
            raise HTTPError(url, 403, "there is no such page", Message(), None)
        return Answer(url, self.files[name])

    def drive(self, id: str, output: str, **_: object) -> None:
        self.asked.append(f"https://drive.google.com/uc?id={id}")
        Path(output).write_bytes(self.files[Path(output).name])


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, unkept: Path) -> Callable[..., Network]:
    """Puts files on the network. What torchvision takes for their checksums is then what they
    have, or what `genuine` files of the same names have."""

    def serve(files: Files, genuine: Files | None = None) -> Network:
        network = Network(files)
        sums = {n: hashlib.md5(f).hexdigest() for n, f in (genuine or files).items()}
        utils = torchvision.datasets.utils

        def check_md5(path: str | Path, md5: str, **_: object) -> bool:
            assert len(md5) == 32
            return utils.calculate_md5(path) == sums[Path(path).name]

        monkeypatch.setattr(utils, "check_md5", check_md5)
        monkeypatch.setattr(urllib.request, "urlopen", network.urlopen)
        monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=network.drive))
        return network

    return serve


def fetched(serve: Callable[..., Network], name: str) -> tuple[advnb.Split, advnb.Split]:
    """A set by name from the network: all of its training and of its test images."""
    serve(official(name))
    data = advnb.load(name)
    assert data.name == name
    return data.train(), data.test()


def pixels(split: advnb.Split) -> torch.Tensor:
    """Images [N, C, H, W] as the whole numbers that the files hold."""
    whole = split.x * 255
    assert torch.allclose(whole, whole.round(), atol=1e-3)
    return whole.round().int()


# --- what becomes of the official files


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [("mnist", [121, 45, 99, 250], [18, 73]), ("fashion", [200, 13, 86, 57, 31], [99, 8])],
)
def test_mnist_and_fashion(
    name: str, train: list[int], test: list[int], serve: Callable[..., Network]
) -> None:
    for split, numbers in zip(fetched(serve, name), (train, test)):
        x = pixels(split)
        assert x.shape == (len(numbers), 1, 28, 28)
        assert x[:, 0, 3, 20].tolist() == numbers
        assert x.sum((1, 2, 3)).tolist() == numbers, "every other pixel is black"
        assert split.y.tolist() == [number % 10 for number in numbers]


def test_emnist_is_upright_and_only_its_digits(serve: Callable[..., Network]) -> None:
    train, test = fetched(serve, "emnist")
    assert train.y.tolist() == [1, 2]
    assert test.y.tolist() == [6, 7]
    for split, numbers in ((train, [11, 22]), (test, [16, 27])):
        x = pixels(split)
        assert x.shape == (2, 1, 28, 28)
        assert x[:, 0, 3, 20].tolist() == numbers
        assert x[0].sum() == numbers[0]
        assert x[1, 0, 1:, 0].tolist() == [99] * 27, "the left edge, from the second row on"
        assert x[1].sum() == numbers[1] + 27 * 99


def test_cifar10_has_its_colours_in_the_right_channels(serve: Callable[..., Network]) -> None:
    train, test = fetched(serve, "cifar10")
    assert train.y.tolist() == [1, 4, 7, 0, 3, 6, 9, 2, 5, 8]
    assert test.y.tolist() == [1, 4]
    for split, first in ((train, 0), (test, 10)):
        x = pixels(split)
        assert x.shape == (len(split), 3, 32, 32)
        for i, image in enumerate(x, first):
            assert image[:, 3, 7].tolist() == [11 + i, 22 + i, 33 + i]
            assert image[:, 0, 31].tolist() == [255, 0, 0]
            assert image.sum() == 66 + 3 * i + 255
    assert train.dataset.classes[1] == "automobile"
    assert train.dataset.classes[9] == "truck"


def test_traffic_signs_are_cut_to_the_sign(serve: Callable[..., Network]) -> None:
    train, test = fetched(serve, "gtsrb")
    assert len(train.dataset.classes) == 43
    assert [train.dataset.classes[label] for label in (0, 14, 25, 33)] == [
        "20 km/h", "stop", "road works", "turn right ahead",
    ]  # fmt: skip
    for split in (train, test):
        x = pixels(split)
        assert x.shape == (len(split), 3, 32, 32)
        large = x[:, 2, 0, 0] - 5 * split.y == 4
        for image in x[~large]:
            assert image[0].tolist() == [[7 * row] * 32 for row in range(32)]
            assert image[1].tolist() == [[7 * column for column in range(32)]] * 32
        for image in x[large]:
            for (r, g), rows, columns in (
                ((10, 20), slice(15), slice(15)), ((30, 40), slice(15), slice(17, 32)),
                ((50, 60), slice(17, 32), slice(15)), ((70, 80), slice(17, 32), slice(17, 32)),
            ):  # fmt: skip
                assert (image[0, rows, columns] == r).all()
                assert (image[1, rows, columns] == g).all()
        assert large.sum() == (3 if split is train else 0)


def test_traffic_signs_keep_their_labels_when_shuffled(
    serve: Callable[..., Network], unkept: Path
) -> None:
    train, test = fetched(serve, "gtsrb")
    marks = pixels(train)[:, 2]
    assert (marks == marks[:, :1, :1]).all()
    of = [(mark - 5 * y, y) for mark, y in zip(marks[:, 0, 0].tolist(), train.y.tolist())]
    assert sorted(of) == [(number, label) for number in range(5) for label in (0, 14, 42)]
    assert train.y[:5].unique().tolist() != [0], "shuffled: the first images are a sample"
    assert test.y.tolist() == [33, 1, 33, 25], "in the order of the table"
    assert pixels(test)[:, 2, 0, 0].tolist() == [167, 5, 168, 126]

    (unkept / "gtsrb.npz").unlink()
    again, _ = fetched(serve, "gtsrb")
    assert torch.equal(again.x, train.x), "shuffled once and for all"


def test_celeba_tells_male_from_female(serve: Callable[..., Network]) -> None:
    train, test = fetched(serve, "celeba")
    assert train.dataset.classes == ("female", "male")
    assert train.dataset.shape == (3, 56, 48)
    x = pixels(train)
    # the validation images follow the training images
    assert x[:-3, :, 0, 0].tolist() == [[10, 20, 30], [100, 110, 120]]
    assert (x[2, :, 0, 0] - torch.tensor([190, 200, 210])).abs().max() <= 2, "JPEG"
    assert x[3:, :, 0, 0].tolist() == [[70, 80, 90], [130, 140, 150]]
    assert train.y.tolist() == [0, 1, 0, 1, 0]
    assert pixels(test)[:, :, 0, 0].tolist() == [[40, 50, 60], [160, 170, 180]]
    assert test.y.tolist() == [1, 0]
    assert (x[[1, 3, 4]] == x[[1, 3, 4], :, :1, :1]).all(), "one colour stays one colour"


def test_celeba_halves_stay_where_they_are(serve: Callable[..., Network]) -> None:
    train, test = fetched(serve, "celeba")
    left_lit, upper_lit = pixels(train)[0], pixels(test)[0]
    for channel, (a, b) in enumerate(zip((10, 20, 30), (40, 50, 60))):
        assert (left_lit[channel, :, :23] == a).all()
        assert (left_lit[channel, :, 25:] == 0).all()
        assert (upper_lit[channel, :27] == b).all()
        assert (upper_lit[channel, 29:] == 0).all()


# --- what is kept, and where


def forbidden(*_: object, **__: object) -> None:
    pytest.fail("asked again")


@pytest.mark.parametrize("name", NAMES)
def test_what_was_fetched_is_kept(
    name: str, serve: Callable[..., Network], monkeypatch: pytest.MonkeyPatch, unkept: Path
) -> None:
    known, results = downloads.KNOWN[name], []

    def fetch(folder: Path) -> downloads.Arrays:
        results.append(known.fetch(folder))
        return results[-1]

    monkeypatch.setitem(downloads.KNOWN, name, replace(known, fetch=fetch))
    network = serve(official(name))
    first = advnb.load(name)
    (wanted,) = results
    assert [path.name for path in unkept.iterdir()] == [f"{name}.npz"], "and nothing else"
    with np.load(unkept / f"{name}.npz", allow_pickle=False) as file:
        assert sorted(file.files) == ["test_x", "test_y", "train_x", "train_y"]
        for key, values in wanted.items():
            assert file[key].dtype == values.dtype
            assert (file[key] == values).all()
    asked = [url for url in network.asked if not url.endswith("/")]
    assert asked
    assert all(url.startswith(known.servers) for url in asked), "those that were asked first"

    monkeypatch.setitem(downloads.KNOWN, name, replace(known, fetch=forbidden))
    monkeypatch.setattr(urllib.request, "urlopen", forbidden)
    second = advnb.load(name)
    for a, b in ((first.train(), second.train()), (first.test(), second.test())):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
    assert second.classes == first.classes == known.classes
    assert second.title == known.title


def listing(*folders: Path) -> list[tuple]:
    paths = sorted(path for folder in folders for path in (folder, *folder.rglob("*")))
    return [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in paths]


def test_folders_of_advnb_data_are_only_read(
    tmp_path: Path, serve: Callable[..., Network], monkeypatch: pytest.MonkeyPatch, unkept: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, name in ((first, "fashion"), (second, "mnist")):
        folder.mkdir()
        np.savez(folder / f"{name}.npz", **arrays((28, 28), n=20, classes=10))
        folder.chmod(0o555)
    monkeypatch.setenv("ADVNB_DATA", f"{first}{os.pathsep}{second}")
    before = listing(first, second)
    try:
        network = serve(official("emnist"))
        assert advnb.load("mnist").sizes == (20, 10), "found in the second folder"
        assert not network.asked
        assert advnb.load("emnist").sizes == (2, 2)
        assert [path.name for path in unkept.iterdir()] == ["emnist.npz"]
        assert listing(first, second) == before
    finally:
        for folder in (first, second):
            folder.chmod(0o755)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("below", [".", "a/cache"])
def test_a_cache_that_cannot_be_written(
    name: str, below: str, serve: Callable[..., Network], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("no folder")
    serve(official(name))
    monkeypatch.setenv("ADVNB_CACHE", str(tmp_path / "file" / below))
    with refused(f"{tmp_path / 'file' / below} cannot be written", ConnectionError):
        advnb.load(name)
    assert advnb.load(name, offline="fonts").name == "fonts"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "no folder"


# --- where it fails


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_checksum_is_told_in_one_line_and_leaves_nothing(
    name: str, serve: Callable[..., Network], unkept: Path
) -> None:
    genuine = official(name)
    first = next(iter(genuine))
    serve({**genuine, first: genuine[first][:-1] + b"\xff"}, genuine)
    with refused("could not be downloaded", ConnectionError):
        advnb.load(name)
    assert not list(unkept.iterdir())
    assert advnb.load(name, offline="fonts").name == "fonts"


@pytest.mark.parametrize("name", NAMES)
def test_the_official_checksums_are_what_counts(
    name: str, monkeypatch: pytest.MonkeyPatch, unkept: Path
) -> None:
    network = Network(official(name))
    monkeypatch.setattr(urllib.request, "urlopen", network.urlopen)
    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=network.drive))
    with refused("could not be downloaded", ConnectionError):
        advnb.load(name)
    assert any(not url.endswith("/") for url in network.asked)
    assert not list(unkept.iterdir())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "celeba"])
def test_servers_that_answer_but_have_nothing(
    name: str, serve: Callable[..., Network], unkept: Path
) -> None:
    network = serve({})
    with refused("could not be downloaded", ConnectionError):
        advnb.load(name)
    assert any(not url.endswith("/") for url in network.asked)
    assert not list(unkept.iterdir())


def test_one_of_two_servers_is_enough(serve: Callable[..., Network]) -> None:
    for down in downloads.KNOWN["mnist"].servers:
        network = serve(official("mnist"))
        network.down = (down,)
        assert advnb.load("mnist").sizes == (4, 2)
        advnb.data.find("mnist").unlink()


def test_no_server_is_no_network(serve: Callable[..., Network], unkept: Path) -> None:
    network = serve(official("mnist"))
    network.down = downloads.KNOWN["mnist"].servers
    with refused("no network", ConnectionError):
        advnb.load("mnist")
    assert sorted(network.asked) == sorted(network.down), "front pages alone were asked for"
    assert not unkept.exists()


def test_celeba_without_gdown_says_what_to_install(
    serve: Callable[..., Network], monkeypatch: pytest.MonkeyPatch, unkept: Path
) -> None:
    serve(official("celeba"))
    monkeypatch.setitem(sys.modules, "gdown", None)
    with refused("pip install gdown", ConnectionError):
        advnb.load("celeba")
    assert not list(unkept.iterdir())


@pytest.mark.parametrize("error", [OSError("reset"), RuntimeError("File not found or corrupted")])
def test_a_broken_download_leaves_nothing(
    error: Exception, monkeypatch: pytest.MonkeyPatch, unkept: Path
) -> None:
    def download(self: torchvision.datasets.MNIST) -> None:
        os.makedirs(self.raw_folder, exist_ok=True)
        Path(self.raw_folder, "train-images-idx3-ubyte").write_bytes(b"half")
        raise error

    monkeypatch.setattr(downloads, "reachable", lambda addresses: bool(addresses))
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    with refused(f"could not be downloaded.*{error}", ConnectionError):
        advnb.load("mnist")
    assert not list(unkept.iterdir())


def test_an_interrupted_download_leaves_nothing(
    serve: Callable[..., Network], monkeypatch: pytest.MonkeyPatch, unkept: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    serve(official("emnist"))
    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", interrupted)
    patience = socket.getdefaulttimeout()
    with pytest.raises(KeyboardInterrupt):
        advnb.load("emnist")
    assert not list(unkept.iterdir())
    assert socket.getdefaulttimeout() == patience


def test_a_full_disk_is_told_in_one_line(
    serve: Callable[..., Network], monkeypatch: pytest.MonkeyPatch, unkept: Path
) -> None:
    def full(file: io.BytesIO, **_: object) -> None:
        file.write(b"PK")
        raise OSError(errno.ENOSPC, "No space left on device")

    serve(official("emnist"))
    monkeypatch.setattr(np, "savez", full)
    with refused("No space left on device", ConnectionError):
        advnb.load("emnist")
    assert not list(unkept.iterdir())


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that shows its front page and never answers about anything else."""
    over = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection:
            if connection.recv(4096).split()[1:2] == [b"/"]:
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
            else:
                over.wait(60)

    def listen() -> None:
        while True:
            connection, _ = server.accept()
            if over.is_set():
                connection.close()
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        port = server.getsockname()[1]
        yield f"http://127.0.0.1:{port}/"
        over.set()
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join(10)


def test_a_server_that_falls_silent_is_given_up(
    silent: str, monkeypatch: pytest.MonkeyPatch, unkept: Path
) -> None:
    known = replace(downloads.KNOWN["fashion"], servers=(silent,))
    monkeypatch.setitem(downloads.KNOWN, "fashion", known)
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [silent])
    monkeypatch.setattr(downloads, "STALL", 0.5)
    began = time.monotonic()
    with refused("could not be downloaded", ConnectionError):
        advnb.load("fashion")
    assert 0.4 < time.monotonic() - began < 5
    assert socket.getdefaulttimeout() is None, "what it was before"
    assert not list(unkept.iterdir())


TWICE = """
import json, sys
from dataclasses import replace
import torchvision
import advnb
from advnb import downloads
server, sums = sys.argv[1], json.loads(sys.argv[2])
downloads.KNOWN["fashion"] = replace(downloads.KNOWN["fashion"], servers=(server,))
kind = torchvision.datasets.FashionMNIST
kind.mirrors, kind.resources = [server], [*sums.items()]
data = advnb.load("fashion")
print(data.sizes, (255 * data.train().x.sum((1, 2, 3))).round().int().tolist())
"""


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of Fashion-MNIST's files that gives each to two at a time."""
    both = threading.Barrier(2)

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = official("fashion").get(self.path[1:], b"")
            if content:
                both.wait(120)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        both.abort()
        server.shutdown()
        thread.join(10)


def test_two_processes_that_fetch_the_same_set_at_once(meeting: str, unkept: Path) -> None:
    sums = {name: hashlib.md5(content).hexdigest() for name, content in official("fashion").items()}
    command = [sys.executable, "-c", TWICE, meeting, json.dumps(sums)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    two = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    try:
        for one in two:
            out, errors = one.communicate(timeout=300)
            assert one.returncode == 0, errors
            assert out == "(5, 2) [200, 13, 86, 57, 31]\n"
    finally:
        for one in two:
            one.kill()
    assert [path.name for path in unkept.iterdir()] == ["fashion.npz"], "and nothing else"
    assert advnb.load("fashion").train().y.tolist() == [0, 3, 6, 7, 1]


# --- no network


def nowhere(*_: object, **__: object) -> None:
    raise socket.gaierror("no network")


@pytest.mark.parametrize("name", NAMES)
def test_no_network_is_told_in_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, unkept: Path
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    began = time.monotonic()
    with refused(f"not on this machine.*need no network: {FONTS}. ", ConnectionError):
        advnb.load(name)
    assert time.monotonic() - began < 5
    fallen = advnb.load(name, offline="fonts")
    assert (fallen.name, fallen.title) == ("fonts", "FONTS (hard)")
    with refused("nothing-like-it"):
        advnb.load(name, offline="nothing-like-it")
    assert not unkept.exists()


def test_what_is_on_this_machine_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unkept: Path
) -> None:
    for folder, name in ((tmp_path / "data", "mnist"), (unkept, "gtsrb"), (unkept, "mine")):
        folder.mkdir(exist_ok=True)
        size = (28, 28) if name == "mnist" else (32, 32, 3)
        np.savez(folder / f"{name}.npz", **arrays(size))
    monkeypatch.setenv("ADVNB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    for name in ("fashion", "emnist", "cifar10", "celeba"):
        with refused(f"need no network: {FONTS}, mnist, gtsrb. .*{name}.npz", ConnectionError):
            advnb.load(name)
        assert advnb.load(name, offline="mnist").name == "mnist"
    assert advnb.load("gtsrb").shape == (3, 32, 32)


def test_a_hanging_network_is_given_up(monkeypatch: pytest.MonkeyPatch, unkept: Path) -> None:
    over = threading.Event()

    def hang(*_: object, **__: object) -> None:
        over.wait(60)
        raise socket.gaierror("no network")

    def seconds(name: str) -> float:
        began = time.monotonic()
        with refused(f"not on this machine.*need no network: {FONTS}. ", ConnectionError):
            advnb.load(name)
        return time.monotonic() - began

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        with ThreadPoolExecutor(len(NAMES)) as pool:
            assert max(pool.map(seconds, NAMES)) < 10
    finally:
        over.set()
    assert not unkept.exists()


# --- own files, from the disk to the panels


def finished(panel: Panel) -> None:
    """The panel shows the last picture of its search; then it is closed."""
    assert panel.settle(120)
    assert panel.frame is not None, panel.message.value
    assert panel.frame.complete, panel.message.value
    assert panel.frame.png.startswith(b"\x89PNG")
    panel.close()


OWN = [((20, 24, 3), 4, "CNN"), ((13, 8), 3, "CNN"), ((9, 7), 2, "MLP"), ((9, 7, 3), 5, "MLP")]


@pytest.mark.parametrize(("shape", "classes", "kind"), OWN)
def test_own_images_of_any_size_go_all_the_way(
    tmp_path: Path, shape: tuple[int, ...], classes: int, kind: str
) -> None:
    np.savez(tmp_path / "own.npz", **arrays(shape, 24, classes))
    data = advnb.load(tmp_path / "own.npz")
    assert (data.title, len(data.classes)) == ("own", classes)
    network = getattr(advnb.models, kind)
    model = network(shape=data.shape, classes=classes)
    recipe = advnb.recipes.adversarial(Attack(Pixels(0.1), steps=1), batch_size=8)
    model = advnb.fit(model, data.train(), recipe, epochs=2, progress=False)
    test = data.test(8)
    assert advnb.models.logits(model, test).shape == (8, classes)

    result = Attack(Pixels(0.2), steps=3, restarts=2)(model, test)
    assert result.x.shape == (2, *test.x.shape)
    assert result.delta.abs().max() <= 0.2 + 1e-6
    assert 0 <= result.x.min() <= result.x.max() <= 1

    assert advnb.blindspots.radius(test) == 0.1
    assert advnb.blindspots.printed(test, 1.0, 0.0) is None
    shifted = advnb.blindspots.shifted(test, 0.9, 0.05)
    assert torch.allclose(shifted.x, 0.9 * test.x + 0.1)
    table = advnb.blindspots.table(model, test, Attack(Pixels(0.1), steps=2), progress=False)
    assert [*zip(table.alpha, table.beta)] == advnb.blindspots.columns(test)
    assert all(rate.n == 8 for rate in table.accuracy)
    assert advnb.plots.columns(table, 0.1).png().startswith(b"\x89PNG")

    rows = {"clean": test.x, "attacked": result.x[0]}
    captions = {"clean": advnb.models.predictions(model, test)}
    assert advnb.plots.gallery(rows, captions, alt="own images").png().startswith(b"\x89PNG")

    panel = AttackPanel(model, test, steps=3)
    panel.submit(image=5, eps=0.2, norm="l2")
    finished(panel)
    panel = BlindspotPanel(model, test, steps=3)
    panel.submit(alpha=0.8, beta=0.1)
    finished(panel)


def test_a_network_tells_which_images_are_too_small(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **arrays((9, 7)))
    data = advnb.load(tmp_path / "own.npz")
    with refused("larger images than 1x9x7"):
        advnb.models.CNN(shape=data.shape, classes=len(data.classes))
