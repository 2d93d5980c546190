"""A grid of runs as a tidy table: every finished cell is kept, on any executor."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
import traceback
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from .checks import brief, existing, whole
from .data import cache_folder
from .files import DamagedFileError, write
from .stats import Rate

if TYPE_CHECKING:
    import pandas as pd

RESULTS = Path(__file__).parent / "results"
Fields = dict[str, Any]  # of a cell, or of what was found for it: names to plain values


def sweep(
    cells: Iterable[Any],
    run: Callable[[Any], Rate | Mapping[str, Any]],
    *,
    cache: str | os.PathLike | None = None,
    executor: Executor | None = None,
    shipped: bool = True,
    within: str = "attack",
    progress: bool = True,
) -> pd.DataFrame:
    """Run every cell that is not finished yet; a table with a row for each, in their order.

    A cell is a frozen dataclass or a mapping of names to plain values (texts, numbers, None), and
    `run(cell)` returns a `Rate` or a mapping of such. A row holds the cell's fields, what was
    found, `seconds`, `made` (the date), `machine` and `error`.

    Every finished cell is a file in the folder `cache` (default: the user's own) under the hash
    of all that decides it: its fields, the name of `run`, and `run.version`, a value, or a
    function of the fields, which is to change whenever the same cell would give another result.
    The tables that ship with the package count as finished cells too, unless `shipped` is False.
    What is killed goes on where it was. Where `run.cost(cell)` tells how long a cell takes, in
    any unit, the bar's estimate follows it.

    `executor`: any of `concurrent.futures`' form, `pool(2)` say, or `Client.get_executor()` of
    dask.distributed; None runs the cells here, one by one. Cells that differ in the field
    `within` alone run one after another in one process, so that a trained model can serve all of
    them. Each runs on one thread of torch, so that no executor can decide a result.

    A cell that fails is told with its traceback, has it under `error`, and is tried again next
    time; the others go on. ValueError for cells that are not of this form.
    """
    import pandas as pd

    cells = list(cells)
    fields = [_fields(cell) for cell in cells]
    keys = [key(cell, run) for cell in fields]
    folder = Path(cache) if cache is not None else cache_folder() / "sweep"
    known = _shipped() if shipped else {}
    found = {k: known.get(k) or _read(folder, k) for k in dict.fromkeys(keys)}
    groups: dict[Hashable, list[tuple[str, Any]]] = {}
    waiting = {k: cell for k, cell in zip(keys, cells) if found[k] is None}
    for k, cell in waiting.items():
        shared = json.dumps({n: v for n, v in _fields(cell).items() if n != within})
        groups.setdefault(shared, []).append((k, cell))
    cost = {k: getattr(run, "cost", lambda cell: 1.0)(cell) for k, cell in waiting.items()}
    bar = tqdm(
        total=sum(cost.values()), desc="sweep", disable=not (progress and waiting), smoothing=0,
        bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
    )  # fmt: skip
    with bar:
        for done, (k, row) in enumerate(_results(list(groups.values()), run, folder, executor), 1):
            found[k] = row
            bar.set_description(f"{done} of {len(waiting)} cells", refresh=False)
            bar.update(cost[k])
            if row["error"]:
                told = " ".join(f"{n}={v}" for n, v in _fields(waiting[k]).items())
                bar.write(f"FAILED: {told}\n{row['error']}")
    rows = [cell | (found[k] or {}) for k, cell in zip(keys, fields)]
    return pd.DataFrame(rows)


def key(cell: Any, run: Callable) -> str:
    """The hash of all that decides a cell's result; see `sweep`."""
    named = run if hasattr(run, "__qualname__") else type(run)
    name = f"{named.__module__}.{named.__qualname__}"
    fields, version = _fields(cell), getattr(run, "version", 0)
    decides = [fields, name, version(fields) if callable(version) else version]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]


def pool(workers: int) -> ProcessPoolExecutor:
    """Fresh processes to sweep on; close it, or use it in a `with`. (A forked copy of a process
    that has used torch's threads may hang, so these are not.)"""
    return ProcessPoolExecutor(whole("workers", workers, 1), mp_context=get_context("spawn"))


def shipped(name: str) -> pd.DataFrame:
    """A table that ships: "fonts", say, or "stutz2019", that paper's printed numbers.
    FileNotFoundError where there is none."""
    import pandas as pd

    return pd.read_csv(existing(RESULTS / f"{name}.csv"))


def _shipped() -> dict[str, Fields]:
    """All results that ship, by key."""
    import pandas as pd

    found: dict[str, Fields] = {}
    for path in sorted(RESULTS.glob("*.csv")):
        for row in pd.read_csv(path).to_dict("records"):
            if "key" in row:  # else a paper's numbers
                kept = {str(n): None if pd.isna(v) else v for n, v in row.items() if n != "key"}
                found[row["key"]] = kept | {"error": ""}
    return found


def ship(table: pd.DataFrame, name: str, run: Callable, names: Sequence[str]) -> Path:
    """Write a sweep's finished cells to the package's table `name`, under the keys of `run`; the
    cells' fields are `names`."""
    done = table[table.error == ""].drop(columns="error")
    plain = [dict(zip(names, row)) for row in done[list(names)].itertuples(index=False)]
    done.insert(0, "key", [key({n: _plain(v) for n, v in c.items()}, run) for c in plain])
    return write(RESULTS / f"{name}.csv", lambda path: done.to_csv(path, index=False))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _fields(cell: Any) -> Fields:
    """A cell as names and plain values."""
    fields = asdict(cell) if is_dataclass(cell) and not isinstance(cell, type) else cell
    if not isinstance(fields, Mapping) or not fields or not all(
        isinstance(n, str) and (v is None or isinstance(v, str | int | float))
        for n, v in fields.items()
    ):  # fmt: skip
        raise ValueError(
            "a cell must be a dataclass or a mapping of names to texts, numbers or None; got "
            f"{brief(cell)}"
        )
    return dict(fields)


def _results(
    groups: list[list[tuple[str, Any]]],
    run: Callable,
    folder: Path,
    executor: Executor | None,
) -> Iterator[tuple[str, Fields]]:
    """What the cells give, as they finish."""
    if executor is None:
        for group in groups:
            for k, cell in group:
                yield k, _one(cell, run, folder, k)
        return
    futures: dict[Future, list[tuple[str, Any]]] = {
        executor.submit(_group, group, run, str(folder)): group for group in groups
    }
    try:
        for future in as_completed(futures):
            group = futures.pop(future)
            try:
                done = future.result()
            except Exception:  # the worker died, or the cells cannot be sent to it
                why = traceback.format_exc()
                # what it had finished is there
                done = {k: _read(folder, k) or _failed(why) for k, _ in group}
            for k, row in done.items():
                if not row["error"] and not _path(folder, k).exists():
                    _keep(folder, k, row)  # the worker has another disk
                yield k, row
    finally:
        for future in futures:
            future.cancel()


def _group(group: list[tuple[str, Any]], run: Callable, folder: str) -> dict[str, Fields]:
    return {k: _one(cell, run, Path(folder), k) for k, cell in group}


def _one(cell: Any, run: Callable, folder: Path, k: str) -> Fields:
    """Run a cell, and keep what it gives."""
    done = _read(folder, k)  # by another process on the same folder
    if done is not None:
        return done
    began = time.perf_counter()
    try:
        with _one_thread():
            value = run(cell)
        if isinstance(value, Rate):  # a cell's own n is most likely that of its training images
            value = {"value": value.value, "low": value.low, "high": value.high, "of": value.n}
        found = _fields({n: _plain(v) for n, v in value.items()})
        if taken := {*found, "seconds", "made", "machine", "error"} & {*_fields(cell)}:
            raise ValueError(
                f"both the cell and its result have a field {taken.pop()!r}: rename it"
            )
    except Exception:  # told in the table; the others go on
        return _failed(traceback.format_exc())
    row = found | {
        "seconds": round(time.perf_counter() - began, 3),
        "made": str(date.today()),
        "machine": f"{_processor()}, torch {torch.__version__.split('+')[0]}",
        "error": "",
    }
    _keep(folder, k, row)
    return row


def _failed(why: str) -> Fields:
    return {"error": why.strip()}


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"one thread, {platform.machine()} CPU"


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _path(folder: Path, k: str) -> Path:
    return folder / f"{k}.json"


def _keep(folder: Path, k: str, row: Fields) -> None:
    text = json.dumps(row)
    kept = json.dumps({"row": row, "sha256": hashlib.sha256((k + text).encode()).hexdigest()})
    try:
        write(_path(folder, k), lambda path: path.write_text(kept))
    except OSError as error:  # the result is in the table all the same
        warnings.warn(f"a result is not kept: {error}", stacklevel=2)


def _read(folder: Path, k: str) -> Fields | None:
    """A finished cell; None where there is none, or, with a warning, where it is damaged."""
    path = _path(folder, k)
    try:
        kept = json.loads(path.read_text())
        text = json.dumps(kept["row"])
        if kept["sha256"] != hashlib.sha256((k + text).encode()).hexdigest():
            raise DamagedFileError(str(path))
        return kept["row"]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, LookupError, OSError, RecursionError):
        warnings.warn(f"{path} is damaged: that cell runs again", stacklevel=2)
        return None
