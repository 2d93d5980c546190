"""Figures of single attacks: blind spots as a table, histograms, steps, and decision regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from torch import Tensor

from .base import COLOURS, PASTEL, PRINTED, Picture


def columns(table: object, eps: float, title: str = "", alt: str = "") -> Picture:
    """A table of blind spots beside the printed one: a group of bars an (alpha, beta)."""
    rows = list(table.itertuples())  # type: ignore[attr-defined]
    figure = Picture(9, 3.6, alt)
    axes = figure.subplots()
    shown = {
        "accuracy": ("accuracy", "printed_accuracy"),
        f"success at {eps:g}": ("success", "printed_success"),
        f"success at alpha x {eps:g}": ("success_scaled", "printed_scaled"),
    }
    width = 0.27
    for k, (label, (ours, theirs)) in enumerate(shown.items()):
        at = np.arange(len(rows)) + (k - 1) * width
        rates = [getattr(row, ours) for row in rows]
        value = np.nan_to_num(np.array([r.value for r in rates]))
        error = np.abs([value - [r.low for r in rates], [r.high for r in rates] - value])
        axes.bar(at, value, width, yerr=error, label=label, color=COLOURS[ours], capsize=2)
        axes.plot(
            at, [getattr(row, theirs) for row in rows],
            label="printed in the paper" if k == 2 else None, **PRINTED,
        )  # fmt: skip
    axes.set_xticks(range(len(rows)), [f"({row.alpha:g}, {row.beta:g})" for row in rows])
    axes.set(xlabel="(alpha, beta)", ylabel="share of images", ylim=(0, 1.02), title=title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def histograms(
    groups: Mapping[str, Tensor],
    paper: Mapping[str, tuple[float, float, float]] | None = None,
    xlabel: str = "",
    alt: str = "",
) -> Picture:
    """Shares of values [n] over common bins, a colour a group. A black diamond on a line: the
    paper's median, from its 5 % to its 95 % point."""
    figure = Picture(7, 2.9, alt)
    axes = figure.subplots()
    groups = {name: values[values.isfinite()] for name, values in groups.items()}
    groups = {name: values for name, values in groups.items() if len(values)}
    if not groups:
        raise ValueError("there is no finite value to draw: every group is empty")
    least = min(0.0, *(float(values.min()) for values in groups.values()))
    most = max(0.0, *(float(values.max()) for values in groups.values()))
    bins = np.linspace(least, most + 0.02 * (most - least) + 1e-9, 41).tolist()
    peaks: dict[str, tuple[int, float]] = {}
    for name, values in groups.items():
        share, colour = np.full(len(values), 1 / len(values)), COLOURS.get(name, f"C{len(peaks)}")
        heights, _, _ = axes.hist(
            values.cpu().numpy(), bins, weights=share, histtype="stepfilled", label=name,
            facecolor=(colour, 0.2), edgecolor=colour, linewidth=1.5,
        )  # fmt: skip
        peaks[name] = int(np.argmax(heights)), float(np.max(heights))
    top = min(6 * min(peak for _, peak in peaks.values()), max(peak for _, peak in peaks.values()))
    # a spike would flatten all others: cut off, with its height written beside
    spikes = {name: at for name, (at, peak) in peaks.items() if peak > top}
    for row, (name, at) in enumerate(spikes.items()):
        told = f" {name}: {peaks[name][1]:.0%}"
        axes.text(bins[at + 1], top * (1.04 - 0.08 * row), told, va="top", fontsize=9)
    for name, (low, middle, high) in (paper or {}).items():
        axes.plot([low, high], [top * 1.15] * 2, color="black", lw=1)
        axes.plot(middle, top * 1.15, label=f"{name}, in the paper's figure", **PRINTED)
    axes.set(xlabel=xlabel, ylabel="share of images", ylim=(0, top * (1.25 if paper else 1.08)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def curves(
    lines: Mapping[str, Sequence[float]],
    xlabel: str = "",
    ylabel: str = "",
    alt: str = "",
    *,
    x: Sequence[float] | None = None,
) -> Picture:
    """One line a name, over `x` or 0, 1, 2, ...; names that have a colour keep it."""
    figure = Picture(6, 2.8, alt)
    axes = figure.subplots()
    for name, values in lines.items():
        at = range(len(values)) if x is None else x
        axes.plot(at, values, marker=".", label=name, color=COLOURS.get(name))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if not any(value < 0 for values in lines.values() for value in values):
        axes.set_ylim(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def regions(
    looks: Mapping[str, Tensor],
    ticks: Tensor,
    marks: Mapping[str, Tensor],
    classes: Sequence[str],
    alt: str = "",
) -> Picture:
    """Labels [cells, cells] over a plane as coloured regions with their names, a panel a look;
    `ticks` [2, cells] are the axes, `marks` named points [2] in it."""
    figure = Picture(4.2 * len(looks) + 0.4, 3.6, alt)
    half = (ticks[:, 1] - ticks[:, 0]) / 2  # ticks are the middles of cells
    left, bottom = (ticks[:, 0] - half).tolist()
    right, top = (ticks[:, -1] + half).tolist()
    for axes, (title, labels) in zip(
        figure.subplots(1, len(looks), squeeze=False)[0], looks.items()
    ):
        colours = np.array([PASTEL[k % len(PASTEL)] for k in labels.flatten().tolist()])
        axes.imshow(
            colours.reshape(*labels.shape, 3), extent=(left, right, bottom, top), origin="lower",
            aspect="auto", interpolation="nearest",
        )  # fmt: skip
        for label in labels.unique().tolist():
            rows, columns = (labels == label).nonzero(as_tuple=True)
            # a cell of the region, the nearest to its middle: a mean may lie outside of it
            off = (rows - rows.double().mean()) ** 2 + (columns - columns.double().mean()) ** 2
            across, up = ticks[0][columns], ticks[1][rows]
            for x, y in marks.values():  # and where there is room, beside the marks
                away = ((across - x) / (right - left)) ** 2 + ((up - y) / (top - bottom)) ** 2
                off = off + len(labels) ** 2 * 2 * (away < 0.07**2)
            k = int(off.argmin())
            place = across[k].item(), up[k].item()
            axes.text(
                *place, classes[label], ha="center", va="center", fontsize=11, color="#444444"
            )
        for (name, (x, y)), marker in zip(marks.items(), cycle("o^s*Dv")):
            axes.plot(x.item(), y.item(), marker, color="black", markersize=8, label=name,
                      markerfacecolor="white")  # fmt: skip
        towards = f"L2 distance, towards {[*marks][1]}" if len(marks) > 1 else "L2 distance"
        axes.set(title=title, xlabel=towards, ylabel="at a right angle to it")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False)  # fmt: skip
    return figure
