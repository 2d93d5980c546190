"""Panels: sliders, a runner that always works on the newest parameters, and a picture.

A panel's callbacks only post parameters; one thread per panel draws with a figure of its own
and never touches pyplot, so that moving a slider neither blocks nor queues. In a page where no
kernel runs, the panel's last complete picture stands in its place.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import html
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import torch
from traitlets import TraitError

from ..checks import brief, number
from ..profiles import usable_cores
from ..splits import Split

Params = dict[str, Any]
REFRESH = 0.12  # seconds between frames of a running job: drawing must not starve the search


@dataclass(frozen=True)
class Frame:
    """One picture of a panel: PNG bytes, what it shows in words, whether the job is complete."""

    params: Params
    png: bytes
    alt: str
    status: str
    complete: bool


_runners: weakref.WeakSet[Runner] = weakref.WeakSet()


class Runner:
    """A daemon thread that turns the newest parameters into frames; older ones are dropped.

    `job(params)` is a generator of frames, a cheap one first; it yields None wherever it may be
    cut short without a picture. The thread starts with the first post and ends in `close`; a
    later post starts another.
    """

    def __init__(
        self,
        job: Callable[[Params], Iterator[Frame | None]],
        show: Callable[[Frame | Exception], None],
    ) -> None:
        self._job, self._show = job, show
        self._news = threading.Condition()
        # one core is the kernel's; a cap that somebody has set stays
        self._threads = max(1, min(torch.get_num_threads(), usable_cores() - 1))
        self._working = threading.Lock()  # a thread that was closed may still finish a frame
        self._pending: Params | None = None
        self._generation = 0  # of the newest post; a frame of an older one is never shown
        self._busy = False
        self._thread: threading.Thread | None = None
        _runners.add(self)

    def post(self, params: Params) -> None:
        """Work on these parameters, now, instead of any others."""
        with self._news:
            self._generation += 1
            self._pending, self._busy = params, True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="advnb panel", daemon=True)
                self._thread.start()
            self._news.notify_all()

    def stop(self) -> bool:
        """Give up the present job; whether there was one."""
        with self._news:
            was, self._busy = self._busy, False
            self._generation += 1
            self._pending = None
            self._news.notify_all()
            return was

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until the newest job is complete or stopped; False if that takes too long."""
        with self._news:
            return self._news.wait_for(lambda: not self._busy, timeout)

    def close(self) -> None:
        """Stop, and let the thread end."""
        self.stop()
        with self._news:
            self._thread = None
            self._news.notify_all()

    def _work(self) -> None:
        torch.set_num_threads(self._threads)
        me = threading.current_thread()
        while True:
            with self._news:
                self._news.wait_for(lambda: self._pending is not None or self._thread is not me)
                if self._thread is not me:
                    return
                params, self._pending, generation = self._pending, None, self._generation
            assert params is not None
            with self._working:
                try:
                    for frame in self._job(params):
                        if not self._publish(frame, generation):
                            break
                except Exception as error:  # a panel shows its errors: a thread's would be lost
                    with contextlib.suppress(Exception):
                        self._publish(error, generation)
            with self._news:
                if generation == self._generation:
                    self._busy = False
                    self._news.notify_all()

    def _publish(self, frame: Frame | Exception | None, generation: int) -> bool:
        """Show a frame unless newer parameters are waiting; whether to go on with the job."""
        with self._news:
            if generation != self._generation:
                return False
            if frame is not None:
                self._show(frame)
            return True


@atexit.register
def _end() -> None:
    """Wait for what the threads are at: one that is inside torch when Python ends aborts it."""
    for runner in list(_runners):
        runner.close()
    for runner in list(_runners):
        runner._working.acquire(timeout=5)


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
        choice that does not exist: nothing is changed then.
        """
        unknown = set(params) - set(self.controls)
        if unknown:
            raise ValueError(
                f"no control is called {unknown.pop()!r}; there are {', '.join(self.controls)}"
            )
        for name, value in params.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number; got {value}")
        before, self._quiet = self.params, True
        try:
            self._set(params)
        except TraitError as error:
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


WRAP: Any = widgets.Layout(flex_flow="row wrap")  # of a row that is wider than a small window


def picture(png: bytes, alt: str) -> str:
    """A picture as HTML."""
    source = base64.b64encode(png).decode()
    told = html.escape(alt, quote=True)
    return f'<img alt="{told}" src="data:image/png;base64,{source}" style="max-width:100%">'


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


def button(text: str, act: Callable[..., None], hint: str) -> widgets.Button:
    """A button that calls `act`; `hint` shows under the mouse."""
    made = widgets.Button(
        description=text, tooltip=hint, layout=widgets.Layout(width="auto", flex="0 0 auto")
    )
    made.on_click(act)
    return made
