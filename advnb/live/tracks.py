"""The latent panel's picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..plots import COLOURS, amplified, caption, mosaic
from .figures import LiveFigure


def strengths(slopes: Sequence[float], widths: Sequence[float]) -> list[float]:
    """How much the loss grows along the whole of each slider, over the largest, in [-1, 1]."""
    rises = [slope * width for slope, width in zip(slopes, widths)]
    most = max(map(abs, rises)) or 1.0
    return [rise / most for rise in rises]


class LatentFigure(LiveFigure):
    """The image, the moved image, their difference, probabilities, and the code on its tracks."""

    TITLES = ("image", "moved", "change")

    def __init__(self, names: Sequence[str], low: Sequence[float], high: Sequence[float]) -> None:
        super().__init__(11, 3.4)
        self.short: list[str] = []  # the names on the axis
        self.names, self.low, self.width = names, np.array(low), np.array(high) - np.array(low)

    def draw(
        self,
        x: Tensor,
        moved: Tensor,
        guess: tuple[str, bool],
        probabilities: Tensor,
        classes: Sequence[str],
        own: Tensor,
        code: Tensor,
        slopes: Tensor,
        eta: float,
    ) -> bytes:
        """PNG of images x and moved [C, H, W], probabilities [K] of the named classes, and the
        codes `own` and `code` [d] with the loss's `slopes` [d] and the box of eta."""
        self.fit((*x.shape, len(classes)))
        for image, pixels in zip(self.images, (x, moved, amplified(moved - x, 1.0))):
            image.set_data(mosaic([pixels[None]]))
        self.guess.set(**caption(*guess))
        for bar, value in zip(self.bars, probabilities.tolist()):
            bar.set_height(value)
        short = [caption(name, True)["text"] for name in classes]
        if short != self.short:
            self.short, self.still = short, None
            self.chart.set_xticklabels(short, rotation=90 if max(map(len, short)) > 3 else 0)
        a, b = ((edge.numpy() - self.low) / self.width for edge in (own - eta, own + eta))
        here = (code.numpy() - self.low) / self.width
        pull = strengths(slopes.tolist(), self.width.tolist())
        for k, band in enumerate(self.bands):
            start, end = np.clip([a[k], b[k]], 0, 1)
            band.set(x=start, width=max(end - start, 0))
        rows = np.arange(len(here))
        self.marks.set_data((own.numpy() - self.low) / self.width, rows)
        self.dots.set_data(here, rows)
        self.pull.set_offsets(np.stack([here, rows], 1))
        self.pull.set_UVC(0.15 * np.array(pull), np.zeros(len(here)))
        return self.png()

    def lay_out(self, size: tuple[int, ...]) -> None:
        _, h, w, k = size
        self.images = []
        self.short = []
        for i, title in enumerate(self.TITLES):
            axes = self.figure.add_axes((0.005 + 0.15 * i, 0.2, 0.14, 0.62))
            axes.set_axis_off()
            axes.set_title(title, fontsize=11)
            self.images.append(axes.imshow(np.zeros((h, w, 3)), vmin=0, vmax=1))
            if i == 1:
                self.guess = axes.text(w / 2, h * 1.04, "", ha="center", va="top")
        self.chart = self.figure.add_axes((0.49, 0.26, 0.2, 0.56))
        self.bars = self.chart.bar(np.arange(k), np.zeros(k), color=COLOURS["on-manifold"])
        self.chart.set(ylim=(0, 1), yticks=(0, 0.5, 1), xticks=range(k))
        self.chart.set_title("class probabilities", fontsize=11)
        tracks = self.figure.add_axes((0.79, 0.1, 0.2, 0.72))
        n = len(self.names)
        self.bands = tracks.barh(range(n), np.zeros(n), height=0.7, color="#cccccc")
        (self.marks,) = tracks.plot([], [], "|", color="black", markersize=10)
        (self.dots,) = tracks.plot([], [], "o", color=COLOURS["on-manifold"], markersize=4,
                                   markeredgecolor="black")  # fmt: skip
        self.pull = tracks.quiver(
            np.zeros(n), np.arange(n), np.ones(n), np.zeros(n), color=COLOURS["success"],
            angles="xy", scale_units="xy", scale=1, width=0.02, zorder=3,
        )  # fmt: skip
        tracks.set(xlim=(-0.03, 1.03), ylim=(n - 0.4, -0.6), xticks=(), yticks=range(n))
        tracks.set_yticklabels(self.names, fontsize=9)
        tracks.set_title("code; arrows: the loss grows", fontsize=11)
        for axes in (self.chart, tracks):
            axes.spines[["top", "right"]].set_visible(False)
        self.moving = [
            *self.images, self.guess, *self.bars, *self.bands, self.marks, self.dots, self.pull,
        ]  # fmt: skip
