"""S's generalization curves: strategies of training over the number of training images."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

from .base import COLOURS, HALO, Picture

if TYPE_CHECKING:
    import pandas as pd


def generalization(
    shown: pd.DataFrame,
    attack: str = "error",
    *,
    against: str = "n",
    own: pd.DataFrame | None = None,
    paper: pd.DataFrame | None = None,
    alt: str = "",
) -> Picture:
    """S's Fig. 5 and 6: a line a strategy, over the number of training images or against another
    measure ("error" say), from `curves.summary` tables. Bands are intervals over seeds, stars
    `own` models, open diamonds the `paper`'s printed numbers; errors over n stand on a log scale.
    Against another measure the ends of the first line that is not flat say their n."""
    figure = Picture(7.6, 3.6, alt)
    axes = figure.subplots()
    told = against == "n"  # the numbers of images: of one line, they are the same for all
    for recipe, part in _measures(shown, attack, against).groupby("recipe", sort=False):
        colour, mark = COLOURS.get(str(recipe), COLOURS["random"]), MARKS.get(str(recipe), "o")
        axes.plot(part.x, part.value, marker=mark, markersize=5, color=colour, label=recipe)
        if against == "n":
            axes.fill_between(part.x, part.low, part.high, color=colour, alpha=0.15, linewidth=0)
        elif not told and part.value.max() - part.value.min() > 0.1:
            sized, told = part.dropna(subset=["n", "x"]).sort_values("n"), True
            ends = sized[["n", "x", "value"]].iloc[[0, -1] if len(sized) else []]
            falls = len(sized) > 1 and sized.value.iloc[-1] < sized.value.iloc[-2]
            places = ((0, 7), (7, -10) if falls else (-3, 7))  # the last one stands at the axis
            for (n, x, y), place in zip(ends.to_numpy(float).tolist(), places):
                axes.annotate(
                    f"N = {n:,.0f}", (x, y), place, textcoords="offset points", fontsize=8,
                    color=colour, ha="left" if place[0] else "center", path_effects=HALO,
                )  # fmt: skip
        for table, style in ((paper, OPEN), (own, OWN)):
            if table is not None:
                same = _measures(table, attack, against)
                same = same[(same.recipe == recipe) & same.x.notna()]
                axes.plot(same.x, same.value, color=colour, **style)
    for table, style, label in ((paper, OPEN, "printed in the paper"), (own, OWN, "your own")):
        if table is not None:
            axes.plot([], [], color="black", label=label, **style)
    if against == "n":
        axes.set_xscale("log")
        sizes = [n for n in sorted(set(shown.n)) if n in (250, 1000, 5000, 10_000, 40_000)]
        axes.set_xticks(sizes, [f"{n:,.0f}" for n in sizes])
        if attack == "error":
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if low <= tick <= high]
            axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    axes.set(xlabel=NAMES.get(against, against), ylabel=NAMES.get(attack, attack))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def beside(tables: Mapping[str, pd.DataFrame], alt: str = "") -> Picture:
    """What was measured over what is printed, a colour a figure of the paper: tables of
    `supplement.beside`, by name. Circles are test errors, squares success rates."""
    figure = Picture(5, 5, alt)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, zorder=0)
    for hue, (name, table) in zip(cycle(HUES), tables.items()):
        errors = table.attack == "error"
        for marker, rows in (("o", table[errors]), ("s", table[~errors])):
            axes.plot(rows.printed, rows.value, marker, color=hue, fillstyle="none")
        axes.plot([], [], color=hue, linewidth=4, label=name)
    for marker, told in (("o", "test error"), ("s", "success rate")):
        axes.plot([], [], marker, color="black", fillstyle="none", label=told)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="printed", ylabel="measured", aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


HUES = ("#222222", "#00798c", "#e0a100", "#8fa31e", "#6d4c41")  # of no strategy
MARKS = {"augmented": "s", "transformation": "^", "on-true": "v", "on-learned": "P", "regular": "X"}
OPEN: dict[str, Any] = {"linestyle": "none", "marker": "D", "markersize": 5, "fillstyle": "none"}
OWN: dict[str, Any] = {"linestyle": "none", "marker": "*", "markersize": 14, "markeredgecolor": "k"}
NAMES = {
    "n": "training images",
    "error": "test error",
    "on-true": "on-manifold success (known)",
    "on-learned": "on-manifold success (learned)",
    "regular": "regular success",
    "transformation": "success of transformations",
}


def _measures(table: pd.DataFrame, attack: str, against: str) -> pd.DataFrame:
    """Rows of one measure, with where they stand on the other axis as `x`."""
    rows = table[table.attack == attack]
    if against == "n":
        return rows.assign(x=rows.n)
    if "error" in rows and against == "error":  # printed: some have no n
        return rows.assign(x=rows.error)
    same = [name for name in ("data", "model", "recipe", "n") if name in table]
    other = table[table.attack == against][[*same, "value"]]
    return rows.merge(other.rename(columns={"value": "x"}), on=same, how="inner")
