"""Figures of images as points: success against distance, points in the plane, densities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .base import COLOURS, Picture

if TYPE_CHECKING:
    import pandas as pd

# a colour a class, strong enough for small points
STRONG = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f",
    "#bcbd22", "#17becf",
)  # fmt: skip


def success_by_distance(
    tables: Mapping[str, pd.DataFrame], title: str = "", alt: str = ""
) -> Picture:
    """Z's figures 1 to 3: for each of `distances.bins`' tables, the attack's success in each bin
    with its interval above, and how many images lie there below. Bins with too few images have no
    bar above."""
    figure = Picture(1.4 + 3.9 * len(tables), 3.7, alt)
    grid = figure.subplots(2, len(tables), sharex="col", sharey="row", squeeze=False)
    for (top, bottom), (name, table) in zip(grid.T, tables.items()):
        middle, width = (table.low + table.high) / 2, (table.high - table.low) * 0.9
        told = [row is not None for row in table.success]
        rates = [row for row in table.success if row is not None]
        value = np.array([r.value for r in rates])
        error = np.abs([value - [r.low for r in rates], [r.high for r in rates] - value])
        top.bar(middle[told], value, width[told], yerr=error, color=COLOURS["success"], capsize=2,
                ecolor="#333333")  # fmt: skip
        bottom.bar(middle, table.n, width, color=COLOURS["test images"])
        top.set(title=name, ylim=(0, 1))
        bottom.set(xlabel="distance to the training set")
        for axes in (top, bottom):
            axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set(ylabel="success", yticks=(0, 0.5, 1), yticklabels=("0 %", "50 %", "100 %"))
    grid[1, 0].set(ylabel="images")
    if title:
        figure.suptitle(title)
    return figure


def plane(
    train: Tensor,
    test: Tensor,
    train_y: Tensor,
    test_y: Tensor,
    classes: Sequence[str],
    title: str = "",
    alt: str = "",
) -> Picture:
    """Points [n, 2] of training images (small) and [m, 2] of test images (ringed) in one plane, a
    colour a class."""
    figure = Picture(6.6, 4.6, alt)
    axes = figure.subplots()
    for label, name in enumerate(classes):
        colour = STRONG[label % len(STRONG)]
        (x, y), (u, v) = test[test_y == label].T.cpu(), train[train_y == label].T.cpu()
        axes.scatter(u, v, s=4, color=colour, alpha=0.5, linewidths=0)
        axes.scatter(x, y, s=14, color=colour, edgecolors="black", linewidths=0.4, label=name)
    axes.set(xticks=[], yticks=[], title=title)
    axes.legend(
        title="test images, ringed\n(training images: small)", frameon=False, loc="center left",
        bbox_to_anchor=(1, 0.5),
    )  # fmt: skip
    return figure


def scatter(
    x: Tensor, groups: Mapping[str, Tensor], xlabel: str = "", ylabel: str = "", alt: str = ""
) -> Picture:
    """Values [n] of each group against the same x [n], a panel a group."""
    figure = Picture(0.6 + 3.1 * len(groups), 2.9, alt)
    for axes, (name, y) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items()):
        axes.scatter(x.cpu(), y.cpu(), s=5, alpha=0.5, color=COLOURS["test images"], linewidths=0)
        axes.set(title=name, xlabel=xlabel, ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel(ylabel)
    return figure


def densities(grids: Mapping[str, Tensor], low: Tensor, high: Tensor, alt: str = "") -> Picture:
    """Values [cells, cells] over the box from `low` to `high` [2] of the plane, a panel a name: one
    colour scale from 0 for densities, one around 0 for what can be negative."""
    figure = Picture(1 + 3.1 * len(grids), 3.0, alt)
    (left, bottom), (right, top) = low.tolist(), high.tolist()
    positive = [g for g in grids.values() if g.min() >= 0]
    most = max((float(g.max()) for g in positive), default=1.0)
    for axes, (name, grid) in zip(figure.subplots(1, len(grids), squeeze=False)[0], grids.items()):
        signed = bool(grid.min() < 0)
        edge = float(grid.abs().max()) if signed else most
        image = axes.imshow(
            grid.T.cpu().numpy(), origin="lower", extent=(left, right, bottom, top), aspect="auto",
            cmap="RdBu_r" if signed else "Blues", vmin=-edge if signed else 0, vmax=edge,
        )  # fmt: skip
        figure.colorbar(image, ax=axes, shrink=0.8)
        axes.set(title=name, xticks=[], yticks=[])
    return figure
