"""Benchmarks of distances to the training set."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import torch

import advnb
from advnb.comparisons import PRINTED, table1
from advnb.neighbours import CELLS, Nearest, nearest_rows

from .measured import line


def bare(rows: torch.Tensor, among: torch.Tensor, k: int) -> Nearest | None:
    """The matrix product and the k largest of it, nothing else, in tiles of the same size."""
    for part in rows.split(CELLS // len(among)):
        (part @ among.T).topk(k)
    return None


PEAK = """
import resource, sys
import torch
from advnb.neighbours import nearest_rows
d = int(sys.argv[1])
rows, among = torch.randn(10_000, d), torch.randn(60_000, d)
nearest_rows(rows, among, 5)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def neighbours() -> None:
    """10,000 rows against 60,000: time over a bare product and over scikit-learn, and memory."""
    from sklearn.neighbors import NearestNeighbors

    torch.set_num_threads(2)
    for d in (100, 1024):
        stream = torch.Generator().manual_seed(0)
        scale = torch.linspace(1, 0.1, d)  # features differ in spread
        among, rows = (torch.randn(n, d, generator=stream) * scale + 3 for n in (60_000, 10_000))
        ours, plain = [], []
        for _ in range(4):
            for times, run in ((plain, bare), (ours, nearest_rows)):
                began = time.perf_counter()
                found = run(rows, among, 5)
                times.append(time.perf_counter() - began)
        assert found is not None
        began = time.perf_counter()
        oracle = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(among.numpy())
        _, near = oracle.kneighbors(rows.numpy())
        peer = time.perf_counter() - began
        ratio = min(ours[1:]) / min(plain[1:])
        line(f"10,000 x 60,000 in {d} dimensions over the bare product", f"{ratio:.2f}", "<= 1.3",
             ratio <= 1.3)  # fmt: skip
        ratio = min(ours[1:]) / peer
        line("    over scikit-learn's brute force", f"{ratio:.2f} ({peer:.1f} s)", "<= 1",
             ratio <= 1)  # fmt: skip
        exact = np.linalg.norm(
            rows[:500, None].double().numpy() - among[found.index[:500]].double().numpy(), axis=2
        )
        error = np.abs(found.distance[:500] / exact - 1).max().item()
        line("    relative error of the distances", f"{error:.1e}", "<= 1e-4", error <= 1e-4)
        same = (found.index.numpy() == near).mean()
        line("    neighbours that are scikit-learn's", f"{same:.6f}", "all but ties", same > 0.9999)
        command = [sys.executable, "-c", PEAK, str(d)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        line("    peak memory of a process", f"{int(out) / 1e9:.2f} GB", "<= 1.5 GB",
             int(out) <= 1.5e9)  # fmt: skip


def distances() -> None:
    """Success against distance and table 1, from the tables that ship."""
    shipped = advnb.sweeps.shipped("distances")
    for row in shipped[shipped.k == 5].itertuples():
        told = f"{row.slope:+.2f} [{row.slope_low:+.2f}, {row.slope_high:+.2f}]"
        networks = row.data in ("mnist", "fashion") and row.features in ("adversarial", "normal")
        bound, holds = ("> 0", row.slope_low > 0) if networks else ("reported", True)
        line(f"{row.data}, {row.features}: logistic slope", told, bound, holds)
        told = f"{row.further:+.2f} [{row.further_low:+.2f}, {row.further_high:+.2f}]"
        print(f"    mean distance of the fooled less the others' {told}, of {row.of:,}")
    table = table1(shipped, advnb.sweeps.shipped("divergence"))
    print(table.round(3).to_string())
    for measure, part in table[table.data.isin(PRINTED)].groupby("measure", sort=False):
        same = part.value.rank().tolist() == part.printed.rank().tolist()
        print(f"    order of {measure}: {'as' if same else 'not as'} printed")
