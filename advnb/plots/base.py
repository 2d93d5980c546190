"""One visual vocabulary: the same colour and marker for the same thing in every figure.

Figures are made without pyplot, which is not safe on the threads that panels draw on; a
`Picture` shows itself in a notebook and carries its own description.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from ..stats import Rate

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
    "augmented-plain": "#1b5e20",
    "regular+on-true": "#da8bc3",
    "regular+on-learned": "#a05195",
    "regular": "#c44e52",
    "regular, from its twin": "#dd8452",
    "test images": "#4c72b0",
    "natural": "#4c72b0",
    "moved": "#55a868",
    "on-learned": "#8172b3",
    "reconstruction": "#55a868",
    "random": "#8c8c8c",
    "untouched": "#4c72b0",
    "transformed": "#dd8452",
    "robust": "#8ecae6",
    "certified": "#55a868",
    "intervals": "#b5deb9",
    "lines": "#55a868",
}
# a colour a class, light enough to write on
PASTEL = [
    (0.72, 0.85, 0.93), (0.98, 0.80, 0.68), (0.78, 0.90, 0.72), (0.95, 0.72, 0.76),
    (0.83, 0.77, 0.92), (0.87, 0.80, 0.74), (0.97, 0.82, 0.92), (0.85, 0.85, 0.85),
    (0.93, 0.93, 0.65), (0.55, 0.80, 0.72),
]  # fmt: skip
# the papers' own numbers, in every figure
HALO = [withStroke(linewidth=3, foreground="white")]  # of what stands on other lines
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


def amplified(delta: Tensor, bound: float | Tensor) -> Tensor:
    """A change drawn so that it can be seen: grey where there is none, black and white at -bound
    and +bound."""
    return (delta / (2 * bound) + 0.5).clamp(0, 1)


def caption(guess: str, right: bool | None) -> dict[str, str]:
    """A prediction as a text and its colour, short enough to stand under an image; black where
    nothing is right or wrong."""
    text = guess if len(guess) <= 11 else f"{guess[:6]}…{guess[-4:]}"  # the end tells apart, too
    if right is None:
        return {"text": text, "color": "black"}
    return {"text": text if right else f"✗ {text}", "color": RIGHT if right else WRONG}


def gallery(
    rows: Mapping[str, Tensor],
    captions: Mapping[str, Sequence[tuple[str, bool | None]]] | None = None,
    alt: str = "",
    title: str = "",
) -> Picture:
    """Rows of images, named on the left; under an image a caption: its text, and whether that is
    right (None: no matter)."""
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
