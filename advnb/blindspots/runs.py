"""Tables 2 to 5 of Zhang et al. for the zoo's models as cells of a sweep, so that what took a GPU
ships with the package: their attack at full strength, on their number of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import zoo
from ..checks import brief
from ..data import load
from ..minimal import CarliniWagner
from ..models import accuracy
from ..stats import Rate, rate
from ..sweeps import shipped, sweep
from .shift import Defence, columns, printed, radius, shifted

if TYPE_CHECKING:
    import pandas as pd

IMAGES = 2000  # Z's rates are multiples of 0.05 %
KINDS = ("cnn-adversarial", "madry", "small-certified", "wrm", "cnn-cured")
MODELS = tuple(f"{data}-{kind}" for kind in KINDS for data in ("mnist", "fashion"))
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Column:
    """A model of the zoo on the first `images` test images, scaled and shifted, attacked by C&W
    L-infinity from both of the paper's starts."""

    model: str
    alpha: float
    beta: float
    images: int = IMAGES


def defence(model: str) -> Defence:
    """Which of Z's tables a model of the zoo belongs to."""
    last = model.rsplit("-", 1)[-1]
    return "certified" if last == "certified" else "wrm" if last == "wrm" else "adversarial"


def wanted(model: str, images: int = IMAGES) -> list[Column]:
    """The printed columns of a model's table."""
    few = load(zoo.entry(model).data).test(1)
    return [Column(model, a, b, images) for a, b in columns(few, defence(model))]


@dataclass(frozen=True)
class Measure:
    """What `sweep` runs for a Column: accuracy on x'; success over images within eps and within
    alpha * eps, from both starts, from "noise" and from "gray"; bounds as `_low` and `_high`; and
    quantiles of the smallest changes of the images that were right."""

    device: str = "cpu"

    @staticmethod
    def version(fields: Mapping[str, Any]) -> Any:
        return [1, zoo.card(str(fields["model"]))["checksum"]]

    def __call__(self, cell: Column) -> Mapping[str, Any]:
        test = load(zoo.entry(cell.model).data).test(cell.images).to(self.device)
        model = zoo.load(cell.model).to(self.device)
        images, eps = shifted(test, cell.alpha, cell.beta), radius(test, defence(cell.model))
        attack = CarliniWagner("linf")
        result = attack(model, images)
        sizes = result.distances[:, result.correct].cpu()
        found = {"accuracy": accuracy(model, images)}
        for what, within in (("success", eps), ("success_scaled", cell.alpha * eps)):
            found[what] = rate((sizes <= within).any(0))
            for start, row in zip(attack.starts, sizes):
                found[f"{what}_{start}"] = rate(row <= within)
        made: dict[str, Any] = {}
        for name, value in found.items():
            made |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        quantiles = sizes.amin(0).quantile(sizes.new_tensor(QUANTILES)).tolist()
        norms = {f"norm_{100 * q:.0f}": value for q, value in zip(QUANTILES, quantiles)}
        return {**made, "n": found["success"].n, "eps": eps, **norms}

    def cost(self, cell: Column) -> float:
        return float(cell.images)


def run(cells: Sequence[Column], *, device: str = "cpu", **settings: Any) -> pd.DataFrame:
    """`sweep` the columns; `settings` are the sweep's. Those that ship take no time."""
    if not all(isinstance(cell, Column) for cell in cells):
        raise ValueError(f"cells must be a list of Column; got {brief(list(cells))}")
    return sweep(cells, Measure(device), **settings)


def measured(model: str, images: int = IMAGES, **settings: Any) -> pd.DataFrame:
    """A model's table at full strength, in the form of `table`: what ships, or what `run` makes.
    Of Madry et al.'s networks, which are too large to ship, the table does."""
    import pandas as pd

    cells = wanted(model, images)
    if zoo.made(model):
        done = run(cells, **settings)
    else:
        done = shipped("blindspots")
        done = done[(done.model == model) & (done.images == images)]
    if done.empty:
        raise ValueError(f"there is no {model}: make it by `python -m advnb zoo train {model}`")
    if (done.error != "").any():
        raise ValueError(f"a column of {model} failed: {done.error.iloc[0].splitlines()[-1]}")
    few, rows = load(zoo.entry(model).data).test(1), []
    for row in done.to_dict("records"):
        paper = printed(few, row["alpha"], row["beta"], defence(model))
        made = {"alpha": row["alpha"], "beta": row["beta"]}
        for name, n in (("accuracy", images), ("success", row["n"]), ("success_scaled", row["n"])):
            made[name] = Rate(row[name], row[f"{name}_low"], row[f"{name}_high"], n)
            told = f"printed_{name.removeprefix('success_')}"
            made[told] = getattr(paper, name) if paper else float("nan")
        rows.append(made)
    return pd.DataFrame(rows)
