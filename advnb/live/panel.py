"""Panels: sliders, a runner that always works on the newest parameters, and a picture.

A panel's callbacks only post parameters; one thread per panel draws with a figure of its own
and never touches pyplot, so that moving a slider neither blocks nor queues. In a page where no
kernel runs, the panel's last complete picture stands in its place.
"""

from __future__ import annotations

import base64
import contextlib
import html
import math
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import ipywidgets as widgets
from traitlets import TraitError

from ..checks import brief, number
from .runner import Frame, Params, Runner

_open: weakref.WeakSet[Panel] = weakref.WeakSet()


def close_all() -> None:
    """Stop every panel's work and thread. A panel whose control is moved later wakes up."""
    for panel in list(_open):
        panel.runner.close()


class Panel(widgets.VBox):
    """Controls above a picture. A subclass gives `controls`, the rows they stand in and
    `frames(params)`. `view` shows the picture: anything whose `value` is HTML; what is `below`
    comes after it."""

    controls: dict[str, widgets.DOMWidget]

    def __init__(
        self, rows: list[widgets.Widget], view: Any = None, below: Sequence[widgets.Widget] = ()
    ) -> None:
        self.view = widgets.HTML() if view is None else view
        self.message = widgets.HTML(layout=widgets.Layout(min_height="1.6em"))
        self.frame: Frame | None = None
        self.runner = Runner(self.frames, self._show)
        self._quiet = False
        self._posted: Params = {}
        self._fresh = False  # whether the picture is of what was posted last
        self._first = {name: control.value for name, control in self.controls.items()}
        super().__init__([*rows, self.message, self.view, *below])
        for control in self.controls.values():
            control.observe(self._changed, "value")
        self._cell = cell, run = _cell()
        for panel in list(_open):  # the cell runs again: what it made last time is replaced
            if cell is not None and panel._cell[0] == cell and panel._cell[1] != run:
                panel.close()
        _open.add(self)
        self._changed()

    def frames(self, params: Params) -> Iterator[Frame | None]:
        """The job: from parameters to pictures, on the panel's own thread."""
        raise NotImplementedError

    def constrain(self) -> None:
        """Bring controls that depend on others into range; called before every post."""

    @property
    def params(self) -> Params:
        """The controls' present values, without the rounding noise that a browser adds to them."""
        values = {name: control.value for name, control in self.controls.items()}
        return {k: round(v, 6) + 0.0 if isinstance(v, float) else v for k, v in values.items()}

    def submit(self, **params: Any) -> None:
        """Set controls by name, all at once, and start on the result.

        A number outside a slider's range is brought to its end. ValueError for a name or a
        choice that does not exist, or what is no number: nothing is changed then.
        """
        params = self._checked(params)
        before, self._quiet = self.params, True
        try:
            self._set(params)
        except (TraitError, ValueError) as error:
            self._set(before)
            may = [
                f"; {name} is one of {brief([v for _, v in control._options_full])}"
                for name, control in self.controls.items()
                if name in params and isinstance(control, widgets.Dropdown)
            ]
            what = f"{brief(params)} cannot be set: {brief(str(error))}"
            raise ValueError(what + "".join(may)) from None
        finally:
            self._quiet = False
        self._posted = {}  # start again even where nothing has changed
        self._changed()

    def _checked(self, params: Params) -> Params:
        """The same, what is for a slider as a plain number; ValueError for a name that no control
        has, and for what is no number: a slider would take texts, NaN and half steps."""
        unknown = set(params) - set(self.controls)
        if unknown:
            raise ValueError(
                f"no control is called {unknown.pop()!r}; there are {', '.join(self.controls)}"
            )
        checked = dict(params)
        for name, value in params.items():
            if isinstance(self.controls[name], widgets.IntSlider):
                checked[name] = int(number(name, value, "a whole number", lambda v: v % 1 == 0))
            elif isinstance(self.controls[name], widgets.FloatSlider):
                checked[name] = number(name, value, "a finite number", math.isfinite)
        return checked

    def _set(self, params: Params) -> None:
        with self._at_once():
            for name, value in [*params.items()] * 2:  # twice: a range may follow another control
                self.controls[name].value = value
                self.constrain()

    def _at_once(self) -> contextlib.ExitStack:
        """While it is open no control tells the page its value, which a page would round and report
        when the next one is already set."""
        held = contextlib.ExitStack()
        for control in self.controls.values():
            held.enter_context(control.hold_sync())
        return held

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until the picture belongs to the present parameters; False after `timeout` s."""
        return self.runner.settle(timeout)

    def stop(self, *_: Any) -> None:
        """Give up the running job; the picture stays as it is."""
        if self.runner.stop():
            self._say(f"Stopped. {self.frame.status}" if self.frame and self._fresh else
                      "Stopped before there was a picture of these values.")  # fmt: skip

    def reset(self, *_: Any) -> None:
        """Back to the values that the panel began with."""
        self.submit(**self._first)

    def close(self) -> None:
        """End the thread and take the panel off the page."""
        if hasattr(self, "runner"):  # not where __init__ was refused
            self.runner.close()
        _open.discard(self)
        for part in self.children:
            _close(part)
        super().close()

    def _changed(self, *_: Any) -> None:
        if self._quiet:
            return
        self._quiet = True  # what constrain() moves is part of the same change
        try:
            with self._at_once():
                self.constrain()
        finally:
            self._quiet = False
        if self.params != self._posted:  # a browser reports some changes twice
            self._posted, self._fresh = self.params, False
            self.runner.post(self._posted)

    def _show(self, frame: Frame | Exception) -> None:
        if isinstance(frame, Exception):
            if not self._fresh:  # the last picture is of other values
                self.frame, self.view.value = None, ""
            self._say(f"{type(frame).__name__}: {frame}", role="alert")
            return
        self.frame, self._fresh = frame, True
        self.view.value = picture(frame.png, frame.alt)
        self._say(frame.status)

    def _say(self, text: str, role: str = "status") -> None:
        style = ' style="color: #b00020; font-weight: bold"' if role == "alert" else ""
        self.message.value = f'<span role="{role}"{style}>{html.escape(text)}</span>'

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """The widget, and the first complete picture for pages where nothing is live."""
        bundle = dict(super()._repr_mimebundle_(**kwargs) or {})
        self.settle(20)
        if self.frame is not None:
            bundle["image/png"] = base64.b64encode(self.frame.png).decode()
            bundle["text/plain"] = self.frame.alt
        return bundle


def _close(part: widgets.Widget) -> None:
    """A widget and what it holds; those who observe it are held by it no longer."""
    for inner in getattr(part, "children", ()):
        _close(inner)
    part.unobserve_all()
    part.close()


def _cell() -> tuple[str | None, str | None]:
    """The ids of the notebook cell that is running and of this run, where a front end tells."""
    try:
        from IPython import get_ipython

        parent = get_ipython().get_parent()
        return parent["metadata"]["cellId"], parent["header"]["msg_id"]
    except (ImportError, AttributeError, KeyError, TypeError):
        return None, None


def picture(png: bytes, alt: str) -> str:
    """A picture as HTML."""
    source = base64.b64encode(png).decode()
    told = html.escape(alt, quote=True)
    return f'<img alt="{told}" src="data:image/png;base64,{source}" style="max-width:100%">'
