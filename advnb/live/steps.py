"""The step panel: one image, one attack, and how far from the manifold its steps lead."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from torch import Tensor, nn

from ..attacks import Attack, State
from ..models import checked, predictions
from ..perturbations import Manifold, manifold_of
from ..plots import COLOURS, amplified, caption, mosaic
from ..splits import Split
from .controls import WRAP, button, chooser, slider
from .figures import LiveFigure
from .panel import Panel
from .runner import REFRESH, Frame, Params


class StepPanel(Panel):
    """Scrub through an attack: the image after each step, its loss, its nearest point on the
    manifold and the distance to it (S sections 3.2 and 3.3).

    `attacks` are offered by name; each keeps all its steps (as keep="strongest"). `params`: image
    (a position in `split`), attack, step. What was once searched is kept.
    """

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        attacks: Mapping[str, Attack],
        manifold: Manifold | None = None,
        *,
        image: int = 0,
    ) -> None:
        checked(model, split)
        manifold = manifold_of(split, manifold)
        named = isinstance(attacks, Mapping) and len(attacks) > 0
        if not named or not all(isinstance(attack, Attack) for attack in attacks.values()):
            raise ValueError('attacks must name Attacks, {"regular": Attack(Pixels(0.3))} say')
        self._model, self._split, self._manifold = copy.deepcopy(model).eval(), split, manifold
        self._attacks = dict(attacks)
        self._seen: dict[tuple[int, str], _Walk] = {}
        self._artist = StepFigure()
        longest = max(attack.steps for attack in attacks.values())
        self.controls = {
            "image": chooser(split, image),
            "attack": widgets.Dropdown(options=list(attacks), description="attack"),
            "step": slider("step", longest, 0, max(longest, 1), 1),
        }
        c = self.controls
        tools = [
            button("Stop", self.stop, "give up the running search"),
            button("Reset", self.reset, "back to the first values"),
        ]
        super().__init__(
            [
                widgets.HBox([c["image"], c["attack"]], layout=WRAP),
                widgets.HBox([c["step"], *tools], layout=WRAP),
            ]
        )

    def constrain(self) -> None:
        self.controls["image"].value = min(self.controls["image"].value, len(self._split) - 1)
        steps = self._attacks[self.controls["attack"].value].steps
        self.controls["step"].value = min(self.controls["step"].value, steps)

    def frames(self, params: Params) -> Iterator[Frame | None]:
        one, key = self._split[params["image"]], (params["image"], params["attack"])
        if key not in self._seen:
            attack = replace(self._attacks[params["attack"]], keep="strongest", restarts=1)
            self._seen[key] = _Walk(attack.iterate(self._model, one))
        walk, drawn = self._seen[key], time.monotonic()
        while True:  # goes on where another job was given up
            try:
                state = next(walk.search, None)
            except Exception:
                del self._seen[key]  # a search that has failed begins anew
                raise
            if state is None:
                break
            walk.x.append(state.x[0])
            walk.loss.append(float(state.loss[0]))
            yield None
            if time.monotonic() - drawn > REFRESH:
                drawn = time.monotonic()
                yield self._frame(params, one, walk, min(params["step"], len(walk.x) - 1))
        while len(walk.near) < len(walk.x):  # the nearest points, a few steps at a time
            x = torch.stack(walk.x[len(walk.near) : len(walk.near) + 8])
            same = self._split[torch.full((len(x),), params["image"])]
            walk.near += list(self._manifold.project(x, same))
            yield self._frame(params, one, walk, params["step"])
        yield self._frame(params, one, walk, params["step"], complete=True)

    def _frame(
        self, params: Params, one: Split, walk: _Walk, step: int, complete: bool = False
    ) -> Frame:
        x = walk.x[step]
        near = walk.near[step] if step < len(walk.near) else None
        guess = predictions(self._model, one.with_x(x[None]))[0]
        distance = walk.distances()
        png = self._artist.draw(one.x[0], x, near, guess, walk.loss, distance, step)
        far = f"{distance[step]:.3f}" if near is not None else "not known yet"
        moved = (x - one.x[0]).norm().item()
        words = (
            f"step {step}: loss {walk.loss[step]:.2f}, |change| {moved:.3f}, distance to the "
            f"manifold {far}"
        )
        alt = (
            f"An image of {one.named(one.y)[0][0]} after step {step} of the {params['attack']} "
            f"attack, classified as {guess[0]}; {words}."
        )
        return Frame(params, png, alt, words, complete)


class _Walk:
    """What one attack did to one image, step by step, so far."""

    def __init__(self, search: Iterator[State]) -> None:
        self.search = search
        self.x: list[Tensor] = []
        self.near: list[Tensor] = []
        self.loss: list[float] = []

    def distances(self) -> list[float]:
        return [(x - near).norm().item() for x, near in zip(self.x, self.near)]


class StepFigure(LiveFigure):
    """The image, the iterate, the change, its nearest point, and two curves over the steps."""

    TITLES = ("image", "after the step", "change", "nearest on manifold", "off the manifold")

    def __init__(self) -> None:
        super().__init__(11, 3.2)

    def draw(
        self,
        x: Tensor,
        iterate: Tensor,
        near: Tensor | None,
        guess: tuple[str, bool],
        loss: list[float],
        distance: list[float],
        step: int,
    ) -> bytes:
        """PNG of images [C, H, W] and of the `loss` and `distance` after each step so far."""
        self.fit(tuple(x.shape))
        grey = torch.full_like(x, 0.5)
        off = grey if near is None else amplified(iterate - near, 0.3)
        parts = (x, iterate, amplified(iterate - x, 0.3), grey if near is None else near, off)
        for image, pixels in zip(self.images, parts):
            image.set_data(mosaic([pixels[None]]))
        self.guess.set(**caption(*guess))
        for axes, line, mark, values in zip(self.axes, self.lines, self.marks, (loss, distance)):
            line.set_data(range(len(values)), values)
            here = step < len(values)
            mark.set_data([step] if here else [], [values[step]] if here else [])
            axes.set_xlim(0, max(len(loss) - 1, 1))
            axes.set_ylim(0, 1.1 * max([*values, 1.0]))
        return self.png()

    def lay_out(self, size: tuple[int, ...]) -> None:
        _, h, w = size
        self.images = []
        for i, title in enumerate(self.TITLES):
            axes = self.figure.add_axes((0.005 + 0.137 * i, 0.2, 0.128, 0.6))
            axes.set_axis_off()
            axes.set_title(title, fontsize=10)
            self.images.append(axes.imshow(np.zeros((h, w, 3)), vmin=0, vmax=1))
            if i == 1:
                self.guess = axes.text(w / 2, h * 1.04, "", ha="center", va="top")
        self.axes: list[Any] = []
        self.lines, self.marks = [], []
        for i, (title, key) in enumerate((("loss", "accuracy"), ("distance", "regular"))):
            axes = self.figure.add_axes((0.74, 0.58 - 0.46 * i, 0.25, 0.3))
            axes.set_title(f"{title} after each step", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
            self.lines.append(axes.plot([], [], color=COLOURS[key])[0])
            self.marks.append(axes.plot([], [], "o", color="black")[0])
            self.axes.append(axes)
