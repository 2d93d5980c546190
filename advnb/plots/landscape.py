"""The landscape of blind spots: success as colour over scale and shift, accuracy as contours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D

from ..blindspots import Printed
from ..blindspots.landscape import shift_of
from .base import COLOURS, HALO, PRINTED, Picture

if TYPE_CHECKING:
    import pandas as pd

# from light to dark, so that it is read without its hue
HEAT = LinearSegmentedColormap.from_list(
    "success", ["#fdf6f0", "#f2c4b3", COLOURS["success"], "#8a2033", "#5a0f20"]
).with_extremes(bad="#e4e4e4")
LEVELS = {0.99: "solid", 0.95: "dashed"}  # of the accuracy at alpha = 1
MARKER: dict[str, Any] = {
    "marker": "o", "markersize": 13, "markerfacecolor": "none", "markeredgecolor": "black",
    "markeredgewidth": 2.2, "linestyle": "none", "clip_on": False, "path_effects": HALO,
}  # fmt: skip
LEGEND: dict[str, Any] = {"ncols": 3, "frameon": False, "fontsize": 9, "columnspacing": 1.0}


def landscape(
    table: pd.DataFrame,
    printed: Iterable[Printed] = (),
    *,
    marker: tuple[float, float] | None = None,
    eps: float | None = None,
    title: str = "",
    alt: str = "",
) -> Picture:
    """A heat map of `blindspots.landscape`'s table: success over alpha and relative shift, with
    contours where the accuracy is 99 % and 95 % of that at the largest alpha.

    `printed`: the paper's columns, `blindspots.PRINTED["adversarial", "mnist"]` say, as diamonds
    in the colour of the printed success. `marker`: an (alpha, beta) to ring. `eps`: the attack's
    radius; below alpha = 2 eps it can make every image one grey, so nothing can be defended.
    """
    if table.empty:
        raise ValueError("the table is empty: give blindspots.landscape's, of one pair or more")
    alphas, shifts = (sorted(set(table[name])) for name in ("alpha", "shift"))
    success, accuracy = np.full((2, len(alphas), len(shifts)), np.nan)
    for row in table.to_dict("records"):
        at = alphas.index(row["alpha"]), shifts.index(row["shift"])
        success[at], accuracy[at] = row["success"].value, row["accuracy"].value
    figure = Picture(7.2, 4.6, alt)
    axes = figure.subplots()
    heat(axes, alphas, shifts, success, accuracy, printed, eps)
    bar = figure.colorbar(axes.collections[0], ax=axes, pad=0.02)
    scale(bar.ax)
    if marker is not None:
        mark(axes).set_data([marker[0]], [shift_of(*marker)])
    axes.set_title(title)
    figure.legend(loc="outside lower center", **(LEGEND | {"ncols": 2}))
    return figure


def heat(
    axes: Axes,
    alphas: Sequence[float],
    shifts: Sequence[float],
    success: np.ndarray,
    accuracy: np.ndarray,
    printed: Iterable[Printed] = (),
    eps: float | None = None,
) -> None:
    """Draw success and accuracy [alphas, shifts], NaN where nothing is known, into `axes`."""
    x, y = _edges(alphas), _edges(shifts)
    axes.pcolormesh(x, y, np.ma.masked_invalid(success.T), cmap=HEAT, vmin=0, vmax=1)
    axes.set(
        xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), xlabel="α, the contrast that is left",
        yticks=(-1, -0.5, 0, 0.5, 1),
        ylabel="relative shift  β / ((1 − α) / 2)\n← black stays      white stays →",
    )  # fmt: skip
    axes.spines[:].set_visible(False)
    _contours(axes, alphas, shifts, accuracy)
    if eps is not None and x[0] < 2 * eps < x[-1]:
        axes.axvline(2 * eps, color="black", lw=1.4, ls=":", path_effects=HALO,
                     label="α < 2 ε: no defence")  # fmt: skip
    there = [p for p in printed if x[0] <= p.alpha <= x[-1]]
    if there:
        place = [p.alpha for p in there], [shift_of(p.alpha, p.beta) for p in there]
        axes.scatter(
            *place, c=[p.success for p in there], marker=PRINTED["marker"], cmap=HEAT, vmin=0,
            vmax=1, s=46, linewidths=1.3, edgecolors="black", clip_on=False, zorder=3,
        ).set(path_effects=HALO)  # fmt: skip
        style = PRINTED | {"color": "white", "markeredgecolor": "black"}
        axes.plot([], [], label="printed, same colours", **style)


def mark(axes: Axes, **how: Any) -> Line2D:
    """A ring to be moved to (alpha, shift), and its line of the legend."""
    axes.plot([], [], label="your α and β", **(MARKER | {"markersize": 9}))
    return axes.plot([], [], **MARKER, **how)[0]


def scale(axes: Axes) -> None:
    """Name what the colour bar in `axes` tells."""
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.set_title("success", fontsize=10, loc="left")


def _contours(
    axes: Axes, alphas: Sequence[float], shifts: Sequence[float], accuracy: np.ndarray
) -> None:
    known = accuracy[np.isfinite(accuracy)]
    if not np.isfinite(accuracy[-1]).any():
        return
    full, blue = np.nanmax(accuracy[-1]), COLOURS["accuracy"]
    between = dict.fromkeys(_percent(edge) for edge in (known.min(), known.max()))
    axes.plot([], [], ls="none", label=f"accuracy {' to '.join(between)}")
    values = np.ma.masked_invalid(accuracy.T)
    for share, style in LEVELS.items():
        level = share * full
        if min(accuracy.shape) < 2 or not known.min() < level < known.max():
            continue
        lines = axes.contour(
            alphas, shifts, values, [level], colors=blue, linestyles=style, linewidths=1.8
        )
        lines.set(path_effects=HALO)
        lowest = share == min(LEVELS)
        told = f"accuracy {_percent(level)}" + (" (hatched: less)" if lowest else "")
        axes.plot([], [], color=blue, ls=style, label=told)
        if lowest:
            low = axes.contourf(alphas, shifts, values, [-1, level], colors="none", hatches=["/"])
            low.set(edgecolor="#c3cfe6", linewidth=0)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _edges(middles: Sequence[float]) -> np.ndarray:
    """Edges of cells around ascending middles, half-way between them."""
    m = np.asarray(middles, float)
    if len(m) == 1:
        return np.array([m[0] - 0.05, m[0] + 0.05])
    half = np.diff(m) / 2
    return np.concatenate([[m[0] - half[0]], m[:-1] + half, [m[-1] + half[-1]]])
