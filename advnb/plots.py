"""One visual vocabulary: the same colour and marker for the same thing in every figure.

Figures are made without pyplot, which is not safe on the threads that panels draw on; a
`Picture` shows itself in a notebook and carries its own description.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from .stats import Rate

if TYPE_CHECKING:
    import pandas as pd

RIGHT, WRONG = "#1b6e3c", "#b3261e"  # a prediction; also written, never told by colour alone
COLOURS = {
    "accuracy": "#4c72b0",
    "success": "#c44e52",
    "success_scaled": "#dd8452",
    "normal": "#8c8c8c",
    "adversarial": "#c44e52",
    "on-manifold": "#ccb974",
    "on-true": "#ccb974",
    "augmented": "#55a868",
    "transformation": "#64b5cd",
    "random-code": "#937860",
    "augmented-plain": "#4f9d4f",
    "regular+on-true": "#da8bc3",
    "regular+on-learned": "#a05195",
    "regular": "#c44e52",
    "test images": "#4c72b0",
    "natural": "#4c72b0",
    "on-learned": "#8172b3",
    "reconstruction": "#55a868",
    "random": "#8c8c8c",
}
# a colour a class, light enough to write on
PASTEL = [
    (0.72, 0.85, 0.93), (0.98, 0.80, 0.68), (0.78, 0.90, 0.72), (0.95, 0.72, 0.76),
    (0.83, 0.77, 0.92), (0.87, 0.80, 0.74), (0.97, 0.82, 0.92), (0.85, 0.85, 0.85),
    (0.93, 0.93, 0.65), (0.55, 0.80, 0.72),
]  # fmt: skip
# the papers' own numbers, in every figure
PRINTED: dict[str, Any] = {
    "marker": "D",
    "color": "black",
    "markersize": 6,
    "linestyle": "none",
}


class Picture(Figure):
    """A matplotlib figure that notebooks show as a PNG, with `alt` as its text."""

    def __init__(self, width: float, height: float, alt: str = "", dpi: float = 100) -> None:
        super().__init__(figsize=(width, height), dpi=dpi, layout="constrained")
        self.alt = alt
        FigureCanvasAgg(self)

    def png(self) -> bytes:
        """The figure as PNG bytes."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()

    def __repr__(self) -> str:
        return f"Picture: {self.alt}"


def mosaic(rows: Sequence[Tensor], gap: int = 2) -> np.ndarray:
    """Rows of images [N, C, H, W] in [0, 1] as one picture [height, width, 3], with white gaps."""
    channels = rows[0].shape[1]
    height, width = (side + gap for side in rows[0].shape[2:])
    out = np.ones((len(rows) * height - gap, len(rows[0]) * width - gap, 3), np.float32)
    for i, row in enumerate(rows):
        images = row.detach().cpu().float().clamp(0, 1).permute(0, 2, 3, 1).numpy()
        for j, image in enumerate(images):
            tile = out[i * height : (i + 1) * height - gap, j * width : (j + 1) * width - gap]
            tile[:] = image if channels == 3 else image[..., :1]
    return out


def amplified(delta: Tensor, bound: float) -> Tensor:
    """A change drawn so that it can be seen: grey where there is none, black and white at -bound
    and +bound."""
    return (delta / (2 * bound) + 0.5).clamp(0, 1)


def caption(guess: str, right: bool) -> dict[str, str]:
    """A prediction as a text and its colour, short enough to stand under an image."""
    text = guess if len(guess) <= 11 else f"{guess[:6]}…{guess[-4:]}"  # the end tells apart, too
    return {"text": text if right else f"✗ {text}", "color": RIGHT if right else WRONG}


def gallery(
    rows: Mapping[str, Tensor],
    captions: Mapping[str, Sequence[tuple[str, bool]]] | None = None,
    alt: str = "",
    title: str = "",
) -> Picture:
    """Rows of images, named on the left; a caption (text, whether it is right) under an image."""
    captions = captions or {}
    images = list(rows.values())
    n, (h, w) = len(images[0]), images[0].shape[2:]
    extra = 0.3 if captions else 0.0
    margin = 0.5 + 0.1 * max(map(len, rows))  # for the names on the left
    figure = Picture(margin + 0.85 * n, len(rows) * (0.85 * h / w + extra) + 0.35, alt)
    grid = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axes, (label, row) in zip(grid, rows.items()):
        axes.imshow(mosaic([row]), interpolation="nearest", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_frame_on(False)
        axes.set_anchor("E")  # whatever room is left belongs to the names
        axes.set_ylabel(label, rotation=0, ha="right", va="center")
        for j, (text, right) in enumerate(captions.get(label, ())):
            place = (j * (w + 2) + w / 2, h + 1)
            axes.text(*place, "", ha="center", va="top", fontsize=9).set(**caption(text, right))
    if title:
        figure.suptitle(title)
    return figure


def bars(
    axes: Axes,
    rates: Mapping[str, Rate],
    colours: Sequence[str],
    paper: Mapping[str, float] | None = None,
) -> None:
    """Horizontal bars with intervals, the paper's value as a black diamond where there is one."""
    labels = list(rates)
    for i, (label, colour) in enumerate(zip(labels, colours)):
        r = rates[label]
        value = 0.0 if np.isnan(r.value) else r.value
        error = [[max(value - r.low, 0)], [max(r.high - value, 0)]]
        axes.barh(i, value, color=colour, xerr=error, capsize=3, ecolor="#333333")
        if paper and label in paper:
            axes.plot(paper[label], i, **PRINTED)
    axes.set(yticks=range(len(labels)), yticklabels=labels, xlim=(0, 1), xticks=(0, 0.5, 1))
    axes.set_xticklabels(("0 %", "50 %", "100 %"))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


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
    most = max(float(values.max()) for values in groups.values())
    bins = np.linspace(0, most * 1.02 + 1e-9, 41).tolist()
    peaks = {}
    for name, values in groups.items():
        share = np.full(len(values), 1 / len(values))
        heights, _, _ = axes.hist(
            values.cpu().numpy(), bins, weights=share, alpha=0.6, label=name,
            color=COLOURS.get(name),
        )  # fmt: skip
        peaks[name] = int(np.argmax(heights)), float(np.max(heights))
    top = min(6 * min(peak for _, peak in peaks.values()), max(peak for _, peak in peaks.values()))
    for name, (at, peak) in peaks.items():
        if peak > top:  # a spike would flatten all others: cut off, with its height written beside
            axes.text(bins[at + 1], top * 1.04, f" {name}: {peak:.0%}", va="top", fontsize=9)
    for name, (low, middle, high) in (paper or {}).items():
        axes.plot([low, high], [top * 1.15] * 2, color="black", lw=1)
        axes.plot(middle, top * 1.15, label=f"{name}, printed in the paper", **PRINTED)
    axes.set(xlabel=xlabel, ylabel="share of images", ylim=(0, top * (1.25 if paper else 1.08)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def curves(
    lines: Mapping[str, Sequence[float]], xlabel: str = "", ylabel: str = "", alt: str = ""
) -> Picture:
    """One line a name, over 0, 1, 2, ...; names that have a colour keep it."""
    figure = Picture(6, 2.8, alt)
    axes = figure.subplots()
    for name, values in lines.items():
        axes.plot(range(len(values)), values, marker=".", label=name, color=COLOURS.get(name))
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def generalization(
    shown: pd.DataFrame,
    attack: str = "error",
    *,
    against: str = "n",
    own: pd.DataFrame | None = None,
    paper: pd.DataFrame | None = None,
    alt: str = "",
) -> Picture:
    """S's Fig. 5 and 6: a line a strategy, over the number of training images or against another
    measure ("error" say), from `curves.summary` tables. Bands are intervals over seeds, stars
    `own` models, open diamonds the `paper`'s printed numbers."""
    figure = Picture(6.4, 3.6, alt)
    axes = figure.subplots()
    for recipe, part in _measures(shown, attack, against).groupby("recipe", sort=False):
        colour = COLOURS.get(str(recipe), COLOURS["random"])
        axes.plot(part.x, part.value, marker="o", markersize=4, color=colour, label=recipe)
        if against == "n":
            axes.fill_between(part.x, part.low, part.high, color=colour, alpha=0.2, linewidth=0)
        for table, style in ((paper, OPEN), (own, OWN)):
            if table is not None:
                same = _measures(table, attack, against)
                same = same[(same.recipe == recipe) & same.x.notna()]
                axes.plot(same.x, same.value, color=colour, **style)
    for table, style, told in ((paper, OPEN, "printed in the paper"), (own, OWN, "your own")):
        if table is not None:
            axes.plot([], [], color="black", label=told, **style)
    if against == "n":
        axes.set_xscale("log")
        sizes = [n for n in sorted(set(shown.n)) if n in (250, 1000, 5000, 10_000, 40_000)]
        axes.set_xticks(sizes, [f"{n:,.0f}" for n in sizes])
        axes.minorticks_off()
    axes.set(xlabel=NAMES.get(against, against), ylabel=NAMES.get(attack, attack))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


OPEN: dict[str, Any] = {"linestyle": "none", "marker": "D", "markersize": 5, "fillstyle": "none"}
OWN: dict[str, Any] = {"linestyle": "none", "marker": "*", "markersize": 14, "markeredgecolor": "k"}
NAMES = {
    "n": "training images",
    "error": "test error",
    "on-true": "on-manifold success (known)",
    "on-learned": "on-manifold success (learned)",
    "regular": "regular success",
    "transformation": "success of transformations",
}


def _measures(table: pd.DataFrame, attack: str, against: str) -> pd.DataFrame:
    """Rows of one measure, with where they stand on the other axis as `x`."""
    rows = table[table.attack == attack]
    if against == "n":
        return rows.assign(x=rows.n)
    if "error" in rows and against == "error":  # printed: some have no n
        return rows.assign(x=rows.error)
    other = table[table.attack == against][["recipe", "n", "value"]]
    return rows.merge(other.rename(columns={"value": "x"}), on=["recipe", "n"], how="inner")


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
            k = int(off.argmin())
            place = ticks[0][columns[k]].item(), ticks[1][rows[k]].item()
            axes.text(
                *place, classes[label], ha="center", va="center", fontsize=11, color="#444444"
            )
        for (name, (x, y)), marker in zip(marks.items(), cycle("o^s*Dv")):
            axes.plot(x.item(), y.item(), marker, color="black", markersize=8, label=name,
                      markerfacecolor="white")  # fmt: skip
        axes.set(title=title, xlabel="L2 distance along one axis", ylabel="along the other")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False)  # fmt: skip
    return figure
