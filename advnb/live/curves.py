"""The curve panel: S's generalization curves, a strategy, a measure and a size at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import ipywidgets as widgets

from ..plots import NAMES, generalization
from .controls import WRAP
from .panel import Panel
from .runner import Frame, Params

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"
ORDER = ("error", "on-true", "on-learned", "regular", "transformation")


class CurvePanel(Panel):
    """Pick a strategy, a measure, what it stands over ("n" or another measure) and a number n of
    training images, at which the numbers are told.

    `shown`, `own` and `paper` are tables as `plots.generalization` takes them. `params`: strategy,
    measure, against, n.
    """

    def __init__(
        self,
        shown: pd.DataFrame,
        *,
        own: pd.DataFrame | None = None,
        paper: pd.DataFrame | None = None,
    ) -> None:
        if shown.empty:
            raise ValueError("the table is empty: give curves.summary of some cells")
        self._shown, self._own, self._paper = shown, own, paper
        measured = dict.fromkeys(shown.attack)
        known = [name for name in ORDER if name in measured]
        names = dict.fromkeys([*known, *measured])  # those that have no place come last
        measures = [(NAMES.get(name, name), name) for name in names]
        self.controls = {
            "strategy": widgets.Dropdown(
                options=[ALL, *dict.fromkeys(shown.recipe)], description="strategy"
            ),
            "measure": widgets.Dropdown(options=measures, description="measure"),
            "against": widgets.Dropdown(
                options=[(NAMES["n"], "n"), *measures], description="against"
            ),
            "n": widgets.SelectionSlider(
                options=[(f"{n:,}", n) for n in sorted(set(shown.n.astype(int)))], description="n"
            ),
        }
        rows = [*self.controls.values()]
        super().__init__([widgets.HBox(rows[:3], layout=WRAP), widgets.HBox(rows[3:])])
        self.message.layout.min_height = "3.2em"  # two lines: the picture is not to jump

    def frames(self, params: Params) -> Iterator[Frame | None]:
        strategy, n = params["strategy"], params["n"]

        def chosen(table: pd.DataFrame) -> pd.DataFrame:
            return table if strategy == ALL else table[table.recipe == strategy]

        shown = chosen(self._shown)
        own, paper = (t if t is None else chosen(t) for t in (self._own, self._paper))
        figure = generalization(
            shown, params["measure"], against=params["against"], own=own, paper=paper
        )
        if params["against"] == "n":
            figure.axes[0].axvline(n, color="black", linewidth=0.8, linestyle=":")
        here = shown.query("attack == @params['measure'] and n == @n").to_dict("records")
        told = ", ".join(
            f"{row['recipe']} {row['value']:.3f}"
            + (f" [{row['low']:.3f}, {row['high']:.3f}]" if row["seeds"] > 1 else "")
            for row in here
        )
        what = NAMES.get(params["measure"], params["measure"])
        status = f"{what} at {n:,} training images: {told or 'not measured'}"
        over = NAMES.get(params["against"], params["against"])
        yield Frame(params, figure.png(), f"{what} against {over}, {strategy}. {status}.", status,
                    True)  # fmt: skip
