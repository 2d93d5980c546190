"""Sliders and buttons that the panels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from ..checks import number
from ..splits import Split

WRAP: Any = widgets.Layout(flex_flow="row wrap")  # of a row that is wider than a small window


def slider(name: str, value: float, low: float, high: float, step: float) -> widgets.DOMWidget:
    """A labelled slider, of whole numbers where `step` is one; ValueError outside its range."""
    counts = isinstance(step, int)
    what = f"a {'whole ' if counts else ''}number between {low:g} and {high:g}"
    held = number(name, value, what, lambda v: low <= v <= high and (not counts or v % 1 == 0))
    kind = widgets.IntSlider if counts else widgets.FloatSlider
    extra = {} if counts else {"readout_format": ".3f"}
    return kind(
        value=int(held) if counts else held, min=low, max=high, step=step, description=name,
        layout=widgets.Layout(width="22em"), **extra,
    )  # fmt: skip


def radius_slider(eps: float) -> widgets.DOMWidget:
    """A slider for eps in steps of 0.005, from a number that has this one among them: a page would
    round 8/255 to 0.03."""
    held = number("eps", eps, "a number between 0.005 and 0.5", lambda v: 0.005 <= v <= 0.5)
    return slider("eps", held, least(held), 0.5, 0.005)


def least(eps: float) -> float:
    """The lowest end of such a slider."""
    return round(eps % 0.005, 6) or 0.005


def chooser(split: Split, image: int) -> widgets.DOMWidget:
    """A slider over the images of a split, from `image`; off where there is only one."""
    last = len(split) - 1
    at = number("image", image, f"a whole number between 0 and {last}", lambda v: 0 <= v <= last)
    made = slider("image", at, 0, max(last, 1), 1)  # one from 0 to 0 would be an error in a browser
    made.disabled = last == 0
    return made


def switch(control: Any, on: bool) -> None:
    """Turn a control on or off, in a message of its own: a browser that rounds a slider's value
    overlooks what else the same message says."""
    if control.disabled == on:
        control.disabled = not on
        control.send_state("disabled")


def button(text: str, act: Callable[..., None], hint: str) -> widgets.Button:
    """A button that calls `act`; `hint` shows under the mouse."""
    made = widgets.Button(
        description=text, tooltip=hint, layout=widgets.Layout(width="auto", flex="0 0 auto")
    )
    made.on_click(act)
    return made
