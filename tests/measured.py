"""How a benchmark tells a number beside its bound."""

from __future__ import annotations

import statistics

from scipy.stats import t as student


def line(what: str, value: str, bound: str, holds: bool) -> None:
    print(f"{what:58s} {value:>28s}   bound {bound:12s} {'ok' if holds else 'MISSED'}", flush=True)


def over_seeds(values: list[float]) -> tuple[float, float]:
    """Mean and half of its 95 % t-interval, over seeds."""
    n = len(values)
    return statistics.mean(values), student.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5
