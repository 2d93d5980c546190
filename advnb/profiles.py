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
    searched: int  # images whose nearest letter of all is sought
    cells: int  # cells a side of a plane of decision regions
    curve: tuple[int, ...]  # training images of the models on a curve
    seeds: int  # models for each of them


# the sizes on S's curves
PRINTED = (250, 500, 1000, 1500, 2000, 2500, 3000, 4000, 5000, 7500, 10_000, 15_000, 20_000, 30_000,
           40_000)  # fmt: skip

PROFILES = {
    "smoke": Profile("smoke", 500, 60, 2, 60, 12, 2, 2000, 10, 5, (250,), 1),
    "course": Profile("course", 10_000, 500, 3, 500, 64, 20, 20_000, 60, 15, (250, 1000), 1),
    "paper": Profile("paper", 10_000, 1000, 5, 2000, 256, 20, 60_000, 500, 41, PRINTED, 5),
}


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
