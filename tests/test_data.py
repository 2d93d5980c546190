"""Splits, local files good and bad, the folders they lie in, and the real sets."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import advnb
from advnb import Split, splits
from advnb.files import DamagedFileError

from .conftest import refused

RNG = np.random.default_rng(0)


def arrays(shape: tuple[int, ...] = (9, 7), n: int = 12, classes: int = 5) -> dict:
    return {
        "train_x": RNG.integers(0, 256, (n, *shape), np.uint8),
        "train_y": np.arange(n) % classes,
        "test_x": RNG.integers(0, 256, (n // 2, *shape), np.uint8),
        "test_y": np.arange(n // 2) % classes,
    }


def images(n: int = 10) -> Split:
    stream = advnb.stats.generator(n)
    return Split(torch.rand(n, 1, 4, 5, generator=stream), torch.arange(n) % 3)


# --- Split


def same(a: Split, b: Split, rows: object) -> bool:
    """Split a is rows of split b, in every field that b has."""
    pairs = [(a.x, b.x), (a.y, b.y), (a.z, b.z), (a.font, b.font)]
    return all((p is q is None) or torch.equal(p, q[rows]) for p, q in pairs)


def test_indexing() -> None:
    for split in (images(), advnb.load("fonts").train(10)):
        index = torch.tensor([7, 1, 1, 4])
        mask = split.y % 3 == 1
        assert same(split[2:9:3], split, slice(2, 9, 3))
        assert same(split[:5], split, slice(5))
        assert same(split[-3:], split, slice(-3, None))
        assert same(split[index], split, index)
        assert same(split[index.numpy()], split, index)
        assert same(split[[7, 1]], split, [7, 1])
        assert same(split[mask], split, mask)
        assert same(split[mask.numpy()], split, mask)
        for i in (0, 9, -1, -2, -10):
            assert same(split[i], split, [i])
        assert same(split[index][1:][[0, 2]], split, index[1:][[0, 2]])
        assert same(split[4:][mask[4:]][-1], split, mask.nonzero()[-1])


def test_whole_numbers_of_other_libraries() -> None:
    split = images()
    assert same(split[np.int64(3)], split, [3])
    assert same(split[torch.tensor(3)], split, [3])


def test_an_index_that_selects_nothing() -> None:
    split = images()
    for key in (10, -11, slice(5, 5), [], torch.zeros(10, dtype=torch.bool)):
        with refused("selects nothing|does not lie in", IndexError):
            split[key]
    with refused("mask of 3 does not fit", IndexError):
        split[torch.tensor([True, False, True])]
    with pytest.raises(IndexError):
        split[[3, 99]]


def test_iterating_ends() -> None:
    assert [len(one) for one in images(3)] == [1, 1, 1]


def test_shuffled() -> None:
    split = images(50)
    a, b, c = split.shuffled(1), split.shuffled(1), split.shuffled(2)
    assert same(a, b, slice(None))
    assert not torch.equal(a.x, c.x)
    order = [int((split.x == x).flatten(1).all(1).nonzero()) for x in a.x]
    assert sorted(order) == list(range(50))
    assert same(a, split, order)


def test_with_x_and_to() -> None:
    fonts = advnb.load("fonts").train(6)
    other = fonts.with_x(1 - fonts.x)
    assert torch.equal(other.x, 1 - fonts.x)
    assert other.y is fonts.y
    assert other.z is fonts.z
    assert other.dataset is fonts.dataset
    assert same(other[1:3], other, slice(1, 3))
    assert fonts.to("cpu") is fonts
    moved = images().to("meta")
    assert moved.x.device.type == moved.y.device.type == "meta"
    with refused("rows for 5 images|one label an image"):
        fonts.with_x(fonts.x[:5])


def test_shape_looks_at_no_image(fonts: advnb.Dataset) -> None:
    codes = fonts.test(20)
    lazy = codes[[3, 5]]
    wide = Split(torch.rand(6, 3, 4, 5), torch.zeros(6, dtype=torch.int64))
    for split in (codes, lazy, codes[2:4]):
        assert split.shape == (1, 28, 28)
        assert split._x is None
    gathered = wide[[4, 1]]
    for split in (wide, gathered, gathered[[0]], wide[:2], wide.with_x(torch.rand(6, 3, 4, 5))):
        assert split.shape == (3, 4, 5)
    assert gathered._x is None
    for split in (codes, gathered):
        assert split.x.shape[1:] == split.shape
    assert codes.with_x(codes.x[..., :20]).shape == (1, 28, 20)


def test_repr_names_the_data() -> None:
    assert "10 of images" in repr(images())
    assert "FONTS (easy)" in repr(advnb.load("fonts-easy").test(2))


X, Y = torch.rand(4, 1, 3, 3, generator=advnb.stats.generator(1)), torch.arange(4)


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        (X[0], Y, r"float tensor \[N, C, H, W\]"),
        (X.numpy(), Y, "ndarray"),
        ((X * 255).byte(), Y, "uint8"),
        (X, Y.float(), "float32"),
        (X, Y.int(), "int32"),
        (X, Y[:3], "one label an image"),
        (X, Y[:, None], "one label an image"),
        (X, [0, 1, 2, 3], "list"),
        (X[:0], Y[:0], "at least one image"),
        (X * float("nan"), Y, "NaN"),
        (X / 0, Y, r"\[0, 1\]"),
        (X * 2, Y, r"\[0, 1\]"),
        (X - 0.5, Y, r"\[0, 1\]"),
        (X, Y - 1, "labels must be 0 or more"),
        (X, Y.to("meta"), "y is on meta: move it to cpu"),
    ],
)
def test_bad_splits(x: object, y: object, match: str) -> None:
    with refused(match):
        Split(x, y)


def test_bad_rows_of_a_split() -> None:
    for extra in ({"z": torch.zeros(3, 6)}, {"font": torch.zeros(5, dtype=torch.int64)}):
        with refused("rows for 4 images"):
            Split(X, Y, **extra)
    for name in ("z", "font"):
        with refused(f"{name} has 0 rows for 4 images: one each"):
            Split(X, Y, **{name: torch.zeros(())})
        with refused(f"{name} is on meta: move it to cpu, as x is"):
            Split(X, Y, **{name: torch.zeros(4, 6, device="meta")})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_float_types_stay(dtype: torch.dtype) -> None:
    assert Split(X.to(dtype), Y)[[1, 0]].x.dtype == dtype


# --- Dataset and local files


@pytest.mark.parametrize("n", [0, -1, 13, 2.5, True, "3"])
def test_bad_sizes(tmp_path: Path, n: object) -> None:
    np.savez(tmp_path / "own.npz", **arrays())
    data = advnb.load(tmp_path / "own.npz")
    for part in (data.train, data.test):
        with refused("were asked for"):
            part(n)


@pytest.mark.parametrize("shape", [(9, 7), (28, 28), (5, 11, 3), (8, 8, 1), (6, 4, 4)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_local_file(tmp_path: Path, shape: tuple[int, ...], save: object) -> None:
    content = arrays(shape)
    save(tmp_path / "own.npz", **content)
    data = advnb.load(str(tmp_path / "own.npz"))
    height, width, channels = (*shape, 1)[:3]
    assert data.shape == (channels, height, width)
    assert data.sizes == (12, 6)
    assert data.classes == tuple("01234")
    for part, split in (("train", data.train(5)), ("test", data.test(5))):
        assert (split.x.dtype, split.y.dtype) == (torch.float32, torch.int64)
        assert split.x.shape == (5, channels, height, width)
        pixels = content[f"{part}_x"][:5].reshape(5, height, width, channels)
        expected = torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)
        assert torch.equal(split.x, expected)
        assert split.y.tolist() == content[f"{part}_y"][:5].tolist()
        assert split.z is split.font is None
        assert split.dataset is data
    assert len(data.train()) == 12
    assert torch.equal(data.train(3).x, data.train().x[:3])  # reading twice changes nothing
    assert "own" in repr(data)


@pytest.mark.parametrize("shape", [(9, 7), (5, 11, 3)])
@pytest.mark.parametrize("rows", [slice(2, 9), slice(None, None, -1), [3, 0, 3], [True, False] * 6])
def test_parts_of_a_file_are_the_same_before_it_is_read_and_after(
    tmp_path: Path, shape: tuple[int, ...], rows: object
) -> None:
    np.savez(tmp_path / "own.npz", **arrays(shape))
    data = advnb.load(tmp_path / "own.npz")
    read, unread = data.train(), data.train()
    first, second = read.x, read[rows]
    part = unread[rows]
    assert (part.shape, part.dtype, part[[0]].dtype) == (data.shape, torch.float32, torch.float32)
    assert unread._x is not None
    assert unread._x.dtype == torch.uint8  # the part became floats alone
    assert same(part, second, slice(None))
    assert torch.equal(part[[1, 0]].x, second.x[[1, 0]])
    assert torch.equal(unread.to("cpu").x, first)
    assert torch.equal(part.x, unread[rows].x)
    assert part.x.is_contiguous()


def interleaved(seed: int, calls: list[Callable[[], Any]]) -> list[Any]:
    """What calls return in threads of which one at a time goes on, from one instruction of
    splits.py to another, in an order that `seed` decides."""
    stream, news, alive, turn = random.Random(seed), threading.Condition(), [*range(len(calls))], 0

    def next_one() -> None:
        nonlocal turn
        turn = stream.choice(alive) if alive else -1
        news.notify_all()

    def run(k: int) -> Any:
        def step(frame: Any, *_: Any) -> Any:
            if frame.f_code.co_filename != splits.__file__:
                return None
            frame.f_trace_opcodes = True
            with news:
                if stream.random() < 0.3:
                    next_one()
                assert news.wait_for(lambda: turn == k, 60)
            return step

        sys.settrace(step)
        try:
            return calls[k]()
        finally:
            sys.settrace(None)
            with news:
                alive.remove(k)
                next_one()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, range(len(calls))))


def test_threads_that_read_the_same_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **arrays())
    data, rows = advnb.load(tmp_path / "own.npz"), [3, 1, 2]
    ways: list[Callable[[Split], Any]] = [
        lambda split: split.x, lambda split: split[:].x, lambda split: split[[0, 1, 2]].x,
        lambda split: split.shape == data.shape and split.dtype == torch.float32 and split.x,
    ]  # fmt: skip
    expected = data.train().x[rows]
    for seed in range(100):
        split = data.train()[rows]
        for x in interleaved(seed, [partial(way, split) for way in ways]):
            assert torch.equal(x, expected), seed


def test_a_network_takes_odd_sizes(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **arrays((17, 30, 3)))
    data = advnb.load(tmp_path / "own.npz")
    model = advnb.models.CNN(shape=data.shape, classes=len(data.classes))
    assert advnb.accuracy(model, data.test()).n == 6


def change(**changes: object) -> dict:
    return {k: v for k, v in {**arrays(), **changes}.items() if v is not None}


G = arrays()
BAD = {
    "missing array": (change(test_y=None), "must hold the arrays"),
    "float images": (change(train_x=G["train_x"] / 255), "uint8"),
    "flat images": (change(train_x=G["train_x"].reshape(12, -1)), "uint8"),
    "no images": (change(test_x=G["test_x"][:0], test_y=G["test_y"][:0]), "uint8"),
    "fewer labels": (change(train_y=G["train_y"][:-1]), "train_y must be"),
    "column of labels": (change(train_y=G["train_y"][:, None]), "train_y must be"),
    "float labels": (change(test_y=G["test_y"] / 2), "test_y must be"),
    "negative labels": (change(test_y=G["test_y"] - 1), "test_y must be"),
    "pickled labels": (change(test_y=G["test_y"].astype(object)), "pickled"),
    "two sizes": (change(test_x=G["test_x"][:, :-1]), "differ in size"),
    "two shapes": (change(test_x=G["test_x"][..., None]), "differ in size"),
}


@pytest.mark.parametrize("kind", BAD)
def test_unusable_files(tmp_path: Path, kind: str) -> None:
    content, match = BAD[kind]
    np.savez(tmp_path / "own.npz", **content)
    with refused(match, DamagedFileError):
        advnb.load(tmp_path / "own.npz")


def test_labels_beyond_the_known_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "mnist.npz", **arrays((28, 28), n=30, classes=11))
    monkeypatch.setenv("ADVNB_DATA", str(tmp_path))
    with refused("label 10 in a set of 10 classes", DamagedFileError):
        advnb.load("mnist")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"not a zip at all", b"\x80\x04N.", b"\x93NUMPY\x01\x00"]
)
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own.npz").write_bytes(content)
    with refused("own.npz", DamagedFileError):
        advnb.load(tmp_path / "own.npz")


def test_a_single_array_is_not_a_data_set(tmp_path: Path) -> None:
    with open(tmp_path / "own.npz", "wb") as file:
        np.save(file, G["train_x"])
    with refused("own.npz", DamagedFileError):
        advnb.load(tmp_path / "own.npz")


@pytest.fixture(scope="module", params=[np.savez, np.savez_compressed], ids=["plain", "packed"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder = tmp_path_factory.mktemp("whole")
    request.param(folder / "own.npz", **G)
    return folder / "own.npz", (folder / "own.npz").read_bytes()


def damaged(path: Path, good: bytes, where: int, flip: int) -> None:
    """A file with one changed byte is refused, or holds what it held."""
    content = bytearray(good)
    content[where] ^= flip
    path.write_bytes(content)
    try:
        data = advnb.load(path)
    except DamagedFileError:
        return
    assert (data.train().x * 255).round().byte()[:, 0].numpy().tolist() == G["train_x"].tolist()
    assert (data.test().x * 255).round().byte()[:, 0].numpy().tolist() == G["test_x"].tolist()
    assert data.train().y.tolist() == G["train_y"].tolist()
    assert data.test().y.tolist() == G["test_y"].tolist()


@settings(max_examples=300)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_one_changed_byte(whole: tuple, place: float, flip: int) -> None:
    path, good = whole
    damaged(path, good, int(place * len(good)), flip)


@pytest.mark.parametrize("flip", [1, 64])
def test_every_byte_of_the_directory(whole: tuple, flip: int) -> None:
    path, good = whole
    for where in range(good.index(b"PK\x01\x02"), len(good)):  # where the zip lists its files
        damaged(path, good, where, flip)


@settings(max_examples=50)
@given(place=st.floats(0, 1, exclude_max=True))
def test_truncated(whole: tuple, place: float) -> None:
    path, good = whole
    path.write_bytes(good[: int(place * len(good))])
    with refused("own.npz", DamagedFileError):
        advnb.load(path)


def test_missing_file(tmp_path: Path) -> None:
    with refused("no such file", FileNotFoundError):
        advnb.load(tmp_path / "own.npz")


@pytest.mark.parametrize(
    ("name", "match"),
    [("mnits", "'mnist'"), ("font", "'fonts'"), ("fonts-esay", "'fonts-easy'"), ("xyzzy", "mnist")],
)
def test_unknown_names(name: str, match: str) -> None:
    with refused(match):
        advnb.load(name)


# --- folders, the real sets


def test_folders_are_searched_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unkept: Path
) -> None:
    for folder, n in (("b", 20), ("c", 30), ("cache", 40)):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "mnist.npz", **arrays((28, 28), n=n))

    def sizes(*folders: str) -> tuple[int, int]:
        monkeypatch.setenv("ADVNB_DATA", os.pathsep.join(str(tmp_path / f) for f in folders))
        return advnb.load("mnist").sizes

    assert sizes("a", "b", "c") == (20, 10)
    assert sizes("c", "b") == (30, 15)
    assert sizes("a") == (40, 20)  # the cache comes last
    monkeypatch.setenv("ADVNB_DATA", "")
    assert advnb.load("mnist").sizes == (40, 20)


@pytest.mark.parametrize("name", ["mnist", "fashion", "cifar10"])
def test_the_real_sets(name: str, request: pytest.FixtureRequest) -> None:
    data = request.getfixturevalue(name)
    assert data.sizes == (50_000 if name == "cifar10" else 60_000, 10_000)
    assert data.shape == ((3, 32, 32) if name == "cifar10" else (1, 28, 28))
    assert len(data.classes) == 10
    test = data.test()
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert test.y.bincount().tolist() == (counts if name == "mnist" else [1000] * 10)
    assert (test.x.amin(), test.x.amax()) == (0, 1)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64])
def test_positions_of_every_whole_type(kind: type) -> None:
    split, order = images(), [3, 0, 1, 2, 9, 4, 5, 6, 8, 7]
    assert same(split[np.array(order, dtype=kind)], split, order)
    assert same(split[np.array([3, 0], dtype=kind)], split, [3, 0])


@pytest.mark.parametrize("row", [1.5, np.float32(2), torch.tensor(True), np.array(False), 2j])
def test_a_row_that_is_no_whole_number(row: object) -> None:
    with pytest.raises((IndexError, TypeError, ValueError), match=r"rows|index|number") as caught:
        images()[row]  # type: ignore[index]
    assert "0-d" not in str(caught.value)
