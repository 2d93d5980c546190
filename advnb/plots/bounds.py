"""Figures of bounds: what is proved of a margin, and what an attack has found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .base import COLOURS, Picture

if TYPE_CHECKING:
    import pandas as pd

LINES = {
    "attack": ("found by the attack", "success", "-"),
    "crown": ("proved with lines (CROWN)", "certified", "-"),
    "ibp": ("proved with intervals (IBP)", "certified", ":"),
}


def margins(
    tables: Mapping[str, pd.DataFrame], eps: float | None = None, title: str = "", alt: str = ""
) -> Picture:
    """Tables of `bounds.growth`, a panel a name: the smallest margin over the radius, which lies
    in the grey between what is proved and what was found. Above 0 no change within that radius
    fools; a dashed line at `eps`. Bounds far below 0 are cut off."""
    figure = Picture(1 + 3.7 * len(tables), 3.5, alt)
    grid = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    top = max(float(table.attack.max()) for table in tables.values())
    for axes, (name, table) in zip(grid, tables.items()):
        axes.fill_between(
            table.radius, table.crown, table.attack, color="#dddddd", label="not known"
        )
        for column, (label, colour, style) in LINES.items():
            axes.plot(table.radius, table[column], style, color=COLOURS[colour], label=label)
        axes.axhline(0, color="black", lw=0.8)
        if eps is not None:
            axes.axvline(eps, color="black", lw=0.8, ls="--")
        axes.set(title=name, xlabel="radius of the change", ylim=(-1.2 * top, 1.15 * top),
                 xlim=(table.radius.min(), table.radius.max()))  # fmt: skip
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel("smallest margin")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False)  # fmt: skip
    if title:
        figure.suptitle(title)
    return figure
