"""The latent panel: an image's code on sliders, and what the model makes of it."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as widgets
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..attacks import Attack
from ..fonts import LATENTS, KnownManifold
from ..models import checked, device_of, lent
from ..perturbations import Manifold, OnManifold, manifold_of
from ..splits import Split
from .controls import WRAP, button, chooser, slider
from .panel import Panel, _open
from .runner import REFRESH, Frame, Params
from .tracks import LatentFigure, strengths

STEPS = 40
LATE = 2  # seconds after which a page reports nothing more of what a slider was given before
NARROW: Any = widgets.Layout(width="4em")
ARROWS = {-3: "◀◀◀", -2: "◀◀", -1: "◀", 0: "·", 1: "▶", 2: "▶▶", 3: "▶▶▶"}


@dataclass(frozen=True)
class LatentFrame(Frame):
    """A frame with the code that it shows and the loss's slope along every coordinate."""

    code: tuple[float, ...] = ()
    slopes: tuple[float, ...] = ()


class LatentPanel(Panel):
    """Move an image along its manifold: a slider for each number of its code, the class
    probabilities, and arrows where the loss grows (S section 3.3).

    `params`: image (a position in `split`), eta and the code's numbers: t_x to rotation on FONTS'
    known manifold, z1, z2, ... on a learned one. Attack walks from the image's own code, within
    eta of it, and leaves the sliders where it ends. Grey bands are the box of eta.
    """

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        manifold: Manifold | None = None,
        *,
        image: int = 0,
        eta: float = 0.3,
    ) -> None:
        checked(model, split)
        manifold = manifold_of(split, manifold)
        # the thread's own copy: somebody may train the model while the panel looks at it
        self._model, self._manifold = copy.deepcopy(model).eval(), manifold
        self._split, self._codes = split, manifold.encode(split).cpu()
        low, high = (edge.tolist() for edge in manifold.bounds)
        known = isinstance(manifold, KnownManifold)
        self.names = LATENTS if known else tuple(f"z{k + 1}" for k in range(len(low)))
        position = chooser(split, image)
        self._image = position.value
        self.controls = {"image": position, "eta": slider("eta", eta, 0.01, 1.0, 0.01)}
        for name, value, a, b in zip(self.names, self._codes[self._image].tolist(), low, high):
            self.controls[name] = slider(name, min(max(value, a), b), a, b, (b - a) / 200)
        # when and what the sliders were given that a page may still report; the last holds
        self._given = {name: [(0.0, self.controls[name].value)] for name in self.names}
        self._follower: int | None = None  # the thread that moves sliders after a walk,
        self._following = threading.RLock()  # and holds this while it does
        self._artist = LatentFigure(self.names, low, high)
        self.arrows = {name: widgets.Label("", layout=NARROW) for name in self.names}
        rows = [widgets.HBox([self.controls[name], self.arrows[name]]) for name in self.names]
        tools = [
            button("Attack", self.attack, "walk to where the loss grows, within eta"),
            button("Stop", self.stop, "give up the running attack"),
            button("Own code", self.home, "back to the image's own code"),
            button("Reset", self.reset, "back to the first values"),
        ]
        half = -(-len(rows) // 2)
        super().__init__([
            widgets.HBox([position, self.controls["eta"]], layout=WRAP),
            widgets.HBox([widgets.VBox(rows[:half]), widgets.VBox(rows[half:])], layout=WRAP),
            widgets.HBox(tools, layout=WRAP),
        ])  # fmt: skip

    @property
    def params(self) -> Params:
        values = super().params
        for name, given in self._given.items():
            if self._reported(name, values[name]) is not None:
                values[name] = round(given[-1][1], 6) + 0.0
        return values

    def _reported(self, name: str, value: float) -> int | None:
        """Which of the values given to a slider a page reports, if any: it rounds them to the
        slider's step and tells that, perhaps when the next one is already given."""
        given, half = self._given[name], 0.501 * self.controls[name].step
        late = time.monotonic() - given[-1][0] > LATE
        for at in range(len(given) - 1 if late else 0, len(given)):
            if abs(value - given[at][1]) <= half:
                return at
        return None

    def submit(self, **params: Any) -> None:
        params = self._checked(params)  # of what is refused a walk is to know nothing
        self.runner.stop()  # it must not move what is being set
        with self._following:
            for name in set(params).intersection(self.names):
                self._give(name, params[name])
        super().submit(**params)

    def constrain(self) -> None:
        image = min(self.controls["image"].value, len(self._split) - 1)
        self.controls["image"].value = image
        if image != self._image:  # another image: its own code
            self._image = image
            self._put(self._codes[image].tolist())

    def attack(self, *_: Any) -> None:
        """Walk from the image's own code to where the loss grows, 40 steps within eta."""
        self._hold(True)
        self.runner.post({**self.params, "attack": True})

    def stop(self, *_: Any) -> None:
        super().stop()
        self._hold(False)

    def _hold(self, walking: bool) -> None:
        """Nobody can move a number of the code while a walk does."""
        for name in self.names:
            self.controls[name].disabled = walking

    def home(self, *_: Any) -> None:
        """Back to the image's own code."""
        self.submit(**dict(zip(self.names, self._codes[self._image].tolist())))

    def _put(self, code: Sequence[float]) -> None:
        for name, value in zip(self.names, code):
            self.controls[name].value = self._give(name, value)

    def _give(self, name: str, value: float) -> float:
        """Note that a slider is being moved there; where it can go."""
        now, control, given = time.monotonic(), self.controls[name], self._given[name]
        value = min(max(value, control.min), control.max)
        given = given if now - given[-1][0] < LATE else given[-1:]
        self._given[name] = [*given, (now, value)]
        return value

    def _changed(self, *change: Any) -> None:
        if self._follower == threading.get_ident():
            return
        with self._following:  # sliders on their way arrive first
            for name in self.names:
                if change and change[0]["owner"] is self.controls[name]:
                    # a page reports in order: the older ones are done with
                    del self._given[name][: self._reported(name, change[0]["new"]) or 0]
                    if len(self._given[name]) > 1:  # a late report, or a hand that went back there
                        timer = threading.Timer(LATE + 0.1, self._look_again)
                        timer.daemon = True
                        timer.start()
        super()._changed(*change)

    def _look_again(self) -> None:
        """Nothing is reported late any more: where a slider stands now is where it was moved."""
        if self in _open and self.params != self._posted:
            self._changed()

    def frames(self, params: Params) -> Iterator[Frame | None]:
        one, eta, steps = self._split[params["image"]].to("cpu"), params["eta"], STEPS
        if not params.get("attack"):
            low, high = (edge[None] for edge in self._manifold.bounds)
            code = torch.tensor([[params[name] for name in self.names]], dtype=one.dtype)
            low, high = low.to(code), high.to(code)
            yield self._frame(params, one, torch.minimum(torch.maximum(code, low), high))
            return
        search = Attack(
            OnManifold(self._manifold, eta), steps=steps, lr=4 * eta / steps, start="zero",
            keep="strongest",
        )  # fmt: skip
        drawn = 0.0
        for state in search.iterate(self._model, one):
            yield None
            if state.step == steps or time.monotonic() - drawn > REFRESH:
                drawn = time.monotonic()
                done = "fooled" if bool(state.success[0]) else "not fooled"
                words = f"step {state.step} of {steps}: {done}"
                assert state.code is not None
                frame = self._frame(params, one, state.code.cpu(), words)
                yield replace(frame, complete=state.step == steps)

    def _frame(self, params: Params, one: Split, code: Tensor, words: str = "") -> LatentFrame:
        output, slopes, x = self._look(one, code)
        own = self._codes[params["image"]]
        far = (code[0] - own).abs().max().item()
        guess = one.named(output.argmax(1))[0]
        names = one.dataset.classes if one.dataset else ()
        labels = [names[k] if k < len(names) else str(k) for k in range(output.shape[1])]
        probabilities = output.softmax(1)[0]
        png = self._artist.draw(
            one.x[0], x[0], guess, probabilities, labels, own, code[0], slopes, params["eta"]
        )
        inside = "inside" if far <= params["eta"] + 1e-6 else "outside"
        status = words or f"largest change {far:.2f}: {inside} eta = {params['eta']:g}"
        alt = (
            f"An image of {one.named(one.y)[0][0]}, its code changed by {far:.2f} at most, "
            f"{inside} eta {params['eta']:g}; classified as {guess[0]} with probability "
            f"{probabilities.max():.0%}."
        )
        return LatentFrame(
            params, png, alt, status, True, tuple(code[0].tolist()), tuple(slopes.tolist())
        )

    def _look(self, one: Split, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, the slope of the cross-entropy along each coordinate, and the image of a code."""
        place = device_of(self._model)
        there, moving = one.to(place), code.detach().clone().to(place).requires_grad_()
        with lent(self._model), torch.enable_grad():
            x = self._manifold.decode(moving, there)
            output = self._model(x)
            (slopes,) = torch.autograd.grad(cross_entropy(output, there.y), moving)
        return output.detach().cpu(), slopes[0].cpu(), x.detach().cpu()

    def _show(self, frame: Frame | Exception) -> None:
        super()._show(frame)
        walking = isinstance(frame, Frame) and "attack" in frame.params and not frame.complete
        self._hold(walking)
        if not isinstance(frame, LatentFrame):
            return
        for name, strength in zip(self.names, strengths(frame.slopes, self._widths())):
            self.arrows[name].value = ARROWS[round(3 * strength)]
        if frame.params.get("attack"):
            with self._following:
                self._follower = threading.get_ident()  # the sliders follow and start nothing
                try:
                    self._put(frame.code)
                finally:
                    self._follower = None
                # what somebody moves meanwhile still differs from this, and is posted
                kept = {name: frame.params[name] for name in ("image", "eta")}
                self._posted = kept | {n: round(v[-1][1], 6) + 0.0 for n, v in self._given.items()}

    def _widths(self) -> list[float]:
        return [self.controls[name].max - self.controls[name].min for name in self.names]
