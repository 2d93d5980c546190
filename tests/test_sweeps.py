"""A sweep's table is right whatever happens to its cache, its workers and itself, and no finished
cell ever runs again."""

from __future__ import annotations

import functools
import json
import linecache
import math
import os
import random
import re
import signal
import subprocess
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, make_dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advnb import curves, profiles, sweeps, training
from advnb.__main__ import main
from advnb.files import save_arrays
from advnb.stats import Rate
from advnb.sweeps import key, pool, ship, shipped, sweep

from .conftest import refused
from .sweeping import Count, begun, calls, expected, fresh, many, noted


@dataclass(frozen=True)
class Point:
    n: int
    name: str = "point"
    scale: float | None = None


class Counted:
    """Calls a function, and counts the calls by the cell's n."""

    version = 0

    def __init__(self, function: Callable[[Any], Any] = lambda cell: {"value": cell["n"] / 8}):
        self.function, self.calls = function, Counter()

    def __call__(self, cell: Any) -> Any:
        self.calls[cell["n"]] += 1
        return self.function(cell)


def numbers(count: int) -> list[dict[str, Any]]:
    return [{"n": n} for n in range(count)]


def quiet(cells: Any, run: Any, cache: Any, **more: Any) -> pd.DataFrame:
    """A sweep without a bar, on its cache alone."""
    return sweep(cells, run, cache=cache, **{"progress": False, "shipped": False} | more)


@contextmanager
def told() -> Iterator[list[str]]:
    """The different warnings of the block."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages += dict.fromkeys(str(w.message) for w in caught)


@contextmanager
def silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- the table


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No table ships; the folder where one is to be written."""
    monkeypatch.setattr(sweeps, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_a_row_tells_the_device_that_its_run_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    told = {}
    for device in ("cpu", "cuda:1", "mps", None):
        run = Counted()
        if device:
            run.device = device  # type: ignore[attr-defined]
        told[device] = quiet([{"n": 1}], run, tmp_path / str(device)).machine[0]
    assert "CPU" in told["cpu"]
    assert told["cuda:1"].startswith("a GPU, torch")
    assert told["mps"].startswith("Apple GPU, torch")
    assert told[None].startswith("a GPU, torch")


def test_table(tmp_path: Path) -> None:
    run = Counted()
    cells = [{"n": 3, "name": "b"}, {"n": 1, "name": None}, {"n": 3, "name": "b"}, {"n": 2}]
    table = quiet(iter(cells), run, tmp_path)
    assert table.columns.tolist() == [
        "n", "name", "value", "seconds", "made", "machine", "error", "key",
    ]  # fmt: skip
    assert table.key.tolist() == [key(n, run) for n in (cells[0], cells[1], cells[0], cells[3])]
    assert table.index.tolist() == [0, 1, 2, 3]
    assert table.n.tolist() == [3, 1, 3, 2]
    assert table.name.tolist()[0] == "b"
    assert table.name.isna().tolist() == [False, True, False, True]
    assert table.value.tolist() == [3 / 8, 1 / 8, 3 / 8, 2 / 8]
    assert (table.error == "").all()
    assert set(table.made) == {str(date.today())}
    assert torch.__version__.split("+")[0] in table.machine[0]
    assert table.seconds.between(0, 1).all()
    assert run.calls == {1: 1, 2: 1, 3: 1}


def test_seconds_are_those_of_the_cell(tmp_path: Path) -> None:
    run = Counted(lambda cell: time.sleep(cell["n"] / 10) or {"value": 1})
    table = quiet([{"n": 0}, {"n": 2}], run, tmp_path)
    assert table.seconds[0] < 0.2 <= table.seconds[1] < 2
    assert quiet([{"n": 2}], run, tmp_path).seconds[0] == table.seconds[1]


def test_dataclasses_are_like_their_mappings(tmp_path: Path) -> None:
    points = [Point(4), Point(5, "b", 0.5)]
    got = []

    def run(cell: Any) -> dict:
        got.append(cell)
        return {"value": 1}

    run.version = 0  # type: ignore[attr-defined]
    table = quiet(points, run, tmp_path)
    assert got == points  # as they are, not as mappings
    assert table[["n", "name"]].to_dict("list") == {"n": [4, 5], "name": ["point", "b"]}
    quiet([asdict(p) for p in points], run, tmp_path)
    assert len(got) == 2


COLUMNS = ["n", "value", "seconds", "made", "machine", "error", "key"]


def test_columns_of_failed_cells(tmp_path: Path) -> None:
    run = Counted(lambda cell: {"value": 1 / cell["n"]})
    assert quiet(numbers(2)[::-1], run, tmp_path).columns.tolist() == COLUMNS
    assert {*quiet(numbers(1), run, tmp_path).columns} >= {"n", "error", "key"}


@pytest.mark.parametrize("what", ["failed", "fields", "shipped"])
def test_columns_where_the_first_row_is_another(tmp_path: Path, results: Path, what: str) -> None:
    run = Counted(lambda cell: {"value": 1 / cell["n"]})
    if what == "failed":
        assert quiet(numbers(2), run, tmp_path).columns.tolist() == COLUMNS
    elif what == "fields":
        table = quiet([{"n": 1}, {"n": 2, "m": 3}], run, tmp_path)
        assert table.columns.tolist() == ["n", "m", *COLUMNS[1:]]
    else:
        ship(quiet([{"n": 1}], run, tmp_path / "a"), "mine")
        table = quiet([{"n": 1}], run, tmp_path / "b", shipped=True)
        assert table.columns.tolist() == COLUMNS


def test_rate(tmp_path: Path) -> None:
    row = quiet([{"n": 5}], Counted(lambda cell: Rate(0.25, 0.125, 0.5, 40)), tmp_path).iloc[0]
    assert (row.n, row.value, row.low, row.high, row.of) == (5, 0.25, 0.125, 0.5, 40)
    run = Counted(lambda cell: Rate(math.nan, 0.0, 1.0, 0))
    for _ in range(2):  # as found, as kept
        row = quiet([{"n": 6}], run, tmp_path).iloc[0]
        assert math.isnan(row.value)
        assert (row.low, row.high, row.of, row.error) == (0, 1, 0, "")
    assert run.calls == {6: 1}


def test_scalars_are_made_plain(tmp_path: Path) -> None:
    found = {
        "a": np.float32(0.5), "b": np.int64(3), "c": torch.tensor(0.25), "d": torch.tensor(True),
        "e": np.array(7), "f": "text", "g": None, "h": np.str_("u"), "i": np.bool_(False),
    }  # fmt: skip
    plain = {
        "a": 0.5, "b": 3, "c": 0.25, "d": True, "e": 7, "f": "text", "g": None, "h": "u",
        "i": False,
    }  # fmt: skip
    run = Counted(lambda cell: found)
    first, second = (quiet([{"n": 1}], run, tmp_path) for _ in range(2))
    assert run.calls[1] == 1
    pd.testing.assert_frame_equal(first, second)
    row = first.astype(object).iloc[0]
    assert {n: None if n == "g" else row[n] for n in plain} == plain
    kept = json.loads(next(tmp_path.glob("*.json")).read_text())["row"]
    assert {n: kept[n] for n in plain} == plain
    assert all(type(kept[n]) is type(plain[n]) for n in plain)


RESERVED = ["n", "seconds", "made", "machine", "error", "key"]
NAMES = st.text(min_size=1).filter(lambda name: name not in RESERVED)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())


@settings(max_examples=30)
@given(found=st.dictionaries(NAMES, PLAIN, min_size=1, max_size=4))
def test_a_kept_row_is_the_row(found: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder, silent():
        run = Counted(lambda cell: found)
        first, second = (quiet([{"n": 1}], run, folder) for _ in range(2))
    assert run.calls[1] == 1
    assert first.error[0] == ""
    pd.testing.assert_frame_equal(first, second)
    for name, value in found.items():
        if isinstance(value, float) and not math.isnan(value):
            assert second[name][0] == value  # every bit
        elif isinstance(value, str):
            assert second[name][0] == value


@pytest.mark.parametrize("field", ["n", *sweeps.ABOUT])
def test_a_result_with_a_column_of_the_table(tmp_path: Path, field: str) -> None:
    run = Counted(lambda cell: {field: 0.125} if cell["n"] else {"value": 1})
    table = quiet([{"n": 1}, {"n": 0}], run, tmp_path)
    assert table.error[0].endswith(f"the table has a column {field!r} already: rename the result's")
    assert table.error[1] == ""


@pytest.mark.parametrize("field", sweeps.ABOUT)
def test_a_cell_with_a_column_of_the_table(tmp_path: Path, field: str) -> None:
    try:
        error = quiet([{"n": 1, field: "x"}], Counted(), tmp_path).error[0]
    except ValueError as refusal:
        error = str(refusal)
    assert f"{field!r}" in error


@pytest.mark.parametrize(
    "found",
    [None, 3, {}, {"a": [1]}, {"a": torch.zeros(2)}, {1: 2}, {"a": 1j}, [("a", 1)]],
    ids=str,
)  # fmt: skip
def test_no_plain_result(tmp_path: Path, found: Any) -> None:
    run = Counted(lambda cell: found if cell["n"] else {"value": 1})
    table = quiet([{"n": 1}, {"n": 0}], run, tmp_path)
    assert table.error[0].startswith("Traceback")
    told = table.error[0].splitlines()[-1]
    assert (
        "a result must be a Rate or a mapping of plain values: " in told or "Tensor with 2" in told
    )
    assert table.error[1] == ""


NESTED = make_dataclass("Nested", [("point", Point)])(Point(1))


@pytest.mark.parametrize(
    "cell",
    [3, None, "text", (), {}, Point, NESTED, {1: 2}, {"a": [1]}, {"a": {"b": 1}}, {"a": 1j},
     {"a": torch.tensor(1)}, {"a": np.int64(1)}, {"a\nb": b"x" * 999}, object()],
    ids=lambda cell: str(cell)[:20],
)  # fmt: skip
def test_bad_cells(tmp_path: Path, cell: Any) -> None:
    run = Counted()
    with refused("a cell must be a dataclass or a mapping"):
        quiet([{"n": 1}, cell], run, tmp_path)
    assert not run.calls  # told before hours are spent on the others
    with refused("a cell must be"):
        key(cell, run)


def test_no_cells(tmp_path: Path) -> None:
    assert len(quiet([], Counted(), tmp_path)) == 0


def test_bar(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    class Free(Counted):
        def cost(self, cell: Any) -> float:
            asked.append(cell["n"])
            return 0.0

    asked: list[int] = []
    quiet(numbers(2), Free(), tmp_path)
    assert capsys.readouterr() == ("", "")
    table = quiet(numbers(4), Free(), tmp_path, progress=True)
    assert table.value.tolist() == [0, 1 / 8, 2 / 8, 3 / 8]
    assert "2 of 2 cells" in capsys.readouterr().err
    assert asked == [0, 1, 2, 3]  # only those that are to run
    quiet(numbers(4), Free(), tmp_path, progress=True)
    assert capsys.readouterr() == ("", "")


def test_default_cache(unkept: Path) -> None:
    run = Counted()
    sweep(numbers(2), run, progress=False)
    assert len(list((unkept / "sweep").glob("*.json"))) == 2
    sweep(numbers(2), run, progress=False)
    assert run.calls == {0: 1, 1: 1}


# --- keys: what counts as the same cell


def plain_run(cell: Any) -> dict[str, Any]:
    return {"value": 1.0}


def other_run(cell: Any) -> dict[str, Any]:
    return {"value": 2.0}


CELLS = st.dictionaries(st.text(max_size=3), PLAIN, min_size=1, max_size=4)


@given(a=CELLS, b=CELLS, shuffle=st.randoms())
def test_keys(a: dict[str, Any], b: dict[str, Any], shuffle: random.Random) -> None:
    names = list(a)
    shuffle.shuffle(names)
    assert key({n: a[n] for n in names}, plain_run) == key(a, plain_run) != key(a, other_run)
    if repr(sorted(a.items())) != repr(sorted(b.items())):  # 1, 1.0 and True are not the same
        assert key(a, plain_run) != key(b, plain_run)
    assert len(key(a, plain_run)) == 24


def test_keys_see_types() -> None:
    values = [1, 1.0, True, "1", None, "None", math.nan, "", 0, -0.0, 0.0]
    assert len({key({"a": v}, plain_run) for v in values}) == len(values)
    assert key(Point(3), plain_run) == key(asdict(Point(3)), plain_run)


def test_another_cell_function_or_version_runs(tmp_path: Path) -> None:
    class Versioned(Counted):
        pass

    def runs(run: Any, cell: dict[str, Any]) -> bool:
        before = run.calls.total()
        quiet([cell], run, tmp_path)
        return run.calls.total() > before

    run, other = Counted(), Versioned()
    assert runs(run, {"n": 1, "a": 2})
    assert not runs(run, {"a": 2, "n": 1})
    assert runs(run, {"n": 1, "a": 3})
    assert runs(run, {"n": 1, "a": 2, "b": None})
    assert runs(run, {"n": 1})
    assert runs(other, {"n": 1})
    for version in (1, "two", [3, "x"], lambda fields: fields["n"] + 1000):
        other.version = version
        assert runs(other, {"n": 1}), version
        assert not runs(other, {"n": 1}), version
    other.version = 1  # as before
    assert not runs(other, {"n": 1})


def test_version_of_some_cells(tmp_path: Path) -> None:
    run = Counted()
    run.version = lambda fields: 0
    quiet(numbers(3), run, tmp_path)
    run.version = lambda fields: int(fields["n"] == 1)
    quiet(numbers(3), run, tmp_path)
    assert run.calls == {0: 1, 1: 2, 2: 1}


def lines(text: str, value: float) -> Callable[[Any], Any]:
    """A function typed in, whose source is known as that of a notebook's cell is."""
    name, scope = f"<cell {text!r}>", {"value": value}
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    exec(compile(text, name, "exec"), scope)
    return scope["run"]


def test_a_function_s_source_tells_it_from_another(tmp_path: Path) -> None:
    one, two = (f"def run(cell):\n    return dict(value={v})\n" for v in ("value", "2 * value"))
    assert quiet(numbers(1), lines(one, 1), tmp_path).value[0] == 1
    assert quiet(numbers(1), lines(two, 1), tmp_path).value[0] == 2
    assert quiet(numbers(1), lines(one, 3), tmp_path).value[0] == 3  # a number that it reads
    listed = one.replace("=value)", "=value[0])")
    assert quiet(numbers(1), lines(listed, [4]), tmp_path).value[0] == 4
    assert quiet(numbers(1), lines(listed, [5]), tmp_path).value[0] == 4  # a list is not told
    versioned = lines(listed, [5])
    versioned.version = 1
    assert quiet(numbers(1), versioned, tmp_path).value[0] == 5


@pytest.mark.parametrize(
    "text",
    [
        "def run(cell, factor=value):\n    return dict(value=factor)\n",
        "def run(cell, *, factor=value):\n    return dict(value=factor)\n",
        "def run(cell):\n    return dict(value=max([value for _ in 'ab']))\n",
        "def run(cell):\n    return dict(value=(lambda: max(value for _ in 'ab'))())\n",
        "def run(cell):\n    def inner():\n        return value\n    return dict(value=inner())\n",
        "run = lambda cell: dict(value=(lambda: value)())\n",
    ],
)
def test_numbers_are_seen_wherever_they_are_read(tmp_path: Path, text: str) -> None:
    for value in (1, 2, 1):
        assert quiet(numbers(1), lines(text, value), tmp_path).value[0] == value


def test_a_plain_function_keeps_its_key() -> None:
    """Or results that lie in caches would be lost."""
    run = lines("def run(cell):\n    return dict(value=[value, cell])\n", 3)
    assert key({"n": 1}, run) == "8a6794203124c093f032eee3"


def test_two_lambdas_of_one_line_cannot_be_told_apart(tmp_path: Path) -> None:
    text = "run, other = (lambda cell: dict(value=1)), (lambda cell: dict(value=2))\n"
    with refused("cannot be told from another run: give it a `version`"):
        quiet(numbers(1), lines(text, 0), tmp_path)


def test_a_function_that_holds_others_is_not_told_from_another(tmp_path: Path) -> None:
    def made(factor: int) -> Callable[[Any], Any]:
        def run(cell: Any) -> dict:
            return {"value": factor * cell["n"]}

        return run

    with refused("cannot be told from another run: give it a `version`"):
        quiet(numbers(1), made(2), tmp_path)


def test_versions_go_before_sources() -> None:
    one, two = (lines(f"def run(cell):\n    return {v}\n", 0) for v in (1, 2))
    assert key({"n": 1}, one) != key({"n": 1}, two)
    one.version = two.version = 0
    assert key({"n": 1}, one) == key({"n": 1}, two)


class Nameless:
    """No function, and no version."""

    def __call__(self, cell: Any) -> dict[str, Any]:
        pytest.fail("runs")

    def method(self, cell: Any) -> dict[str, Any]:
        pytest.fail("runs")


def test_what_cannot_be_told_from_another(tmp_path: Path) -> None:
    scope: dict[str, Any] = {}
    exec(compile("def run(cell): pass", "<typed in>", "exec"), scope)
    runs = [
        functools.partial(plain_run),
        Nameless(),
        Nameless().method,
        Nameless,
        abs,
        scope["run"],
    ]
    for run in runs:
        with refused("cannot be told from another run: give it a `version`"):
            quiet(numbers(1), run, tmp_path)
        with refused("cannot be told from another run: give it a `version`"):
            key({"n": 1}, run)
    assert not any(tmp_path.iterdir())


def test_partials_with_a_version(tmp_path: Path) -> None:
    for value, run in enumerate((plain_run, other_run), 1):
        part = functools.partial(run)
        part.version = run.__name__
        for _ in range(2):
            assert quiet(numbers(1), part, tmp_path).value[0] == value


# --- the cache


def test_finished_cells_never_run_again(tmp_path: Path) -> None:
    run = Counted()
    first = quiet(numbers(5), run, tmp_path)
    with silent():
        again = quiet(numbers(8)[::-1], run, tmp_path)
    assert run.calls == dict.fromkeys(range(8), 1)
    pd.testing.assert_frame_equal(again[::-1].head(5).reset_index(drop=True), first)
    assert all(p.suffix == ".json" and p.name[0] != "." for p in tmp_path.iterdir())


def test_a_cell_that_another_sweep_finishes_meanwhile(tmp_path: Path) -> None:
    def inner(cell: Any) -> dict[str, Any]:
        if cell["n"] == 0:
            quiet([{"n": 1}], run, tmp_path)
        return {"value": cell["n"]}

    run = Counted(inner)
    assert quiet(numbers(2), run, tmp_path).value.tolist() == [0, 1]
    assert run.calls == {0: 1, 1: 1}


def kept() -> tuple[str, bytes, dict[str, Any], bytes]:
    """A finished cell: its file's name, its content, its row, and another cell's file."""
    with tempfile.TemporaryDirectory() as folder:
        table = quiet([{"n": 1}, {"n": 2}], Counted(), folder)
        name, other = (f"{key({'n': n}, Counted())}.json" for n in (1, 2))
        content, another = ((Path(folder) / n).read_bytes() for n in (name, other))
    return name, content, table.iloc[0].to_dict(), another


NAME, GOOD, ROW, ANOTHER = kept()


def after(content: bytes) -> bool:
    """Whether a cell with this for its file runs again; else it has its old row."""
    run = Counted(lambda cell: {"value": -1.0})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        path.write_bytes(content)
        with told() as messages:
            row = quiet([{"n": 1}], run, folder).iloc[0].to_dict()
        if run.calls[1]:
            assert row["value"] == -1
            assert messages == [f"{path} is damaged: that cell runs again"]
            with silent():  # whole again
                assert quiet([{"n": 1}], run, folder).value[0] == -1
            assert run.calls[1] == 1
        else:
            assert row == ROW
            assert not messages
    return run.calls[1] > 0


def test_undamaged() -> None:
    assert not after(GOOD)


def test_every_third_byte_counts() -> None:
    for where in range(0, len(GOOD), 3):
        content = bytearray(GOOD)
        content[where] ^= 1
        assert after(bytes(content)), content


@settings(max_examples=120)
@given(where=st.integers(0, len(GOOD) - 1), flip=st.integers(1, 255))
def test_one_changed_byte(where: int, flip: int) -> None:
    content = bytearray(GOOD)
    content[where] ^= flip
    after(bytes(content))  # white space may change


@settings(max_examples=30)
@given(length=st.integers(0, len(GOOD) - 1))
def test_truncated(length: int) -> None:
    assert after(GOOD[:length])


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * len(GOOD), ANOTHER, GOOD + GOOD, b"[]", b"null", b"1", b'"text"', b"{}",
     b'{"row": {}}', b'{"row": null, "sha256": null}', b'{"row": 3, "sha256": "x"}',
     b'{"row": {"value": 0.5, "error": ""}, "sha256": ""}', b"[" * 100_000, b"9" * 10_000,
     GOOD.decode().encode("utf-16"), b"\xff" + GOOD, json.dumps([json.loads(GOOD)]).encode()],
    ids=lambda content: repr(content[:12]),
)  # fmt: skip
def test_another_content(content: bytes) -> None:
    assert after(content)


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    run = Counted()
    for count in (1, 2):
        with told() as messages:
            assert quiet(numbers(2), run, tmp_path).value.tolist() == [0, 1 / 8]
        assert f"{NAME} cannot be read (Is a directory): that cell runs" in messages[0]
        assert "not kept" in messages[1]
        assert run.calls == {0: 1, 1: count}


def test_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, save: Any) -> Path:
        raise OSError("No space left on device")

    run = Counted()
    with monkeypatch.context() as patch, told() as messages:
        patch.setattr("advnb.kept.write", full)
        table = quiet(numbers(1), run, tmp_path / "new")
    assert table.to_dict("records")[0]["value"] == 0
    assert table.error[0] == ""
    assert messages == ["a result is not kept: No space left on device"]
    with silent():
        quiet(numbers(1), run, tmp_path / "new")
    assert run.calls[0] == 2


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """To this process the disk is full wherever a file would grow longer."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk(tmp_path: Path) -> None:
    run = Counted()
    quiet([{"n": 0}], run, tmp_path)
    with files_of_at_most(50), told() as messages:
        table = quiet(numbers(2), run, tmp_path)
    assert table.value.tolist() == [0, 1 / 8]
    assert len(messages) == 1
    assert "not kept" in messages[0]
    assert len(list(tmp_path.iterdir())) == 1  # no half file
    quiet(numbers(2), run, tmp_path)
    assert run.calls == {0: 1, 1: 2}


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with told() as messages:
        assert quiet(numbers(2), Counted(), tmp_path / "file").value.tolist() == [0, 1 / 8]
    assert sum("not kept" in message for message in messages) == 2
    assert (tmp_path / "file").read_text() == "mine"


# --- the tables that ship


def test_shipped_tables_count(tmp_path: Path, results: Path) -> None:
    cells = [{"n": n, "name": f"cell {n}", "scale": n / 3, "deep": n > 1} for n in range(3)]
    run = Counted(lambda cell: 1 / 0 if cell["n"] == 2 else {"value": cell["scale"] / 7})
    first = quiet(cells, run, tmp_path / "a")
    assert ship(first, "mine") == results / "mine.csv"
    assert shipped("mine").n.tolist() == [0, 1]  # not the one that failed
    assert shipped("mine").key.tolist() == first.key.tolist()[:2]
    assert {*shipped("mine").columns} == {*first.columns}
    assert (shipped("mine").error == "").all()

    again = quiet(cells, run, tmp_path / "b", shipped=True)
    assert run.calls == {0: 1, 1: 1, 2: 2}
    pd.testing.assert_frame_equal(first.head(2), again.head(2), check_like=True)
    assert list((tmp_path / "b").glob("*.json")) == []
    quiet(cells, run, tmp_path / "c")
    assert run.calls == {0: 2, 1: 2, 2: 3}
    run.version = 1
    quiet(cells, run, tmp_path / "d", shipped=True)
    assert run.calls == {0: 3, 1: 3, 2: 4}


def test_shipped_numbers_are_exact(tmp_path: Path, results: Path) -> None:
    stream = random.Random(0)
    values = [5e-324, 1.7976931348623157e308, 0.1 + 0.2, -1e-9, 123456789.12345679]
    values += [stream.random() * 10 ** stream.randint(-12, 12) for _ in range(60)]
    cells = [{"n": n, "eps": value} for n, value in enumerate(values)]
    run = Counted(lambda cell: {"value": values[cell["n"]]})
    ship(quiet(cells, run, tmp_path / "a"), "mine")
    again = quiet(cells, run, tmp_path / "b", shipped=True)
    assert max(run.calls.values()) == 1
    assert again.value.tolist() == values
    assert again.eps.tolist() == values


def test_a_paper_s_numbers_are_no_cells(tmp_path: Path, results: Path) -> None:
    results.mkdir()
    (results / "paper.csv").write_text("n,value\n0,0.5\n")
    run = Counted()
    assert quiet(numbers(1), run, tmp_path / "a", shipped=True).value[0] == 0
    assert shipped("paper").value.tolist() == [0.5]
    assert shipped("paper").columns.tolist() == ["n", "value"]


def test_nothing_of_that_name_ships() -> None:
    with refused("no such file", FileNotFoundError):
        shipped("no such table")
    assert len(shipped("stutz2019")) > 100


@pytest.mark.parametrize("pair", [(None, 3), (1, 0.5), (1, None)], ids=str)
def test_shipped_cells_of_mixed_kinds_count(
    tmp_path: Path, results: Path, pair: tuple[Any, Any]
) -> None:
    cells = [{"n": n, "a": value} for n, value in enumerate(pair)]
    run = Counted()
    ship(quiet(cells, run, tmp_path / "a"), "mine")
    table = quiet(cells, run, tmp_path / "b", shipped=True)
    assert run.calls == {0: 1, 1: 1}
    pd.testing.assert_frame_equal(table, quiet(cells, run, tmp_path / "a"), check_like=True)


@pytest.mark.parametrize("text", ["007", "NA", "None", "1e3", "True", ""])
def test_shipped_cells_keep_their_fields(tmp_path: Path, results: Path, text: str) -> None:
    cells, run = [{"n": 1, "a": text}], Counted()
    ship(quiet(cells, run, tmp_path / "a"), "mine")
    table = quiet(cells, run, tmp_path / "b", shipped=True)
    assert run.calls == {1: 1}
    assert table.a[0] == text


# --- cells that fail


def test_a_failed_cell(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    broken = True

    def function(cell: Any) -> dict[str, Any]:
        if broken and cell["n"] == 1:
            raise ZeroDivisionError("of this cell")
        return {"value": cell["n"]}

    run = Counted(function)
    cells = [{"n": n, "name": f"cell{n}"} for n in range(3)]
    table = quiet(cells, run, tmp_path)
    assert table.value.isna().tolist() == [False, True, False]
    assert [error == "" for error in table.error] == [True, False, True]
    assert table.error[1].startswith("Traceback")
    assert table.error[1].endswith("ZeroDivisionError: of this cell")
    printed = capsys.readouterr().out
    assert "FAILED: n=1 name=cell1\n" in printed
    assert table.error[1] in printed
    assert not (tmp_path / f"{key(cells[1], run)}.json").exists()

    assert quiet(cells, run, tmp_path).error[1] == table.error[1]
    assert run.calls == {0: 1, 1: 2, 2: 1}
    broken = False
    assert quiet(cells, run, tmp_path).value.tolist() == [0, 1, 2]
    assert run.calls == {0: 1, 1: 3, 2: 1}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_stop(tmp_path: Path, stop: type[BaseException]) -> None:
    def function(cell: Any) -> dict[str, Any]:
        if cell["n"] == 2 and run.calls[2] == 1:
            raise stop
        return {"value": cell["n"]}

    run = Counted(function)
    with pytest.raises(stop):
        quiet(numbers(4), run, tmp_path)
    assert run.calls == {0: 1, 1: 1, 2: 1}
    assert quiet(numbers(4), run, tmp_path).value.tolist() == [0, 1, 2, 3]
    assert run.calls == {0: 1, 1: 1, 2: 2, 3: 1}


def test_stop_on_an_executor(tmp_path: Path) -> None:
    def function(cell: Any) -> dict[str, Any]:
        if cell["n"] == 2:
            raise KeyboardInterrupt
        time.sleep(0.05)
        return {"value": cell["n"]}

    run = Counted(function)
    with pytest.raises(KeyboardInterrupt), ThreadPoolExecutor(1) as executor:
        quiet(numbers(40), run, tmp_path, executor=executor)
    assert {0, 1, 2} <= {*run.calls} < {*range(30)}  # the others are not waited for
    run.function = lambda cell: {"value": cell["n"]}
    assert quiet(numbers(40), run, tmp_path).value.tolist() == [*range(40)]
    assert run.calls == dict.fromkeys(range(40), 1) | {2: 2}


# --- executors


@pytest.fixture(scope="module")
def workers() -> Iterator[Executor]:
    with pool(2) as executor:
        yield executor


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None,
            memory_limit=0, silence_logs=60, local_directory=str(tmp_path_factory.mktemp("dask")),
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        yield client.get_executor()


@pytest.fixture(params=["here", "threads", "workers", "dask"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor | None]:
    if request.param == "here":
        yield None
    elif request.param == "threads":
        with ThreadPoolExecutor(2) as threads:
            yield threads
    else:
        yield request.getfixturevalue(request.param)


ATTACKS = ("one", "two", "three")


def groups(**more: Any) -> list[dict[str, Any]]:
    """Four models under three attacks each, all mixed."""
    cells = [{"n": n, "attack": attack} | more for n in range(4) for attack in ATTACKS]
    random.Random(0).shuffle(cells)
    return cells


def right(table: pd.DataFrame, cells: list[dict[str, Any]]) -> bool:
    """Whether a table has what these cells must give, in their order."""
    values = [expected(cell["n"], cell.get("attack", "")) for cell in cells]
    return table.n.tolist() == [c["n"] for c in cells] and table.value.tolist() == values


def test_same_from_each_executor(tmp_path: Path, executor: Executor | None) -> None:
    cells, notes = groups(), tmp_path / "notes"
    with silent():
        table = quiet(cells, Count(str(notes)), tmp_path / "cache", executor=executor)
    assert right(table, cells)
    assert set(table.threads) == {1}
    assert set(calls(notes).values()) == {1}
    for n in range(4):  # a model's cells in one process, in the order that was asked for
        attacks, processes = zip(*[(a, process) for m, a, process, _ in noted(notes) if m == n])
        assert list(attacks) == [cell["attack"] for cell in cells if cell["n"] == n]
        assert len(set(processes)) == 1
    # kept by whoever ran them
    with silent():
        pd.testing.assert_frame_equal(table, quiet(cells, Count(str(notes)), tmp_path / "cache"))
    assert len(noted(notes)) == len(cells)


def test_failures_on_each_executor(tmp_path: Path, executor: Executor | None) -> None:
    cells, notes = groups(does="raise:1:two"), tmp_path / "notes"
    failed = cells.index({"n": 1, "attack": "two", "does": "raise:1:two"})
    table = quiet(cells, Count(str(notes)), tmp_path / "cache", executor=executor)
    assert table.index[table.error != ""].tolist() == [failed]
    assert table.error[failed].startswith("Traceback")
    assert table.error[failed].endswith("RuntimeError: the first time it fails")
    table = quiet(cells, Count(str(notes)), tmp_path / "cache", executor=executor)
    assert right(table, cells)
    assert (table.error == "").all()
    assert calls(notes) == {(c["n"], c["attack"]): 1 for c in cells} | {(1, "two"): 2}


def test_a_failure_is_not_dask_s_memory(tmp_path: Path, dask: Executor) -> None:
    """Dask answers an equal task from its memory: no two may be equal to it."""

    class Remembering(Executor):
        def submit(self, function: Any, /, *args: Any, **more: Any) -> Future:
            futures.append(dask.submit(function, *args, **more))
            return futures[-1]

    # without this dask forgets when Python collects its garbage, mostly later than the next sweep
    futures: list[Future] = []
    cells, run = [{"n": 1, "does": "raise"}], Count(str(tmp_path / "notes"))
    for error in ("RuntimeError: the first time it fails", ""):
        table = quiet(cells, run, tmp_path / "cache", executor=Remembering())
        assert table.error[0].endswith(error)
        assert (table.error[0] == "") == (error == "")


def test_what_cannot_be_sent_to_a_process(tmp_path: Path, workers: Executor) -> None:
    with told() as messages:
        table = quiet(numbers(2), lambda cell: {"value": 1}, tmp_path, executor=workers)
    assert all(re.search("pickle", error, re.IGNORECASE) for error in table.error)
    assert not messages


def test_within(tmp_path: Path) -> None:
    class Recording(ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any, **more: Any) -> Future:
            tasks.append([cell for _, cell in args[0]])
            return super().submit(function, *args, **more)

    cells = groups()
    for within, count in ((["attack"], 4), (("n",), 3), (("n", "attack"), 1), ((), 12)):
        tasks: list[list[dict[str, Any]]] = []
        with Recording(1) as executor:
            quiet(cells, Counted(), tmp_path / str(within), executor=executor, within=within)
        assert len(tasks) == count
        assert sorted(str(cell) for task in tasks for cell in task) == sorted(map(str, cells))


def test_threads_come_back(tmp_path: Path) -> None:
    def function(cell: Any) -> dict[str, Any]:
        seen = torch.get_num_threads()
        torch.set_num_threads(2)  # must not reach the next cell
        if cell["n"] == 1:
            raise RuntimeError
        return {"value": seen}

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        table = quiet(numbers(3), Counted(function), tmp_path)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert table.value.dropna().tolist() == [1, 1]


def test_threads_come_back_from_threads(tmp_path: Path) -> None:
    """The last cell to end sets back what was there before the first began."""

    class OneAfterTheOther(ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any, **more: Any) -> Future:
            future = super().submit(function, *args, **more)
            began.wait(20)  # the second finds the setting of the first
            return future

    def function(cell: Any) -> dict[str, Any]:
        began.set()
        both.wait()
        time.sleep(0.3 * cell["n"])  # and is the last to end
        return {"value": torch.get_num_threads()}

    began, both = threading.Event(), threading.Barrier(2, timeout=20)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with OneAfterTheOther(2) as executor:
            table = quiet(numbers(2), Counted(function), tmp_path, executor=executor)
        with ThreadPoolExecutor(1) as new:
            seen = new.submit(torch.get_num_threads).result()
    finally:
        torch.set_num_threads(before)
    assert table.value.tolist() == [1, 1]
    assert seen == 3


class Elsewhere(ThreadPoolExecutor):
    """Workers with a disk of their own: they cannot see the folder that they are told."""

    def __init__(self, disk: Path) -> None:
        super().__init__(1)
        self.disk = disk

    def submit(self, function: Any, /, *args: Any, **more: Any) -> Future:
        folders = [str(self.disk) if isinstance(a, str | Path) else a for a in args]
        return super().submit(function, *folders, **more)


def test_workers_with_another_disk(tmp_path: Path) -> None:
    run = Counted()
    with Elsewhere(tmp_path / "there") as executor:
        table = quiet(numbers(3), run, tmp_path / "here", executor=executor)
    assert len(list((tmp_path / "there").iterdir())) == 3
    with silent():
        pd.testing.assert_frame_equal(table, quiet(numbers(3), run, tmp_path / "here"))
    assert run.calls == {0: 1, 1: 1, 2: 1}


def test_workers_with_another_disk_mend_a_damaged_file(tmp_path: Path) -> None:
    """Only a whole file is taken for the worker's own."""
    run = Counted()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / NAME).write_bytes(GOOD[:50])
    with Elsewhere(tmp_path / "there") as executor, told():
        quiet([{"n": 1}], run, tmp_path / "here", executor=executor)
    with silent():
        quiet([{"n": 1}], run, tmp_path / "here")
    assert run.calls == {1: 1}


def test_unreadable_cache_on_an_executor(tmp_path: Path) -> None:
    # a name too long stands for a folder without permission, which root may look into
    with told(), ThreadPoolExecutor(1) as executor:
        table = quiet(numbers(2), Counted(), tmp_path / ("x" * 300), executor=executor)
    assert table.value.tolist() == [0, 1 / 8]


def test_every_cell_of_a_broken_executor_is_told_alike(tmp_path: Path) -> None:
    """The executor has one exception for all, whose traceback would grow with each."""

    class Broken(Executor):
        def submit(self, function: Any, /, *args: Any, **more: Any) -> Future:
            future: Future = Future()
            future.set_exception(error)
            return future

    error = BrokenExecutor("a process in the pool was terminated abruptly")
    table = quiet(numbers(9), Counted(), tmp_path, executor=Broken())
    assert "terminated abruptly" in table.error[0]
    assert len(set(table.error)) == 1


def test_an_executor_that_breaks_early(tmp_path: Path) -> None:
    """A worker dies before all cells are handed out."""

    class Breaks(ThreadPoolExecutor):
        left = 2

        def submit(self, function: Any, /, *args: Any, **more: Any) -> Future:
            self.left -= 1
            if self.left < 0:
                raise BrokenExecutor("a process in the pool was terminated abruptly")
            return super().submit(function, *args, **more)

    with Breaks(1) as executor:
        table = quiet(numbers(4), Counted(), tmp_path, executor=executor)
    assert [error == "" for error in table.error] == [True, True, False, False]


def test_pool_wants_a_number() -> None:
    for workers in (0, -1, 1.5, True, "2", None):
        with refused("workers must be a whole number >= 1"):
            pool(workers)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are not killed so here")
@pytest.mark.parametrize(
    "when",
    [
        "busy",
        "starting",
    ],
)  # fmt: skip
def test_workers_end_with_their_parent(when: str) -> None:
    child = begun(f"hold_a_pool({when == 'starting'})")
    worker = json.loads(child.stdout.readline())
    child.kill()
    try:
        child.communicate(timeout=6)  # to the end of what the worker may write to as well
    except subprocess.TimeoutExpired:
        os.kill(worker, signal.SIGKILL)
        raise


def test_an_interrupted_worker_ends(workers: Executor) -> None:
    """Ctrl-C reaches the workers as well; one that lived on would begin the next cells."""
    assert workers.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_DFL


def deadly() -> list[dict[str, Any]]:
    """Two models with five attacks each; the worker dies of the third of the first."""
    return [
        {"n": n, "attack": attack, "pause": 0.02, "does": "die:0:c"}
        for n in range(2)
        for attack in "abcde"
    ]


def test_a_worker_of_the_pool_dies(tmp_path: Path) -> None:
    cells, notes = deadly(), tmp_path / "notes"
    run = Count(str(notes))
    with pool(2) as executor:
        table = quiet(cells, run, tmp_path / "cache", executor=executor)
    finished = table[table.error == ""]
    assert "BrokenProcessPool" in table.error[2].splitlines()[-1]
    assert (table.error[:5] == "").tolist() == [True, True, False, False, False]
    assert finished.value.tolist() == [expected(r.n, r.attack) for r in finished.itertuples()]
    again = quiet(cells, run, tmp_path / "cache")
    assert right(again, cells)
    pd.testing.assert_frame_equal(
        again.loc[finished.index], finished[again.columns], check_dtype=False
    )
    counts = calls(notes)
    assert all(counts[row.n, row.attack] == 1 for row in finished.itertuples())
    assert max(counts.values()) == 2


def test_a_worker_of_dask_dies(tmp_path: Path, dask: Executor) -> None:
    cells, notes = deadly(), tmp_path / "notes"
    table = quiet(cells, Count(str(notes)), tmp_path / "cache", executor=dask)
    assert right(table, cells)
    assert (table.error == "").all()
    counts = calls(notes)
    assert counts.pop((0, "c")) == 2
    assert set(counts.values()) == {1}  # what it had finished is there for the next worker


# --- whole sweeps die


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A folder for three killed sweeps, "one", and for two at once, "two"; what is told of them."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    folder = tmp_path_factory.mktemp("lives")
    one, two = (f"{str(folder / name)!r}, {str(folder / 'notes')!r}" for name in ("one", "two"))
    return folder, fresh(f"kill_some({one}, 3); sweeping.run_two({two})")


def test_killed_three_times(lives: tuple[Path, list[Any]]) -> None:
    folder, told_of = lives
    cells, run = many(), Count(str(folder / "notes"))
    names = {f"{key(cell, run)}.json": cell["n"] for cell in cells}
    done: set[int] = set()  # finished before the last start
    seen = 0
    for code, all_calls, there in told_of[:3]:
        called = [n for n, *_ in all_calls[seen:]]
        finished = {names[name] for name in there}
        assert code == -9
        assert not done & {*called}
        # one after another, so that all but the last which was begun must be finished
        assert done | {*called[:-1]} <= finished
        done, seen = finished, len(all_calls)
    assert 0 < len(done) < len(cells)
    with silent():
        assert right(quiet(cells, run, folder / "one"), cells)
    assert {n for n, *_ in noted(run.notes)[seen:]} == {*range(100)} - done
    # what the kills have left of half-written files is taken for nothing
    assert {p.name for p in (folder / "one").glob("[!.]*.json")} == {*names}


def test_two_at_once(lives: tuple[Path, list[Any]]) -> None:
    folder, told_of = lives
    assert told_of[3] == [0, 0]
    cells, count = many(), 0
    for i in range(2):
        table = pd.DataFrame(json.loads((folder / f"notes{i}.json").read_text()))
        assert right(table, cells[::-1] if i else cells)
        assert (table.error == "").all()
        count += len(noted(folder / f"notes{i}"))
    assert len(cells) <= count < 1.5 * len(cells)  # each has found what the other had finished
    with silent():
        assert right(quiet(cells, Count(str(folder / "unused")), folder / "two"), cells)
    assert not noted(folder / "unused")


# --- the command, and what it runs

SMOKE = ["sweep", "fonts", "--profile", "smoke", "--recipe", "normal", "--attack", "error"]


def no_cell_runs(measure: curves.Measure, cell: curves.Cell) -> Rate:
    pytest.fail(f"runs {cell}")


def no_room(measure: curves.Measure, cell: curves.Cell) -> Rate:
    raise ValueError(f"no room for {cell.n} images")


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = [*SMOKE, "--cache", str(tmp_path / "cache")]
    assert main([*command, "--out", str(tmp_path / "new" / "first.csv")]) == 0
    printed = capsys.readouterr().out
    assert "normal" in printed
    with monkeypatch.context() as patch:
        patch.setattr(curves.Measure, "__call__", no_cell_runs)
        assert main([*command, "--out", str(tmp_path / "again.csv")]) == 0
    assert capsys.readouterr() == (printed, "")
    first, again = (tmp_path / name for name in ("new/first.csv", "again.csv"))
    assert first.read_text() == again.read_text()
    (row,) = pd.read_csv(first, keep_default_na=False).to_dict("records")
    (cell,) = curves.figure(
        "fonts", profiles.profile("smoke"), recipes=["normal"], attacks=["error"]
    )
    asked = asdict(cell)
    assert {name: row[name] for name in asked} == asked
    assert (row["of"], row["n"], row["error"]) == (10_000, 250, "")
    assert 0 <= row["low"] < row["value"] < row["high"] <= 1

    # one that cannot be had: the first is there, the new one is told
    monkeypatch.setattr(curves.Measure, "__call__", no_room)
    code = main([*command, "-n", "250", "200", "--out", str(again)])
    out, err = capsys.readouterr()
    assert code == 2
    reason = "ValueError: no room for 200 images"
    assert err.endswith(f"advnb: {reason}\nadvnb: 1 of 2 cells failed\n")
    assert "FAILED: data=fonts" in out
    assert "normal" in out.splitlines()[-1]
    assert pd.read_csv(again).value.isna().tolist() == [False, True]


def test_command_that_is_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> Rate:
        raise KeyboardInterrupt

    monkeypatch.setattr(curves.Measure, "__call__", stop)
    assert main([*SMOKE, "-n", "200", "--cache", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith("the same command goes on\n")


def test_command_whose_table_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """That is told before anything runs."""
    (tmp_path / "file").write_text("")
    for out, why in (("file/table.csv", "cannot be written"), ("", "is a folder: name a file")):
        command = [*SMOKE, "-n", "200", "--cache", str(tmp_path / "cache")]
        assert main([*command, "--out", str(tmp_path / out)]) == 2
        assert why in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_command_when_all_cells_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves.Measure, "__call__", no_room)
    assert main([*SMOKE, "-n", "200", "--cache", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("advnb: 1 of 1 cells failed\n")


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["sweep", "font"], "did you mean 'fonts'"),
        (["sweep", "no such.npz"], "there is no such file"),
        ([*SMOKE, "--profile", "huge"], "smoke, course, paper"),
        ([*SMOKE, "-n", "100000000"], "n must be at most 960,000"),
        ([*SMOKE, "--recipe", "robust"], "recipe must be one of normal, .*'robust'"),
        ([*SMOKE, "--attack", "error", "pgd"], "attack must be one of error, .*'pgd'"),
        ([*SMOKE, "--model", "cnn"], "model must be one of CNN, .*'cnn'"),
        ([*SMOKE, "--workers", "-1"], "workers must be a whole number >= 1"),
    ],
    ids=["data", "npz", "profile", "size", "recipe", "attack", "model", "workers"],
)  # fmt: skip
def test_command_bad_names(
    more: list[str], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(curves.Measure, "__call__", lambda measure, cell: Rate(0.5, 0.4, 0.6, 9))
    assert main([*more, "--cache", str(tmp_path / "cache")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("advnb: ")
    assert err.count("\n") == 1
    assert re.search(match, err)
    assert not (tmp_path / "cache").exists()


def own_set(path: Path, *, train: int = 0, test: int = 0) -> curves.Cell:
    """A set of bright and dark images that any network tells apart, its labels swapped in one or
    both parts; the cell that measures the error on it."""
    labels = np.arange(80) % 2
    pixels = np.random.default_rng(0).integers(0, 60, (80, 8, 8)) + 150 * labels[:, None, None]
    x = pixels.astype(np.uint8)
    save_arrays(
        path, {"train_x": x, "train_y": labels ^ train, "test_x": x, "test_y": labels ^ test}
    )
    return curves.Cell(str(path), "MLP", "normal", 80, 0, "error", 80, epochs=10)


def test_npz_with_another_content_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(measure: curves.Measure, cell: curves.Cell) -> Rate:
        ran.append(cell)
        return Rate(0.5, 0.4, 0.6, 9)

    monkeypatch.setattr(curves.Measure, "__call__", measured)
    ran: list[curves.Cell] = []
    for train, test, count in ((0, 0, 1), (0, 0, 1), (1, 0, 2), (0, 1, 3), (0, 0, 3)):
        cell = own_set(tmp_path / "own.npz", train=train, test=test)
        quiet([cell], curves.Measure(), tmp_path / "cache")
        assert len(ran) == count, (train, test)
    (tmp_path / "own.npz").unlink()
    with refused("no such file", FileNotFoundError):
        quiet([cell], curves.Measure(), tmp_path / "cache")


@pytest.mark.parametrize("part", ["train", "test"])
def test_npz_with_another_content_is_read_again(tmp_path: Path, part: str) -> None:
    """Models and test images are remembered in a process: by the file's content."""
    path, measure = tmp_path / "own.npz", curves.Measure(str(tmp_path / "models"))
    assert quiet([own_set(path)], measure, tmp_path / "cache").value[0] == 0
    swapped = own_set(path, **{part: 1})
    assert quiet([swapped], measure, tmp_path / "cache").value[0] == 1


@pytest.mark.parametrize("size", ["smoke", "paper"])
def test_a_model_is_trained_in_one_process(tmp_path: Path, size: str) -> None:
    """Although its cells differ in `images` and `restarts` too."""

    class Recording(ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any, **more: Any) -> Future:
            tasks.append([cell for _, cell in args[0]])
            return super().submit(function, *args, **more)

    tasks: list[list[curves.Cell]] = []
    cells = curves.figure(
        "fonts", profiles.profile(size), recipes=["normal", "regular"], n=[250], seeds=[0]
    )
    with Recording(1) as executor:
        quiet(cells, plain_run, tmp_path, executor=executor)
    models = [{tuple(getattr(c, n) for n in curves.TRAINED) for c in task} for task in tasks]
    assert len(cells) == 8
    assert sum(len(model) for model in models) == 2


def test_a_model_that_another_process_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two train a model, the second finds its checkpoint deleted."""

    def fit(*args: Any, checkpoint: Path, **more: Any) -> None:
        trained(*args, checkpoint=checkpoint, **more)
        checkpoint.unlink(missing_ok=True)  # by the other one, which was done a moment before

    trained = training.fit
    monkeypatch.setattr("advnb.trained.fit", fit)
    cell = own_set(tmp_path / "own.npz")
    assert curves.Measure(str(tmp_path / "models"))(cell).value == 0
