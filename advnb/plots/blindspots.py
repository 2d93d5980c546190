"""Figures of blind spots: who can tell, what is still proved, and what nobody can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.patches import Rectangle

from ..stats import Rate
from .base import COLOURS, Picture
from .landscape import HEAT

if TYPE_CHECKING:
    import pandas as pd

    from ..blindspots import Detection


def detection(found: Detection, title: str = "", alt: str = "") -> Picture:
    """Z's figure 5 with numbers: a panel a detector, its scores on the same images untouched and
    transformed, and the area under the ROC curve of telling them apart."""
    across = min(3, len(found.original))
    down = -(-len(found.original) // across)
    figure = Picture(3.7 * across, 2.7 * down + 0.7, alt)
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in grid:
        axes.set_visible(False)
    for axes, (name, area) in zip(grid, found.auc.items()):
        groups = {
            "untouched": found.original[name].cpu().double().numpy(),
            f"({found.alpha:g}, {found.beta:g})": found.transformed[name].cpu().double().numpy(),
        }
        every = np.concatenate(list(groups.values()))
        # a few far out would squeeze all others: the last bin takes what lies beyond
        low, high = float(every.min()), float(np.quantile(every, 0.995))
        width = max(high - low, 1e-3)
        bins = np.linspace(low - 0.02 * width, high + 0.02 * width, 37).tolist()
        for (label, values), colour in zip(groups.items(), ("untouched", "transformed")):
            axes.hist(
                values.clip(bins[0], bins[-1]), bins, weights=np.full(len(values), 1 / len(values)),
                alpha=0.6, color=COLOURS[colour], label=label,
            )  # fmt: skip
        axes.set_visible(True)
        told = f"AUC {area.value:.2f} [{area.low:.2f}, {area.high:.2f}]"
        axes.set_title(f"{name}\n{told}", fontsize=10)
        axes.set_xlabel("score")
        axes.spines[["top", "right"]].set_visible(False)
    for row in range(down):
        figure.axes[row * across].set_ylabel("share of images")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def certificates(table: pd.DataFrame, eps: float, title: str = "", alt: str = "") -> Picture:
    """A `blindspots.certified_table`: of all images, how many are right, stay right under the
    attack, and are proved to; within eps on the left, within alpha * eps on the right. Between the
    last two bars lies what nobody knows."""
    figure = Picture(10.5, 3.8, alt)
    grid = figure.subplots(1, 2, sharey=True)
    places, width = np.arange(len(table)), 0.27
    for axes, ending, within in zip(grid, ("", "_scaled"), (f"{eps:g}", f"alpha x {eps:g}")):
        for k, (name, label) in enumerate(CERTIFIED.items()):
            rates = list(table[name if name == "accuracy" else name + ending])
            value, error = _bars(rates)
            at = places + (k - 1) * width
            axes.bar(at, value, width, yerr=error, label=label, color=COLOURS[name], capsize=2,
                     ecolor="#333333")  # fmt: skip
            for x, v in zip(at, value):
                if v < 0.005:  # no bar to see is not the same as none drawn
                    axes.text(x, 0.015, "0", ha="center", fontsize=9)
        axes.set_xticks(places, [f"({a:g}, {b:g})" for a, b in zip(table.alpha, table.beta)])
        axes.set(xlabel="(alpha, beta)", title=f"within {within}", ylim=(0, 1.02))
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set(ylabel="share of all images", yticks=(0, 0.5, 1))
    grid[0].set_yticklabels(("0 %", "50 %", "100 %"))
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
                  frameon=False)  # fmt: skip
    if title:
        figure.suptitle(title)
    return figure


CERTIFIED = {
    "accuracy": "right",
    "robust": "right, and the attack fails",
    "certified": "right, and proved that any attack fails",
}


def defences(table: pd.DataFrame, title: str = "", alt: str = "") -> Picture:
    """`blindspots.defences`: a column a defence, a row a change, the attack's success as colour and
    number, and below it the accuracy on the changed images."""
    across, down = (list(dict.fromkeys(table[name])) for name in ("defence", "change"))
    figure = Picture(2.6 + 1.5 * len(across), 0.9 + 0.5 * len(down), alt)
    axes = figure.subplots()
    for row in table.to_dict("records"):
        x, y = across.index(row["defence"]), down.index(row["change"])
        success = row["success"].value
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=HEAT(success), ec="white", lw=2))
        ink = "white" if success > 0.6 else "black"
        axes.text(x, y - 0.12, f"{success:.0%}", ha="center", va="center", color=ink, fontsize=11)
        told = f"accuracy {row['accuracy'].value:.1%}"
        axes.text(x, y + 0.28, told, ha="center", va="center", color=ink, fontsize=8)
    figure.suptitle(title, fontsize=12)
    axes.set(xlim=(-0.5, len(across) - 0.5), ylim=(len(down) - 0.5, -0.5))
    axes.set_xticks(range(len(across)), across)
    axes.set_yticks(range(len(down)), down)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def corner(
    limits: pd.DataFrame,
    eps: float,
    pairs: Sequence[tuple[float, float]] = (),
    title: str = "",
    alt: str = "",
) -> Picture:
    """What no classifier can hold, over alpha and the radius, from `blindspots.robust_limits`: dark
    where not more than the share of the colour bar can be robust, whatever the network. Above the
    line alpha / 2 every image can be made the same grey. Circles are the pairs (alpha, beta) of a
    table within `eps`, crosses within alpha * eps."""
    figure = Picture(6.6, 4.2, alt)
    axes = figure.subplots()
    alpha = np.linspace(0.4, 1, 241)
    radius = np.linspace(0, max(0.55, 1.15 * eps), 221)
    ratio = 2 * radius[:, None] / alpha
    known = limits.sort_values("ratio")
    # of two ratios the smaller one's bound holds for all in between
    at = np.searchsorted(known.ratio, ratio, side="right") - 1
    bound = np.where(at < 0, 1.0, known.bound.to_numpy()[at.clip(0)])
    image = axes.pcolormesh(alpha, radius, bound, cmap="Greys_r", vmin=0, vmax=1, rasterized=True)
    bar = figure.colorbar(image, ax=axes, ticks=(0, 0.5, 1))
    bar.ax.set_yticklabels(("0 %", "50 %", "100 %"))
    bar.set_label("best robust accuracy, at most")
    axes.plot(alpha, alpha / 2, color=COLOURS["success"], lw=1.5)
    told = "radius above alpha / 2: every\nimage can become the same grey"
    axes.text(0.42, radius[-1] - 0.02, told, fontsize=9, color="white", va="top")
    shown = sorted({a for a, _ in pairs})
    style: dict[str, Any] = {"linestyle": "none", "markersize": 8, "markeredgewidth": 1.6,
                             "clip_on": False}  # fmt: skip
    axes.plot(shown, [eps] * len(shown), "o", color=COLOURS["success"], fillstyle="none",
              label=f"the paper's columns, within {eps:g}", **style)  # fmt: skip
    axes.plot(shown, [a * eps for a in shown], "x", color=COLOURS["success_scaled"],
              label=f"within alpha x {eps:g}", **style)  # fmt: skip
    axes.set(xlabel="alpha (the contrast that is left)", ylabel="radius of the attack", title=title,
             xlim=(0.4, 1.02), ylim=(0, radius[-1]))  # fmt: skip
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2,
                  frameon=False)  # fmt: skip
    return figure


def _bars(rates: Sequence[Rate]) -> tuple[np.ndarray, np.ndarray]:
    """Values [n], and how far below and above them the intervals go, [2, n]."""
    value = np.nan_to_num(np.array([r.value for r in rates]))
    return value, np.abs([value - [r.low for r in rates], [r.high for r in rates] - value])
