"""Cells run on any executor: each on one thread, kept once it is finished, its failure told."""

from __future__ import annotations

import platform
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, as_completed
from dataclasses import asdict, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from .checks import brief
from .kept import Fields, keep, read
from .stats import Rate

ABOUT = ("seconds", "made", "machine", "error", "key")  # columns of the table itself


def results(
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
    futures: dict[Future, list[tuple[str, Any]]] = {}
    try:
        for group in groups:
            try:  # the last argument: dask takes equal calls for one, and remembers failures
                future = executor.submit(_group, group, run, str(folder), uuid.uuid4().hex)
            except Exception as error:  # a worker died, or the executor was closed
                future = Future()
                future.set_exception(error)
            futures[future] = group
        for future in as_completed(list(futures)):
            group = futures.pop(future)
            try:
                done = future.result()
            except Exception as error:  # the worker died, or the cells cannot be sent to it
                why = "".join(traceback.format_exception_only(error))
                # what it had finished is there
                done = {k: read(folder, k) or _failed(why) for k, _ in group}
            for k, row in done.items():
                if not row["error"] and read(folder, k) is None:
                    keep(folder, k, row)  # the worker has another disk
                yield k, row
    finally:
        for future in futures:
            future.cancel()


def _group(
    group: list[tuple[str, Any]], run: Callable, folder: str, call: str
) -> dict[str, Fields]:
    return {k: _one(cell, run, Path(folder), k) for k, cell in group}


def _one(cell: Any, run: Callable, folder: Path, k: str) -> Fields:
    """Run a cell, and keep what it gives."""
    done = read(folder, k)  # by another process on the same folder
    if done is not None:
        return done
    began = time.perf_counter()
    try:
        with _one_thread:
            value = run(cell)
        if isinstance(value, Rate):  # a cell's own n is most likely that of its training images
            value = {"value": value.value, "low": value.low, "high": value.high, "of": value.n}
        found = {n: _plain(v) for n, v in value.items()} if isinstance(value, Mapping) else value
        if not _is_plain(found):
            raise ValueError(
                f"a result must be a Rate or a mapping of plain values: {brief(value)}"
            )
        if taken := found.keys() & {*fields_of(cell), *ABOUT}:
            raise ValueError(f"the table has a column {taken.pop()!r} already: rename the result's")
    except Exception:  # told in the table; the others go on
        return _failed(traceback.format_exc())
    row = found | {
        "seconds": round(time.perf_counter() - began, 3),
        "made": str(date.today()),
        "machine": f"{_processor(run)}, torch {torch.__version__.split('+')[0]}",
        "error": "",
    }
    keep(folder, k, row)
    return row


def _failed(why: str) -> Fields:
    return {"error": why.strip()}


def _processor(run: Callable) -> str:
    """What a run computes on, where it tells by `device`; else the best there is."""
    if torch.cuda.is_available() and str(getattr(run, "device", "cuda")).startswith("cuda"):
        return torch.cuda.get_device_name()
    if str(getattr(run, "device", "cpu")).startswith("mps"):
        return "Apple GPU"
    return f"one thread, {platform.machine()} CPU"


class _OneThread:
    """Torch's own threads down to one while anybody is inside: the setting is the process's."""

    def __init__(self) -> None:
        self.lock, self.inside, self.threads = threading.Lock(), 0, 1

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.threads = torch.get_num_threads()
            self.inside += 1
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                torch.set_num_threads(self.threads)


_one_thread = _OneThread()


def fields_of(cell: Any) -> Fields:
    """A cell as names and plain values."""
    fields = asdict(cell) if is_dataclass(cell) and not isinstance(cell, type) else cell
    if not _is_plain(fields):
        raise ValueError(
            "a cell must be a dataclass or a mapping of names to texts, numbers or None; got "
            f"{brief(cell)}"
        )
    return dict(fields)


def _is_plain(fields: Any) -> bool:
    return (
        isinstance(fields, Mapping)
        and len(fields) > 0
        and all(
            isinstance(n, str) and (v is None or isinstance(v, str | int | float))
            for n, v in fields.items()
        )
    )


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
