"""The blind-spot panel's map: success over scale and shift, as far as it is known, and a click that
picks a pair of them."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as widgets

from ..blindspots import Landscape, Printed
from ..blindspots.landscape import beta_of, grid, shift_of
from ..plots.landscape import LEGEND, heat, mark, scale
from .figures import LiveFigure
from .panel import Panel, picture
from .pointer import PointedImage
from .runner import Frame, Params

ALPHAS = tuple(round(0.5 + 0.02 * i, 2) for i in range(26))  # steps of the panel's slider
AGE, SHARE = 1.0, 0.1  # of a search: seconds between two pictures, and the share of its time
HINT = "A click on the map takes alpha and beta there."


@dataclass(frozen=True)
class MapFrame(Frame):
    """A frame that may carry a picture of the map as well."""

    map: bytes = b""
    map_alt: str = ""


class Map:
    """A map, hidden until somebody asks for it. `view` stands on the page; a click in it calls
    `pick(alpha, beta)` with the middle of a cell. `grid`: the alphas and shifts."""

    def __init__(
        self, grid: dict[str, tuple[float, ...]], pick: Callable[[float, float], None]
    ) -> None:
        self._grid, self._pick, self._artist = grid, pick, MapFigure()
        self.asked: Hashable = None  # the settings that are to be searched
        self._settings: Hashable = None
        self._land: Landscape | None = None
        self.png, self.alt = b"", ""  # of what is on the page
        self.view = PointedImage(label=HINT, layout=widgets.Layout(display="none"))
        self.view.observe(self._clicked, "click")

    @property
    def shown(self) -> bool:
        return self.view.layout.display != "none"

    def ask(self, settings: Hashable) -> None:
        """Show the map; what is not known of it with these settings is to be searched."""
        self.asked, self.view.layout.display = settings, ""

    def land(self, settings: Hashable, make: Callable[..., Landscape]) -> Landscape:
        """The landscape of these settings: the last one, or what `make` gives on the grid."""
        if self._land is None or self._settings != settings:
            self._land, self._settings = make(**self._grid), settings
        return self._land

    def onto(self, frame: MapFrame, land: Landscape, paper: Sequence[Printed]) -> MapFrame:
        """The frame with a picture of the landscape, a ring at its alpha and beta, and diamonds
        where the paper prints a success."""
        known, of = int(land.known.sum()), land.known.numel()
        part = f", {known} of {of} pairs" if known < of else ""
        title = f"success within ε = {land.eps:.3g} of {land.right.shape[2]} images{part}"
        alpha, beta = frame.params["alpha"], frame.params["beta"]
        png = self._artist.draw(land, alpha, beta, paper, title)
        alt = (
            f"Map over alpha and the relative shift: {title}. {told(land)}A ring at alpha "
            f"{alpha:g}, relative shift {shift_of(alpha, beta):.2f}. {HINT}"
        )
        status = f"{frame.status}; {known} of {of} pairs of the map"
        return replace(frame, map=png, map_alt=alt, status=status)

    def fill(
        self, frame: MapFrame, land: Landscape, paper: Sequence[Printed]
    ) -> Iterator[MapFrame | None]:
        """Search what is not known, with a frame now and then; the last one is complete."""
        due = time.monotonic() + AGE
        for _ in land.search():
            yield None
            if time.monotonic() > due:
                began = time.monotonic()
                yield self.onto(frame, land, paper)
                due = began + max(AGE, (time.monotonic() - began) / SHARE)
        yield replace(self.onto(frame, land, paper), complete=True)

    def show(self, frame: Frame | Exception) -> None:
        """Put a frame's map on the page."""
        if isinstance(frame, MapFrame) and frame.map:
            self.png, self.alt = frame.map, frame.map_alt
            self.view.value = picture(self.png, self.alt)

    def clear(self) -> None:
        """Take the map off the page."""
        self.png, self.alt, self.view.value = b"", "", ""

    def below(self, png: bytes) -> bytes:
        """A picture with the map below it, if that is shown."""
        from PIL import Image

        if not self.png:
            return png
        parts = [Image.open(io.BytesIO(part)) for part in (png, self.png)]
        whole = Image.new(
            "RGB", (max(p.width for p in parts), sum(p.height for p in parts)), "white"
        )
        for part, top in zip(parts, (0, parts[0].height)):
            whole.paste(part, (0, top))
        whole.save(buffer := io.BytesIO(), "PNG")
        return buffer.getvalue()

    def _clicked(self, change: Any) -> None:
        cell = self._artist.cell(*change["new"][:2])
        if cell is not None:
            self._pick(cell[0], beta_of(*cell))


class MapPanel(Panel):
    """A panel with alpha and beta among its controls, and a map of them below its picture."""

    DECIDE = ("model", "data", "eps", "steps")  # the parameters that decide the map

    def __init__(
        self, rows: list[widgets.Widget], alphas: Sequence[float], shifts: Sequence[float]
    ) -> None:
        cells, least = grid(alphas, shifts), self.controls["alpha"].min
        if cells["alphas"][0] < least:  # a click there could not be followed
            low = cells["alphas"][0]
            raise ValueError(f"alphas must be {least:g} or more, as the slider is; got {low:g}")
        self._map = Map(cells, self._pick)
        self._picked: tuple[float, float] | None = None
        super().__init__(rows, below=[self._map.view])

    @property
    def params(self) -> Params:
        # a page rounds what it is given to a slider's step and reports that: no change of ours
        values, slack = super().params, 0.501 * self.controls["beta"].step
        if self._picked is not None and self._picked[0] == values["alpha"]:
            exact = self._picked[1]
            values["beta"] = exact if abs(values["beta"] - exact) <= slack else values["beta"]
        return values

    def submit(self, **params: Any) -> None:
        self._picked = None
        super().submit(**params)

    def map(self, *_: Any) -> None:
        """Show the map, and search what is not known of it; with another model, data, eps or
        steps only what was once found is shown until the next call."""
        self._map.ask(self._settings(self.params))
        super().submit()

    def stop(self, *_: Any) -> None:
        self._map.asked = None
        super().stop()

    def _pick(self, alpha: float, beta: float) -> None:
        self._picked = alpha, beta
        super().submit(alpha=alpha, beta=beta)

    def _settings(self, params: Params) -> tuple[Any, ...]:
        return tuple(params[name] for name in self.DECIDE)

    def _show(self, frame: Frame | Exception) -> None:
        super()._show(frame)
        self._map.show(frame)
        if self.frame is None:  # an error: the last map, as the last picture, is of other values
            self._map.clear()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs)
        if self.frame is not None and self._map.png:
            bundle["image/png"] = base64.b64encode(self._map.below(self.frame.png)).decode()
            bundle["text/plain"] += f" {self._map.alt}"
        return bundle


def told(land: Landscape) -> str:
    """How many pairs are blind spots, in words: nearly as many are right, and most are fooled."""
    if not land.known[-1].any():
        return ""
    blind = (land.accuracy >= 0.99 * land.right[-1].double().mean(1).max()) & (land.success >= 0.5)
    return (
        f"At alpha = {land.alphas[-1]:g} it is {land.success[-1].nanmean():.1%}; of the pairs, "
        f"{int(blind.sum())} keep 99 % of that accuracy with a success of at least 50 %. "
    )


class MapFigure(LiveFigure):
    """A landscape; all but the ring is kept as pixels until more of it is known."""

    def __init__(self) -> None:
        super().__init__(9, 4.4)
        self._seen: tuple[Landscape, str] | None = None
        self._window: Window | None = None

    def draw(
        self, land: Landscape, alpha: float, beta: float, paper: Sequence[Printed], title: str
    ) -> bytes:
        """PNG of what is known, with a ring at (alpha, beta); the title tells how much that is."""
        if self._seen != (land, title):
            self._lay_out(land, paper, title)
            self._seen = land, title
        self._ring.set_data([alpha], [shift_of(alpha, beta)])
        return self.png()

    def cell(self, across: float, down: float) -> tuple[float, float] | None:
        """The (alpha, shift) of the cell at a place in fractions of width and height from the top
        left; None for a place outside the map."""
        return self._window.cell(across, down) if self._window else None

    def _lay_out(self, land: Landscape, paper: Sequence[Printed], title: str) -> None:
        self.figure.clear()
        axes = self.figure.add_axes((0.1, 0.26, 0.775, 0.665))
        success, accuracy = land.success.numpy(), land.accuracy.numpy()
        heat(axes, land.alphas, land.shifts, success, accuracy, paper, land.eps)
        bar = self.figure.add_axes((0.89, 0.26, 0.018, 0.665))
        self.figure.colorbar(axes.collections[0], cax=bar)
        scale(bar)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_title("a click takes α and β there", fontsize=9, loc="right", color="#666666")
        self._ring = mark(axes, animated=True)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), **LEGEND)
        self.moving, self.still = [self._ring], None
        width, height = self.canvas.get_width_height()
        left, low, right, high = axes.bbox.extents
        self._window = Window(
            (left / width, 1 - high / height, right / width, 1 - low / height),
            axes.get_xlim(), axes.get_ylim(), land.alphas, land.shifts,
        )  # fmt: skip


@dataclass(frozen=True)
class Window:
    """Where the map lies in its picture: left, top, right, bottom in fractions from the top left,
    and what stands at the edges. A click comes on another thread than the drawing."""

    box: tuple[float, float, float, float]
    x: tuple[float, float]
    y: tuple[float, float]
    alphas: tuple[float, ...]
    shifts: tuple[float, ...]

    def cell(self, across: float, down: float) -> tuple[float, float] | None:
        left, top, right, bottom = self.box
        u, v = (across - left) / (right - left), (bottom - down) / (bottom - top)
        if not (0 <= u <= 1 and 0 <= v <= 1):
            return None
        alpha, shift = (a + share * (b - a) for share, (a, b) in ((u, self.x), (v, self.y)))
        return (
            min(self.alphas, key=lambda there: abs(there - alpha)),
            min(self.shifts, key=lambda there: abs(there - shift)),
        )
