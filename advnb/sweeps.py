"""A grid of runs as a tidy table: every finished cell is kept, on any executor."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from .cells import ABOUT, fields_of, results
from .checks import brief, existing, whole
from .data import cache_folder
from .files import write
from .kept import Fields, read
from .stats import Rate

if TYPE_CHECKING:
    import pandas as pd

RESULTS = Path(__file__).parent / "results"


def sweep(
    cells: Iterable[Any],
    run: Callable[[Any], Rate | Mapping[str, Any]],
    *,
    cache: str | os.PathLike | None = None,
    executor: Executor | None = None,
    shipped: bool = True,
    within: str | Sequence[str] = ("attack", "images", "restarts"),
    progress: bool = True,
) -> pd.DataFrame:
    """Run every cell that is not finished yet; a table with a row for each, in their order.

    A cell is a frozen dataclass or a mapping of names to plain values (texts, numbers, None), and
    `run(cell)` returns a `Rate` or a mapping of such. A row holds the cell's fields, what was
    found, `seconds`, `made` (the date), `machine`, `error` and `key`.

    Every finished cell is a file in the folder `cache` (default: the user's own) under the hash
    of all that decides it: its fields, the name of `run`, and `run.version`, a value, or a
    function of the fields, which is to change whenever the same cell would give another result.
    Of a function that has none its source is taken, and the numbers and texts that it reads by
    name, or that its arguments have by default; other things that it reads are not told.
    The tables that ship with the package count as finished cells too, unless `shipped` is False.
    What is killed goes on where it was. Where `run.cost(cell)` tells how long a cell takes, in
    any unit, the bar's estimate follows it.

    `executor`: any of `concurrent.futures`' form, `pool(2)` say, or `Client.get_executor()` of
    dask.distributed; None runs the cells here, one by one. For other processes `run` is to be in
    a module of its own: workers cannot see what a notebook defines. Cells that differ in the
    fields `within` alone run one after another in one process, so that a trained model can serve
    all of them. Each runs on one thread of torch, so that no executor can decide a result.

    A cell that fails is told with its traceback, has it under `error`, and is tried again next
    time; the others go on. ValueError for cells that are not of this form, and for a `run` that
    cannot be told from another.
    """
    import pandas as pd

    cells, within = list(cells), (within,) if isinstance(within, str) else within
    fields = [fields_of(cell) for cell in cells]
    if taken := {n for cell in fields for n in cell} & {*ABOUT}:
        raise ValueError(f"the table has a column {min(taken)!r} of its own: rename the cells'")
    keys = [key(cell, run) for cell in fields]
    folder = Path(cache) if cache is not None else cache_folder() / "sweep"
    known = _shipped() if shipped else {}
    found = {k: known.get(k) or read(folder, k) for k in dict.fromkeys(keys)}
    groups: dict[Hashable, list[tuple[str, Any]]] = {}
    waiting = {k: cell for k, cell in zip(keys, cells) if found[k] is None}
    for k, cell in waiting.items():
        shared = json.dumps(
            {n: v for n, v in fields_of(cell).items() if n not in within}, sort_keys=True
        )
        groups.setdefault(shared, []).append((k, cell))
    cost = {k: _cost(run, cell) for k, cell in waiting.items()}
    bar = tqdm(
        total=sum(cost.values()), desc="sweep", disable=not (progress and waiting), smoothing=0,
        bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
    )  # fmt: skip
    with bar:
        for done, (k, row) in enumerate(results(list(groups.values()), run, folder, executor), 1):
            found[k] = row
            bar.set_description(f"{done} of {len(waiting)} cells", refresh=False)
            bar.update(cost[k])
            if row["error"]:
                told = " ".join(f"{n}={v}" for n, v in fields_of(waiting[k]).items())
                bar.write(f"FAILED: {told}\n{row['error']}")
    rows = [(found[k] or {}) | cell | {"key": k} for k, cell in zip(keys, fields)]
    found_names = dict.fromkeys(n for row in (*fields, *rows) for n in row if n not in ABOUT)
    return pd.DataFrame(rows, columns=[*found_names, *ABOUT])


def _cost(run: Callable, cell: Any) -> float:
    try:
        return float(getattr(run, "cost", lambda cell: 1.0)(cell))
    except Exception:  # a cell that cannot run: told when its turn comes
        return 1.0


def key(cell: Any, run: Callable) -> str:
    """The hash of all that decides a cell's result; see `sweep`."""
    fields, named = fields_of(cell), run if hasattr(run, "__qualname__") else type(run)
    version = getattr(run, "version", None)
    if version is None:
        version = _source(run)
    decides = [
        fields,
        f"{named.__module__}.{named.__qualname__}",
        version(fields) if callable(version) else version,
    ]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]


def _source(run: Callable) -> str:
    try:
        if inspect.isfunction(run) and not run.__code__.co_freevars:  # what those hold is not told
            source, codes = inspect.getsource(run), [run.__code__]
            for code in codes:  # of functions and comprehensions inside it as well
                codes += [part for part in code.co_consts if inspect.iscode(part)]
            names = [n for code in codes for n in code.co_names if n in run.__globals__]
            seen = {n: run.__globals__[n] for n in names}
            arguments = inspect.signature(run).parameters.values()
            seen |= {a.name: a.default for a in arguments if a.default is not a.empty}
            plain = {n: v for n, v in seen.items() if isinstance(v, str | int | float | None)}
            # the source of a lambda is that of its line, where another one may stand
            lambdas = sum(code.co_name == "<lambda>" for code in codes)
            if run.__name__ != "<lambda>" or len(re.findall(r"\blambda\b", source)) <= lambdas:
                return source + (f"\n{plain}" if plain else "")
    except OSError:  # typed in where nothing keeps it
        pass
    raise ValueError(f"{brief(run)} cannot be told from another run: give it a `version`")


def pool(workers: int) -> ProcessPoolExecutor:
    """Fresh processes to sweep on; close it, or use it in a `with`. They import what they run: it
    is to be in a module, not in a notebook. (A forked copy of a process that has used torch's
    threads may hang, so these are not.)"""
    return ProcessPoolExecutor(
        whole("workers", workers, 1), mp_context=get_context("spawn"), initializer=_follow
    )


def _follow() -> None:
    """End this process when its parent is gone: nobody else would."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it; else it would begin other cells
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def shipped(name: str) -> pd.DataFrame:
    """A table that ships: "fonts", say, or "stutz2019", that paper's printed numbers.
    FileNotFoundError where there is none."""
    import pandas as pd

    table = pd.read_csv(existing(RESULTS / f"{name}.csv"))
    return table.assign(error="") if "key" in table else table  # only finished cells are shipped


def _shipped() -> dict[str, Fields]:
    """All results that ship, by key."""
    import pandas as pd

    found: dict[str, Fields] = {}
    for path in sorted(RESULTS.glob("*.csv")):
        for row in pd.read_csv(path).to_dict("records"):
            if "key" in row:  # else a paper's numbers
                kept = {str(n): None if pd.isna(v) else v for n, v in row.items()}
                found[str(kept.pop("key"))] = kept | {"error": ""}
    return found


def ship(table: pd.DataFrame, name: str) -> Path:
    """Write a sweep's finished cells as the package's table `name`."""
    done = table[table.error == ""].drop(columns="error")
    return write(RESULTS / f"{name}.csv", lambda path: done.to_csv(path, index=False))
