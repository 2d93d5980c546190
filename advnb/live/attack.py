"""The attack panel: one image, one attack, and the class probabilities it moves."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence

import ipywidgets as widgets
import torch
from torch import Tensor, nn

from ..attacks import Attack
from ..models import checked, logits
from ..perturbations import Pixels
from ..splits import Split
from .controls import WRAP, button, chooser, slider
from .figures import AttackFigure
from .panel import Panel
from .runner import REFRESH, Frame, Params

SHOWN = 10  # classes, the likeliest, whose probabilities are drawn


class AttackPanel(Panel):
    """Attack one image at a time, within a radius that a slider sets (S eq. 1).

    `params`: image (a position in `split`), eps, steps, norm ("linf" or "l2") and loss ("ce" or
    "margin"); `show` names the controls that are on the page, the others keep their values. The
    attack starts at the image itself and takes steps along the gradient's sign (L2: along it).
    """

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        *,
        image: int = 0,
        eps: float = 0.1,
        steps: int = 40,
        show: Sequence[str] = ("image", "eps", "steps", "norm", "loss"),
    ) -> None:
        checked(model, split)
        self._model, self._split = copy.deepcopy(model).eval(), split
        self._artist = AttackFigure(11, 3.2)
        self.controls = {
            "image": chooser(split, image),
            "eps": slider("eps", eps, 0.0, 0.5, 0.005),
            "steps": slider("steps", steps, 1, 100, 1),
            "norm": widgets.Dropdown(options=["linf", "l2"], description="norm"),
            "loss": widgets.Dropdown(options=["ce", "margin"], description="loss"),
        }
        show = [show] if isinstance(show, str) else show
        unknown = set(show) - set(self.controls)
        if unknown:
            raise ValueError(
                f"no control is called {unknown.pop()!r}; there are {', '.join(self.controls)}"
            )
        tools = [
            button("Stop", self.stop, "give up the running attack"),
            button("Reset", self.reset, "back to the first values"),
        ]
        super().__init__([widgets.HBox([self.controls[name] for name in show], layout=WRAP),
                          widgets.HBox(tools)])  # fmt: skip

    def constrain(self) -> None:
        self.controls["image"].value = min(self.controls["image"].value, len(self._split) - 1)
        norm, eps = self.controls["norm"].value, self.controls["eps"]
        eps.max = 0.5 if norm == "linf" else 5.0  # an L2 radius spans all pixels

    def frames(self, params: Params) -> Iterator[Frame | None]:
        one = self._split[params["image"]]
        eps, steps, began = params["eps"], params["steps"], time.monotonic()

        def frame(x: Tensor, step: int, words: str) -> Frame:
            both = one.with_x(one.x), one.with_x(x)
            output = [logits(self._model, split)[0] for split in both]
            guesses = [one.named(o.argmax()[None])[0] for o in output]
            names = one.dataset.classes if one.dataset else ()
            probabilities = torch.stack(output).softmax(1)
            count = probabilities.shape[1]
            likely = probabilities.amax(0).topk(min(SHOWN, count)).indices.sort().values
            # in L2 no pixel changes by as much as the radius: the largest change is drawn in full
            most = eps if params["norm"] == "linf" else float((x - one.x).abs().max())
            png = self._artist.draw(
                one.x[0], x[0], max(most, 1e-3), guesses, probabilities[:, likely],
                [names[k] if k < len(names) else str(k) for k in likely.tolist()],
            )  # fmt: skip
            told = "is still classified as" if guesses[0] == guesses[1] else "becomes"
            alt = (
                f"An image of {one.named(one.y)[0][0]}, classified as {guesses[0][0]}; within "
                f"{params['norm']} distance {eps:g} it {told} {guesses[1][0]}."
            )
            return Frame(params, png, alt, words, complete=step == steps)

        if eps == 0:
            yield frame(one.x, steps, "eps is 0: there is nothing to search")
            return
        yield frame(one.x, 0, "before the attack")
        drawn = time.monotonic()
        for state in self._attack(params).iterate(self._model, one):
            yield None
            if time.monotonic() - drawn > REFRESH:
                yield frame(state.x, state.step, f"step {state.step} of {steps}")
                drawn = time.monotonic()
        done = "fooled" if bool(state.success[0]) else "not fooled"
        count = f"{state.step} step{'s' * (state.step != 1)}"
        words = f"{done} after {count}, {time.monotonic() - began:.1f} s"
        if state.step == 0 and bool(state.success[0]):
            words = "wrong before the attack"
        yield frame(state.x, steps, words)

    def _attack(self, params: Params) -> Attack:
        eps, steps = params["eps"], params["steps"]
        return Attack(
            Pixels(eps, params["norm"]), steps=steps, lr=2.5 * eps / steps, optimizer="sign",
            start="zero", loss=params["loss"],
        )  # fmt: skip
