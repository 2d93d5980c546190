"""Tables 2 to 5 of Zhang et al. for the zoo's models as cells of a sweep, so that what took a GPU
ships with the package: their attack at full strength, on their number of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from .. import checks, zoo
from ..checks import brief
from ..data import load
from ..minimal import CarliniWagner
from ..models import accuracy
from ..stats import Rate, rate
from ..sweeps import key, shipped, sweep
from .shift import PRINTED, Defence, columns, radius, shifted

if TYPE_CHECKING:
    import pandas as pd

IMAGES = 2000  # Z's rates are multiples of 0.05 %
KINDS = ("cnn-adversarial", "madry", "small-certified", "wrm", "cnn-cured")
MODELS = tuple(f"{data}-{kind}" for kind in KINDS for data in ("mnist", "fashion"))
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
Run = Literal["cw", "pgd", "pgd-5"]
RESTARTS = {"pgd": 2, "pgd-5": 5}


@dataclass(frozen=True)
class Column:
    """A model of the zoo on the first `images` test images, scaled and shifted, attacked by C&W
    L-infinity from both of the paper's starts ("cw"), or by PGD-40 from five uniform ones
    ("pgd-5"), for a large network on a CPU from two ("pgd")."""

    model: str
    alpha: float
    beta: float
    images: int = IMAGES
    attack: Run = "cw"

    def __post_init__(self) -> None:
        if self.attack not in get_args(Run):
            raise ValueError(f"attack must be {', '.join(get_args(Run))}; got {brief(self.attack)}")
        checks.whole("images", self.images, 1)


def defence(model: str) -> Defence:
    """Which of Z's tables a model of the zoo belongs to."""
    last = model.rsplit("-", 1)[-1]
    return "certified" if last == "certified" else "wrm" if last == "wrm" else "adversarial"


def wanted(model: str, images: int = IMAGES, attack: Run = "cw") -> list[Column]:
    """The printed columns of a model's table."""
    few = load(zoo.entry(model).data).test(1)
    return [Column(model, a, b, images, attack) for a, b in columns(few, defence(model))]


@dataclass(frozen=True)
class Measure:
    """What `sweep` runs for a Column: accuracy on x'; success over images within eps and within
    alpha * eps, from both starts, and of C&W from "noise" and from "gray"; bounds as `_low` and
    `_high`; and of C&W quantiles of the smallest changes of the images that were right."""

    device: str = "cpu"

    @staticmethod
    def version(fields: Mapping[str, Any]) -> Any:
        return [1, zoo.card(str(fields["model"]))["checksum"]]

    def __call__(self, cell: Column) -> Mapping[str, Any]:
        test = load(zoo.entry(cell.model).data).test(cell.images).to(self.device)
        model = zoo.load(cell.model).to(self.device)
        images, eps = shifted(test, cell.alpha, cell.beta), radius(test, defence(cell.model))
        radii = {"success": eps, "success_scaled": cell.alpha * eps}
        found, norms = {"accuracy": accuracy(model, images)}, {}
        if cell.attack in RESTARTS:
            for what, within in radii.items():
                result = zoo.pgd(within, restarts=RESTARTS[cell.attack])(model, images)
                found[what] = result.success_rate("images")
        else:
            attack = CarliniWagner("linf")
            result = attack(model, images)
            sizes = result.distances[:, result.correct].cpu()
            for what, within in radii.items():
                found[what] = rate((sizes <= within).any(0))
                for start, row in zip(attack.starts, sizes):
                    found[f"{what}_{start}"] = rate(row <= within)
            if sizes.numel():  # else the model has no image right
                quantiles = sizes.amin(0).quantile(sizes.new_tensor(QUANTILES))
                # beside an infinite size, of an image that nothing fools, interpolation gives NaN
                whole = quantiles.nan_to_num(math.inf, math.inf).tolist()
                norms = {f"norm_{100 * q:.0f}": value for q, value in zip(QUANTILES, whole)}
        made: dict[str, Any] = {}
        for name, value in found.items():
            made |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        return {**made, "n": found["success"].n, "eps": eps, **norms}

    def cost(self, cell: Column) -> float:
        return float(cell.images)


def run(cells: Sequence[Column], *, device: str = "cpu", **settings: Any) -> pd.DataFrame:
    """`sweep` the columns; `settings` are the sweep's. Those that ship take no time."""
    if not all(isinstance(cell, Column) for cell in cells):
        raise ValueError(f"cells must be a list of Column; got {brief(list(cells))}")
    checks.device(device)  # told once, not for every column
    return sweep(cells, Measure(device), **settings)


def measured(model: str, attack: Run | None = None, **settings: Any) -> pd.DataFrame:
    """A model's table in the form of `table`: what ships, with most images, or else what `run`
    makes with the `settings`; without `attack` the paper's, or where that did not run PGD. Madry et
    al.'s networks are too large to ship; their table is not."""
    done = shipped("blindspots")
    done = done[done.model == model]
    if zoo.made(model):  # what ships is of another network, once this one was trained anew
        cells = [Column(*row) for row in done[list(Column.__dataclass_fields__)].to_numpy()]
        done = done[done.key == [key(cell, Measure()) for cell in cells]]
    done = done[done.attack == (attack or done.attack.min())]  # "cw" is the first by name
    done = done[done.images == done.images.max()]
    return as_table(run(wanted(model, attack=attack or "cw"), **settings) if done.empty else done)


def as_table(done: pd.DataFrame) -> pd.DataFrame:
    """What `run` found for one model, in the form of `table`. ValueError where a column failed."""
    import pandas as pd

    if failed := [e for e in done.get("error", ()) if isinstance(e, str) and e]:  # else NaN
        raise ValueError(
            f"{len(failed)} of {len(done)} columns failed: {failed[0].strip().splitlines()[-1]}"
        )
    rows = []
    for row in done.to_dict("records"):
        model, made = str(row["model"]), {"alpha": row["alpha"], "beta": row["beta"]}
        told = PRINTED.get((defence(model), zoo.entry(model).data), ())  # the data may not be here
        near = (p for p in told if abs(p.alpha - row["alpha"]) + abs(p.beta - row["beta"]) < 1e-6)
        paper = next(near, None)
        for name, n in (
            ("accuracy", row["images"]), ("success", row["n"]), ("success_scaled", row["n"]),
        ):  # fmt: skip
            made[name] = Rate(row[name], row[f"{name}_low"], row[f"{name}_high"], n)
        for name in ("accuracy", "success", "success_scaled"):
            column = f"printed_{name.removeprefix('success_')}"
            made[column] = getattr(paper, name) if paper else float("nan")
        rows.append(made)
    return pd.DataFrame(rows)
