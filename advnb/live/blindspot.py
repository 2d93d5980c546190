"""The blind-spot panel: alpha, beta, eps and steps, and what they do to a model."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from torch import Tensor, nn

from .. import zoo
from ..attacks import State
from ..blindspots import PRINTED, Landscape, Printed, radius, scale_shift, valid_shift
from ..blindspots.landscape import SHIFTS, one_start
from ..blindspots.runs import defence
from ..blindspots.shift import EPS, USUAL
from ..checks import number, whole
from ..data import TITLES, here, load
from ..files import write
from ..models import checked, logits, predictions
from ..profiles import profile
from ..splits import Split
from ..stats import Rate, rate
from .controls import WRAP, button, least, radius_slider, slider, switch
from .figures import BlindspotFigure
from .landscape import ALPHAS, MapFrame, MapPanel
from .runner import REFRESH, Frame, Params

MINE = "as given"


class BlindspotPanel(MapPanel):
    """Move alpha and beta, and see a robust model break (Z section 3.3, figure 4).

    `split` holds the images to attack (the panel takes the first `images` of it, by default the
    profile's), `eps` is the radius it starts from, by default the paper's for the data set.
    `params`: alpha, beta, eps, steps, model, data. The attack is PGD with one uniform start.

    Map shows the success over `alphas` and relative `shifts` below the picture, and attacks what
    no earlier map has found; Stop interrupts that, and Map goes on. A click on it picks a pair.
    """

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        *,
        alpha: float = 1.0,
        beta: float = 0.0,
        eps: float | None = None,
        steps: int = 40,
        images: int | None = None,
        alphas: Sequence[float] = ALPHAS,
        shifts: Sequence[float] = SHIFTS,
    ) -> None:
        checked(model, split)
        self._images = profile().panel if images is None else whole("images", images, 1)
        low, high = valid_shift(alpha)
        beta = number("beta", beta, "a number", math.isfinite)
        if not low - 1e-6 <= beta <= high + 1e-6:
            raise ValueError(f"with alpha = {alpha:g}, beta may go from {low:g} to {high:g}")
        # the thread's own copy: somebody may train the model while the panel attacks it
        mine = copy.deepcopy(model).eval()
        self._cast: dict[tuple[str, str], Any] = {(MINE, "model"): mine, (MINE, "data"): split}
        name = split.dataset.title if split.dataset else "images"
        self.controls = {
            "alpha": slider("alpha", alpha, 0.5, 1.0, 0.01),
            "beta": slider("beta", beta, -0.25, 0.25, 0.005),
            "eps": radius_slider(radius(split) if eps is None else eps),
            "steps": slider("steps", steps, 1, 100, 1),
            "model": widgets.Dropdown(options=[MINE, *zoo.names()], description="model"),
            "data": widgets.Dropdown(
                # what would first have to be downloaded is nothing for a panel
                options=[(f"{name} ({MINE})", MINE), *((TITLES[n], n) for n in here())],
                description="data",
            ),
        }
        self.words = widgets.HTML()
        self._artist = BlindspotFigure()
        c = self.controls
        self._pairs, self._pairs_of = widgets.HBox(layout=WRAP), ""
        tools = [
            button("Stop", self.stop, "give up the running attack"),
            button("Reset", self.reset, "back to the first values"),
            button("Map", self.map, "success over all alpha and beta, below the picture"),
            button("Save picture", self.save, "write the picture as a PNG file"),
        ]
        rows = [
            widgets.HBox([c["model"], c["data"]]),
            widgets.HBox([c["alpha"], c["beta"]]),
            widgets.HBox([c["eps"], c["steps"]]),
            self._pairs,
            widgets.HBox(tools),
            self.words,
        ]
        super().__init__(rows, alphas, shifts)

    def constrain(self) -> None:
        if self._pairs_of != self.params["data"]:  # each data set has columns and a radius
            first, self._pairs_of = not self._pairs_of, self.params["data"]
            given = self._cast[MINE, "data"]
            mine = given.dataset.name if given.dataset else ""
            name = mine if self._pairs_of == MINE else self._pairs_of
            known = PRINTED.get(("adversarial", name))
            where = " in the paper" if known else ""
            pairs = [_pair(self, p.alpha, p.beta) for p in known or USUAL]
            self._pairs.children = widgets.Label(f"(alpha, beta){where}:"), *pairs
            if not first:
                eps = self._first["eps"] if self._pairs_of == MINE else EPS.get(name, 0.1)
                self.controls["eps"].min = least(eps)
                self.controls["eps"].value = eps
        alpha, beta = self.params["alpha"], self.controls["beta"]
        low, high = (round(edge, 6) for edge in valid_shift(alpha))
        switch(beta, high > 1e-9)
        beta.value = min(max(beta.value, low), high) + 0.0
        black = round((1 - alpha) / 2 + self.params["beta"], 6) + 0.0
        white = alpha + black
        self.words.value = (
            f"Black becomes <b>{black:.3g}</b>, white <b>{white:.3g}</b>: "
            f"contrast {alpha:.0%} of the original."
        )

    def save(self, *_: Any) -> None:
        """Write the present picture to the working folder, named after its parameters."""
        frame = self.frame
        if frame is None:
            return
        told = "_".join(f"{name}-{value}" for name, value in frame.params.items() if value != MINE)
        path = Path(f"blindspot_{told}.png")
        try:
            write(path, lambda temporary: temporary.write_bytes(self._map.below(frame.png)))
        except OSError as error:
            self._say(f"Not saved: {error}", role="alert")
        else:
            self._say(f"Saved as {path}")

    def _paper(self, params: Params, split: Split) -> list[Printed]:
        """What the paper prints for such a model within such a radius. Of the model that was given
        nobody knows how it was trained: by its radius it stands beside table 2 or 3."""
        name, data = params["model"], split.dataset.name if split.dataset else ""
        if name != MINE and zoo.entry(name).data != data:
            return []  # the paper's networks are each of one data set
        kind = "adversarial" if name == MINE else defence(name)
        near = abs(params["eps"] - radius(split, kind)) < 1e-6  # a slider's numbers are rounded
        if name.endswith("-normal") or not near:
            return []
        return list(PRINTED.get((kind, data), ()))

    def frames(self, params: Params) -> Iterator[Frame | None]:
        model, split = self._get(params, "model"), self._get(params, "data")[: self._images]
        alpha, beta, eps, steps = (params[k] for k in ("alpha", "beta", "eps", "steps"))
        images = split.with_x(scale_shift(split.x, alpha, beta))
        guess = logits(model, images).argmax(1)
        correct = guess == images.y
        began, shown = time.monotonic(), min(self._artist.SHOWN, len(images))
        settings, land, paper = self._settings(params), None, self._paper(params, split)
        if self._map.shown:
            search = one_start(eps, steps)
            land = self._map.land(settings, partial(Landscape, model, split, search))
        asked = land is not None and self._map.asked == settings

        def frame(at: State | None, scaled: State | None) -> MapFrame:
            rates = {
                "accuracy": rate(correct),
                f"success at {eps:.3g}": _success(at, correct),
                f"at α x {eps:.3g}": _success(scaled, correct),
            }
            step = "" if at is None else f"step {done} of {steps}, "
            told = {k: v for k, v in rates.items() if step or k == "accuracy"}
            status = step or "before the attack, "
            status += f"{len(images)} images, {time.monotonic() - began:.1f} s"
            near = (p for p in paper if abs(p.alpha - alpha) + abs(p.beta - beta) < 1e-6)
            column = next(near, None)
            gallery = images[:shown]
            found = gallery.with_x(gallery.x if at is None else at.x[:shown])
            png = self._artist.draw(
                gallery.x,
                found.x,
                [gallery.named(guess[:shown]), predictions(model, found)],
                eps,
                rates,
                None if column is None else _printed_values(column),
            )
            alt = (
                f"Images scaled by alpha {alpha:g} and shifted by beta {beta:g}, their adversarial "
                f"versions within {eps:g} and the differences. "
                + "; ".join(f"{k}: {v}" for k, v in told.items())
                + (f" after {step.rstrip(', ')}." if step else ", before the attack.")
            )
            return MapFrame(params, png, alt, status, complete=done == steps and not asked)

        done = 0
        first = frame(None, None)
        yield first if land is None else self._map.onto(first, land, paper)
        radii = (eps, alpha * eps) if alpha < 1 else (eps,)
        searches = [one_start(radius, steps).iterate(model, images) for radius in radii]
        states: list[State] = [next(search) for search in searches]
        drawn = time.monotonic()
        for done in range(1, steps + 1):
            yield None
            states = [next(search, state) for search, state in zip(searches, states)]
            if done < steps and time.monotonic() - drawn > REFRESH:
                yield frame(states[0], states[-1])
                drawn = time.monotonic()
        last = frame(states[0], states[-1])
        yield last
        if land is not None and asked:
            yield from self._map.fill(last, land, paper)

    def _get(self, params: Params, what: str) -> Any:
        key = (params[what], what)
        if key not in self._cast:
            self._cast[key] = (zoo.load if what == "model" else self._test)(params[what])
        return self._cast[key]

    def _test(self, name: str) -> Split:
        data = load(name)
        return data.test(min(self._images, data.sizes[1]))


def _pair(panel: BlindspotPanel, alpha: float, beta: float) -> widgets.Button:
    text = f"({alpha:g}, {beta:g})"
    act = lambda _: panel.submit(alpha=alpha, beta=beta)  # noqa: E731
    return button(text, act, f"set (alpha, beta) to {text}")


def _success(state: State | None, correct: Tensor) -> Rate:
    """Success so far among the images that were classified correctly; NaN before the start."""
    if state is None:
        return Rate(math.nan, math.nan, math.nan, 0)
    return rate(state.success[correct])


def _printed_values(paper: Printed) -> tuple[float, float, float]:
    return paper.accuracy, paper.success, paper.success_scaled
