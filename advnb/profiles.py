"""How much the notebooks do: `ADVNB_PROFILE` is smoke, course (the default) or paper; and how many
cores there are to do it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Profile:
    """Every size that differs between a test, a laptop and a GPU."""

    name: str
    tested: int  # images an accuracy is measured on
    attacked: int  # images an attack's success is measured on
    restarts: int  # random starts of a success rate
    table: int  # images in each column of Z's tables
    panel: int  # images a panel attacks
    epochs: int  # of a model that a notebook trains
    neighbours: int  # training images among which neighbours are sought
    far: int  # test images whose distance to the training set is held against an attack
    plane: int  # training images, and test images, of a projection to the plane
    searched: int  # images whose nearest letter of all, or smallest change, is sought
    cells: int  # cells a side of a plane of decision regions
    grid: int  # points a side of a map of scales and shifts
    searches: int  # runs of an attack that seeks the smallest change
    curve: tuple[int, ...]  # training images of the models on a curve
    seeds: int  # models for each of them


# the sizes on S's curves
PRINTED = (250, 500, 1000, 1500, 2000, 2500, 3000, 4000, 5000, 7500, 10_000, 15_000, 20_000, 30_000,
           40_000)  # fmt: skip

PROFILES = {
    "smoke": Profile(
        "smoke", tested=500, attacked=60, restarts=2, table=60, panel=12, epochs=2,
        neighbours=2000, far=300, plane=150, searched=4, cells=4, grid=3, searches=4,
        curve=(250,), seeds=1,
    ),
    "course": Profile(
        "course", tested=10_000, attacked=500, restarts=3, table=500, panel=64, epochs=20,
        neighbours=20_000, far=1200, plane=1500, searched=60, cells=15, grid=11, searches=40,
        curve=(250, 1000), seeds=1,
    ),
    "paper": Profile(
        "paper", tested=10_000, attacked=1000, restarts=5, table=2000, panel=256, epochs=20,
        neighbours=60_000, far=10_000, plane=10_000, searched=500, cells=41, grid=21, searches=40,
        curve=PRINTED, seeds=5,
    ),
}  # fmt: skip


def profile(name: str | None = None) -> Profile:
    """The profile of that name, or the one that ADVNB_PROFILE names."""
    what, name = (
        "ADVNB_PROFILE" if name is None else "the profile",
        (name if name is not None else os.environ.get("ADVNB_PROFILE") or "course"),
    )
    if name not in PROFILES:
        raise ValueError(f"{what} is {name!r}: set it to one of {', '.join(PROFILES)}")
    return PROFILES[name]


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and a container's share where one is set."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # not Linux, or no limit ("max")
    return cores
