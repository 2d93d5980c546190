"""The figures of S's supplement, and Fig. 7, once each on FONTS: their cells, and what came out
beside the printed numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .curves import Cell, grid, printed, summary
from .strategies import MAIN
from .sweeps import shipped

if TYPE_CHECKING:
    import pandas as pd

SIZES, SEEDS = (1000, 5000), (0, 1)


def cells(figure: str, n: Sequence[int] = SIZES, seeds: Sequence[int] = SEEDS) -> list[Cell]:
    """The cells of a figure, one of those of `curves.printed`: every network and strategy that it
    shows, each one's test error too. ValueError for an unknown figure."""
    found: list[Cell] = []
    for (model, recipe), part in _told(figure).groupby(["model", "recipe"], sort=False):
        attacks = list(dict.fromkeys(["error", *part.attack]))
        found += grid("fonts", [str(recipe)], n, seeds, attacks, str(model))
    return found


def beside(figure: str, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """The mean over seeds of every printed point of a figure that was measured, its 95 % interval
    and `printed`: what a sweep's `table` has, or else what ships. A row for each number of images,
    restarts and epochs that a point was measured with."""
    import pandas as pd

    same = ["model", "recipe", "attack", "n"]
    if table is None:
        table = pd.concat([shipped("fonts"), shipped("supplement")])
    found = summary(table[table.data == "fonts"])
    theirs = _told(figure)[[*same, "value"]].rename(columns={"value": "printed"})
    found = found[[*same, "images", "restarts", "epochs", "value", "low", "high", "seeds"]]
    return found.merge(theirs, on=same, how="inner")


def _told(figure: str) -> pd.DataFrame:
    """A figure's printed numbers for FONTS, its strategies by our names, with errors as rows."""
    import pandas as pd

    told = printed(figure).query("data == 'fonts'")
    if figure == "long" or told.empty:  # S train these for 80 epochs, or on other data
        raise ValueError(f"figure {figure} is not of these cells: see curves.printed({figure!r})")
    errors = told.dropna(subset="error").drop_duplicates(["model", "recipe", "n"])
    told = pd.concat([told, errors.assign(attack="error", value=errors.error)])
    if figure == "l2":  # there the adversarial models are trained with the L2 attack, too
        told = told.assign(recipe=told.recipe.replace({name: f"{name}-l2" for name in MAIN}))
    return told.drop_duplicates(["model", "recipe", "attack", "n"]).reset_index(drop=True)
