"""The pictures of the panels, drawn again and again without pyplot."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ..plots import COLOURS, PRINTED, amplified, caption, mosaic
from ..stats import Rate


class LiveFigure:
    """A figure whose artists are made once, in `lay_out`, and moved afterwards: frames are what a
    person waits for, and most of a new figure's time goes into making artists. What `moving` lists
    is drawn anew in every frame, over a copy of the rest; everything is where it lists nothing."""

    def __init__(self, width: float = 11, height: float = 4.0) -> None:
        self.figure = Figure(figsize=(width, height), dpi=80)
        self.canvas = FigureCanvasAgg(self.figure)
        self.size: tuple[int, ...] = ()
        self.moving: list[Artist] = []
        self.still: object = None  # the rest as it was drawn; None when it has changed

    def fit(self, size: tuple[int, ...]) -> None:
        """Make the artists again if the images have another size than last time."""
        if self.size != size:
            self.size = size
            self.figure.clear()
            self.moving, self.still = [], None
            self.lay_out(size)
            for artist in self.moving:
                artist.set_animated(True)

    def lay_out(self, size: tuple[int, ...]) -> None:
        """Make the artists for images of this size."""
        raise NotImplementedError

    def render(self) -> None:
        """Bring the canvas up to date."""
        if not self.moving:
            self.canvas.draw()
            return
        if self.still is None:
            self.canvas.draw()
            self.still = self.canvas.copy_from_bbox(self.figure.bbox)
        self.canvas.restore_region(self.still)
        for artist in self.moving:
            artist.draw(self.canvas.get_renderer())

    def png(self) -> bytes:
        """The figure as it is now."""
        from PIL import Image

        self.render()
        buffer = io.BytesIO()
        pixels = np.asarray(self.canvas.buffer_rgba())[..., :3]
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)  # 5 times faster than 6
        return buffer.getvalue()


class BlindspotFigure(LiveFigure):
    """The blind-spot panel's picture: a gallery and three bars."""

    SHOWN = 8  # images in the gallery
    ROWS = ("x′", "adversarial", "change")

    def draw(
        self,
        x: Tensor,
        adversarial: Tensor,
        guesses: Sequence[Sequence[tuple[str, bool]]],
        eps: float,
        rates: Mapping[str, Rate],
        paper: Sequence[float] | None,
    ) -> bytes:
        """PNG of images x [N, C, H, W], their adversarial versions, the change over +-eps, and
        three rates beside the paper's; `guesses` are (text, right) of each row's predictions."""
        self.fit(tuple(x.shape))
        h, gap = x.shape[2], self.gap
        for i, row in enumerate((x, adversarial, amplified(adversarial - x, eps))):
            self.pixels[i * (h + gap) : i * (h + gap) + h] = mosaic([row])
        self.image.set_data(self.pixels)
        for texts, row_guesses in zip(self.guesses, guesses):
            for text, (guess, right) in zip(texts, row_guesses):
                text.set(**caption(guess, right))
        for i, (label, r) in enumerate(rates.items()):
            value = 0.0 if np.isnan(r.value) else r.value
            self.bars[i].set_width(value)
            self.intervals[i].set_data([r.low, r.high], [i, i])
            self.names[i].set_text(f"{label}\n{'–' if np.isnan(r.value) else f'{value:.1%}'}")
        self.marks.set_data([], [])
        self.told.set_text("" if paper is None else "◆ the paper's network")
        if paper is not None:
            self.marks.set_data(list(paper), range(len(paper)))
        return self.png()

    def lay_out(self, size: tuple[int, ...]) -> None:
        n, _, h, w = size
        axes = self.figure.add_axes((0.09, 0.0, 0.68, 1.0))
        axes.set_axis_off()
        self.gap = max(3, h // 4)  # room for a prediction under each image
        self.pixels = np.ones((3 * (h + self.gap), n * (w + 2) - 2, 3), np.float32)
        self.image = axes.imshow(self.pixels, interpolation="nearest", vmin=0, vmax=1)
        for i, text in enumerate(self.ROWS):
            axes.text(-w * 0.15, i * (h + self.gap) + h / 2, text, ha="right", va="center")
        self.guesses = [
            [
                axes.text(j * (w + 2) + w / 2, i * (h + self.gap) + h, "", ha="center", va="top")
                for j in range(n)
            ]
            for i in range(2)
        ]
        chart = self.figure.add_axes((0.875, 0.14, 0.095, 0.72))
        colours = [COLOURS[key] for key in ("accuracy", "success", "success_scaled")]
        self.bars = chart.barh(range(3), [0, 0, 0], color=colours, height=0.6)
        self.intervals = [chart.plot([0, 0], [i, i], color="#222222", lw=2)[0] for i in range(3)]
        self.marks = chart.plot([], [], clip_on=False, **PRINTED)[0]
        self.names = [
            chart.text(-0.08, i, "", ha="right", va="center", fontsize=9) for i in range(3)
        ]
        chart.set(xlim=(0, 1), xticks=(0, 1), yticks=(), ylim=(2.6, -0.6))
        chart.set_xticklabels(("0 %", "100 %"), fontsize=9)
        self.told = chart.text(0.5, -0.7, "", ha="center", va="bottom", fontsize=9)
        chart.spines[["top", "right"]].set_visible(False)
        texts = [text for row in self.guesses for text in row]
        self.moving = [
            self.image, *texts, *self.bars, *self.intervals, self.marks, *self.names,
            self.told,
        ]  # fmt: skip


class AttackFigure(LiveFigure):
    """One image, its adversarial version, the change, and the class probabilities of both."""

    NAMES = ("image", "adversarial", "change")

    def draw(
        self,
        x: Tensor,
        adversarial: Tensor,
        bound: float,
        guesses: Sequence[tuple[str, bool]],
        probabilities: Tensor,
        classes: Sequence[str],
    ) -> bytes:
        """PNG of x and adversarial [C, H, W] and their change over +-bound; `probabilities`
        [2, K] of the K named classes, before and after."""
        self.fit((*x.shape, len(classes)))
        for image, pixels in zip(self.images, (x, adversarial, amplified(adversarial - x, bound))):
            image.set_data(mosaic([pixels[None]]))
        for text, (guess, right) in zip(self.guesses, guesses):
            text.set(**caption(guess, right))
        for bars, values in zip(self.bars, probabilities.tolist()):
            for bar, value in zip(bars, values):
                bar.set_height(value)
        names = [caption(name, True)["text"] for name in classes]
        self.chart.set_xticklabels(names, rotation=90 if max(map(len, names)) > 3 else 0)
        return self.png()

    def lay_out(self, size: tuple[int, ...]) -> None:
        _, h, w, k = size
        self.images, self.guesses = [], []
        for i, name in enumerate(self.NAMES):
            axes = self.figure.add_axes((0.01 + 0.19 * i, 0.2, 0.18, 0.66))
            axes.set_axis_off()
            axes.set_title(name, fontsize=11)
            self.images.append(axes.imshow(np.zeros((h, w, 3)), vmin=0, vmax=1))
            self.guesses.append(axes.text(w / 2, h * 1.04, "", ha="center", va="top"))
        self.chart = self.figure.add_axes((0.66, 0.28, 0.33, 0.58))
        places = np.arange(k)
        self.bars = [
            self.chart.bar(places - 0.2, np.zeros(k), 0.4, color=COLOURS["normal"], label="image"),
            self.chart.bar(
                places + 0.2, np.zeros(k), 0.4, color=COLOURS["adversarial"], label="adversarial"
            ),
        ]
        self.chart.set(ylim=(0, 1), yticks=(0, 0.5, 1), xticks=places)
        self.chart.set_title("class probabilities", fontsize=11)
        self.chart.legend(frameon=False, fontsize=8, loc="upper right")
        self.chart.spines[["top", "right"]].set_visible(False)
