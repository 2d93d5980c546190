"""What the tests of `sweep` run in other processes; and sweeps to be killed, forked from a fresh
process that has the imports behind it."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from advnb.sweeps import pool, sweep

ROOT = Path(__file__).parents[1]


def expected(n: int, attack: str = "") -> float:
    """A number that depends on every bit of the cell, and on how many threads add it up."""
    stream = torch.Generator().manual_seed(1000 * n + len(attack))
    return torch.rand(100_000, generator=stream).sum().item() + sum(attack.encode())


@dataclass(frozen=True)
class Count:
    """Notes every call in the file `notes`, and gives the cell's number after a `pause`; but does
    first, once, what the cell's field `does` says: "raise", or "die:0:c" at n=0 and attack c."""

    version = 0

    notes: str

    def __call__(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        n, attack = cell["n"], cell.get("attack", "")
        threads = torch.get_num_threads()
        note = json.dumps([n, attack, os.getpid(), threads]) + "\n"
        with open(self.notes, "ab", buffering=0) as file:  # one write: lines of two never mix
            file.write(note.encode())
        does, *at = cell.get("does", "").split(":")
        before = Path(f"{self.notes}-before")
        if does and at in ([], [str(n), attack]) and not before.exists():
            before.touch()
            if does == "die":
                os._exit(9)  # no good-bye
            raise RuntimeError("the first time it fails")
        time.sleep(cell.get("pause", 0))
        return {"value": expected(n, attack), "threads": threads}


def noted(notes: str | Path) -> list[list[Any]]:
    """The calls so far, as [n, attack, process, threads]."""
    path = Path(notes)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def calls(notes: str | Path) -> Counter:
    """How often each cell (n, attack) was called."""
    return Counter((n, attack) for n, attack, _, _ in noted(notes))


def many() -> list[dict[str, Any]]:
    """Cells for a second and a half; a good part of it is writing."""
    return [{"n": n, "pause": 0.015} for n in range(100)]


def _fork(cache: str, notes: str, out: str, backwards: bool = False) -> int:
    """A sweep of `many` in a process of its own, its table in the file `out`; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        cells = many()[::-1] if backwards else many()
        table = sweep(cells, Count(notes), cache=cache, shipped=False, progress=False)
        Path(out).write_text(json.dumps(table.to_dict("records")))
        code = 0
    finally:
        os._exit(code)


def _ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_some(cache: str, notes: str, kills: int) -> None:
    """Prints for each kill: how the sweep ended, its calls so far, the finished cells."""
    moments = random.Random()
    for _ in range(kills):
        before = len(noted(notes))
        child = _fork(cache, notes, os.devnull)
        while len(noted(notes)) < before + 3:  # so two of them are finished
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.4))  # together less than a whole sweep
        os.kill(child, signal.SIGKILL)
        code = _ended(child)
        files = sorted(p.name for p in Path(cache).glob("[!.]*.json"))
        print(json.dumps([code, noted(notes), files]), flush=True)


def run_two(cache: str, notes: str) -> None:
    """Two sweeps of the same cells at once, from both ends."""
    children = [_fork(cache, f"{notes}{i}", f"{notes}{i}.json", backwards=i == 1) for i in range(2)]
    print(json.dumps([_ended(child) for child in children]))


def hold_a_pool(starting: bool) -> None:
    """Prints the id of a worker that is busy, or still starting, and keeps it for a minute."""
    with pool(1) as executor:
        if not starting:
            executor.submit(os.getpid).result()
        executor.submit(time.sleep, 60)
        (worker,) = multiprocessing.active_children()
        print(worker.pid, flush=True)
        time.sleep(60)


def begun(call: str) -> subprocess.Popen:
    """A fresh process that calls a function above."""
    # by its own name: a class of __main__ would have other keys
    code = f"import pandas; from tests import sweeping; sweeping.{call}"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def fresh(call: str) -> list[Any]:
    """What a call of a function above prints in a fresh process, line by line."""
    process = begun(call)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]
