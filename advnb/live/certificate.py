"""The certificate panel: alpha, beta and eps, and what of the images is still proved."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from ..blindspots import PRINTED, columns, radius, scale_shift, valid_shift
from ..blindspots.landscape import one_start
from ..bounds import STANDINGS, standing
from ..certify import certified
from ..checks import number, whole
from ..models import checked, logits
from ..plots import COLOURS, RIGHT, WRONG, caption, mosaic
from ..profiles import profile
from ..relaxations import Method
from ..splits import Split
from ..stats import Rate, rate
from .controls import WRAP, button, radius_slider, slider, switch
from .figures import LiveFigure
from .panel import Panel
from .runner import REFRESH, Frame, Params

STEPS = 40  # of the attack
LINES = "Bounds from lines, intervals inside"
PIECE = 16  # images certified before newer values may cut in
FRAMES = {"certified": COLOURS["certified"], "open": COLOURS["normal"],
          "fooled": COLOURS["success"], "wrong": "black"}  # fmt: skip


class CertificatePanel(Panel):
    """Move alpha, beta and eps, and see what a certified network still proves of its images
    (`certify.certified`), what an attack takes from it, and what neither can tell.

    `split` holds the images (the panel takes the first `images` of it, by default the profile's);
    `eps` is the radius it starts from, by default `radius(split, "certified")`: the paper's for
    certified networks, or of data that it has none of, for adversarially trained ones. `params`:
    alpha, beta, eps. A frame of intervals comes first, then CROWN's lines with intervals for the
    hidden neurons, then PGD from the grey image, one of Z's two starts. ValueError for a network
    that nothing can be proved of.
    """

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        *,
        alpha: float = 1.0,
        beta: float = 0.0,
        eps: float | None = None,
        images: int | None = None,
    ) -> None:
        checked(model, split)
        count = profile().panel if images is None else whole("images", images, 1)
        low, high = valid_shift(alpha)
        beta = number("beta", beta, "a number", math.isfinite)
        if not low - 1e-6 <= beta <= high + 1e-6:
            raise ValueError(f"with alpha = {alpha:g}, beta may go from {low:g} to {high:g}")
        # the thread's own copy: somebody may train the model while the panel looks at it
        self._model, self._split = copy.deepcopy(model).eval(), split[:count]
        certified(self._model, split[:1], 0.0, method="ibp")  # or say why that is not possible
        eps = radius(split, "certified") if eps is None else eps
        self.controls = {
            "alpha": slider("alpha", alpha, 0.5, 1.0, 0.01),
            "beta": slider("beta", beta, -0.25, 0.25, 0.005),
            "eps": radius_slider(eps),
        }
        self.words = widgets.HTML()
        self._artist = CertificateFigure()
        c = self.controls
        pairs = [_pair(self, *pair) for pair in columns(split, "certified")]
        data = split.dataset.name if split.dataset else ""
        where = " in the paper" if ("certified", data) in PRINTED else ""
        tools = [
            button("Stop", self.stop, "give up the running attack"),
            button("Reset", self.reset, "back to the first values"),
        ]
        rows = [
            widgets.HBox([c["alpha"], c["beta"]]),
            widgets.HBox([c["eps"], *tools]),
            widgets.HBox([widgets.Label(f"(alpha, beta){where}:"), *pairs], layout=WRAP),
            self.words,
        ]
        super().__init__(rows)

    def constrain(self) -> None:
        alpha, beta = self.params["alpha"], self.controls["beta"]
        low, high = (round(edge, 6) for edge in valid_shift(alpha))
        switch(beta, high > 1e-9)
        beta.value = min(max(beta.value, low), high) + 0.0
        black = round((1 - alpha) / 2 + self.params["beta"], 6) + 0.0
        moved = max(black, abs(1 - alpha - black))
        self.words.value = (
            f"Black becomes <b>{black:.3g}</b>, white <b>{alpha + black:.3g}</b>: no pixel moves "
            f"by more than <b>{moved:.3g}</b>."
        )

    def frames(self, params: Params) -> Iterator[Frame | None]:
        alpha, beta, eps = (params[k] for k in ("alpha", "beta", "eps"))
        images = self._split.with_x(scale_shift(self._split.x, alpha, beta))
        began, guess = time.monotonic(), logits(self._model, images).argmax(1)
        right = guess == images.y
        fooled, sure = torch.zeros_like(right), torch.zeros_like(right)
        shown = images[: min(CertificateFigure.SHOWN, len(images))]

        def frame(words: str, found: Tensor, complete: bool = False) -> Frame:
            stands = standing(right, fooled, sure)
            rates = {
                "right": rate(right),
                "withstand the attack": rate(right & ~fooled),
                "certified": rate(sure),
            }
            now = torch.where(fooled, found, guess)[: len(shown)]
            names = [name for name, _ in shown.named(now)]
            kinds = [STANDINGS[k] for k in stands.tolist()]
            png = self._artist.draw(shown.x, kinds[: len(shown)], names, rates)
            counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in STANDINGS)
            alt = (
                f"{len(images)} images scaled by alpha {alpha:g} and shifted by beta {beta:g}, "
                f"within {eps:g}: {counts}. "
                + "; ".join(f"{name}: {value}" for name, value in rates.items())
                + f". {words}."
            )
            status = f"{words}, {len(images)} images, {time.monotonic() - began:.1f} s"
            return Frame(params, png, alt, status, complete)

        sure = self._sure(images, eps, "ibp")
        yield frame("Bounds from intervals, before the attack", guess)
        pieces = []
        for start in range(0, len(images), PIECE):
            yield None
            pieces.append(self._sure(images[start : start + PIECE], eps, "crown"))
        sure = torch.cat(pieces)
        yield frame(f"{LINES}, before the attack", guess)
        drawn, told = time.monotonic(), guess
        attack = replace(one_start(eps, STEPS), start="gray")
        for state in attack.iterate(self._model, images):
            yield None
            fooled = state.success & right
            last = state.step == STEPS or bool(state.success.all())
            if last or time.monotonic() - drawn > REFRESH:
                told = logits(self._model, images.with_x(state.x)).argmax(1)
                yield frame(f"{LINES}, step {state.step} of {STEPS}", told, last)
                drawn = time.monotonic()

    def _sure(self, images: Split, eps: float, method: Method) -> Tensor:
        return certified(self._model, images, eps, method=method, inner="ibp")


def _pair(panel: CertificatePanel, alpha: float, beta: float) -> widgets.Button:
    text = f"({alpha:g}, {beta:g})"
    act = lambda _: panel.submit(alpha=alpha, beta=beta)  # noqa: E731
    return button(text, act, f"set (alpha, beta) to {text}")


class CertificateFigure(LiveFigure):
    """Images framed by what is known of them, and three bars with what is open between them."""

    SHOWN, ACROSS = 16, 8

    def __init__(self) -> None:
        super().__init__(height=3.6)

    def draw(
        self, x: Tensor, kinds: Sequence[str], names: Sequence[str], rates: Mapping[str, Rate]
    ) -> bytes:
        """PNG of images x [N, C, H, W], each of a kind of STANDINGS and taken for one of `names`
        (when attacked, if it is fooled), and of the rates right, withstood and certified."""
        self.fit(tuple(x.shape))
        for image, pixels in zip(self.images, x):
            image.set_data(mosaic([pixels[None]]))
        for box, text, kind, name in zip(self.boxes, self.texts, kinds, names):
            box.set_edgecolor(FRAMES[kind])
            told = f"{kind}\n{caption(name, True)['text']}" if kind in ("fooled", "wrong") else kind
            text.set(text=told, color=RIGHT if kind == "certified" else
                     "#555555" if kind == "open" else WRONG)  # fmt: skip
        for i, (label, r) in enumerate(rates.items()):
            self.bars[i].set_width(r.value)
            self.intervals[i].set_data([r.low, r.high], [i, i])
            self.names[i].set_text(f"{label}\n{r.value:.1%}")
        low, high = rates["certified"].value, rates["withstand the attack"].value
        self.gap.set(x=low, width=max(high - low, 0))
        self.between.set(x=(low + high) / 2, text=f"open: {high - low:.1%}" if high > low else "")
        return self.png()

    def lay_out(self, size: tuple[int, ...]) -> None:
        n, _, h, w = size
        down = -(-n // self.ACROSS)
        self.images, self.boxes, self.texts = [], [], []
        for k in range(n):
            row, column = divmod(k, self.ACROSS)
            left, top = 0.005 + 0.079 * column, 1 - (row + 1) / max(down, 2)
            axes = self.figure.add_axes((left, top + 0.1, 0.074, 0.37))
            axes.set_axis_off()
            self.images.append(axes.imshow(np.zeros((h, w, 3)), vmin=0, vmax=1))
            box = Rectangle((-0.5, -0.5), w, h, fill=False, lw=4, clip_on=False)
            self.boxes.append(axes.add_patch(box))
            place = (w / 2, h * 1.06)
            self.texts.append(axes.text(*place, "", ha="center", va="top", fontsize=9))
        chart = self.figure.add_axes((0.77, 0.16, 0.2, 0.72))
        colours = [COLOURS[key] for key in ("accuracy", "robust", "certified")]
        self.bars = chart.barh(range(3), [0, 0, 0], color=colours, height=0.55)
        self.gap = chart.add_patch(Rectangle((0, 1.725), 0, 0.55, facecolor="#dddddd", hatch="///",
                                             edgecolor="#888888", lw=0))  # fmt: skip
        self.between = chart.text(0, 2.34, "", ha="center", va="top", fontsize=9)
        self.intervals = [chart.plot([0, 0], [i, i], color="#222222", lw=2)[0] for i in range(3)]
        self.names = [
            chart.text(-0.04, i, "", ha="right", va="center", fontsize=9) for i in range(3)
        ]
        chart.set(xlim=(0, 1), xticks=(0, 1), yticks=(), ylim=(2.75, -0.5))
        chart.set_xticklabels(("0 %", "100 %"), fontsize=9)
        chart.spines[["top", "right"]].set_visible(False)
