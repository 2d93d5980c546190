"""Accuracy and success over scaled and shifted images, as Zhang et al. tabulate them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from ..attacks import Attack
from ..checks import brief
from ..minimal import CarliniWagner
from ..models import accuracy
from ..perturbations import OnManifold
from ..splits import Split
from ..stats import Rate
from .shift import Defence, printed, radius, shifted, valid_pairs

if TYPE_CHECKING:
    import pandas as pd


def table(
    model: nn.Module,
    split: Split,
    attack: Attack | CarliniWagner,
    pairs: Iterable[tuple[float, float]] | None = None,
    progress: bool = True,
    *,
    defence: Defence = "adversarial",
) -> pd.DataFrame:
    """Z's tables 2 to 5 for your model: a row an (alpha, beta), by default those printed for the
    split's data set and `defence`: "adversarial" (tables 2 and 3), "certified" (4) or "wrm" (5).

    The attack starts from the transformed image x', once within its own radius eps and once
    within alpha * eps, and only images whose x' is classified correctly are counted, each once
    however many restarts fool it. Z's own is `CarliniWagner("linf")`: from one run a column, what
    lies within the paper's radius for the data set, and within alpha times it.

    Columns `accuracy`, `success`, `success_scaled` are `Rate`s; `printed_success` and
    `printed_scaled` are Z's numbers (NaN where there is none).
    """
    import pandas as pd
    from tqdm.auto import tqdm

    rows = []
    if not isinstance(attack, Attack | CarliniWagner):
        raise ValueError(f"an Attack is needed, Attack(Pixels(0.3)) say; got {brief(attack)}")
    on_images(attack)
    known = attack.norm if isinstance(attack, CarliniWagner) else attack.set.norm
    if known != "linf":  # neither the printed numbers nor alpha * eps would stand beside
        raise ValueError(
            "the paper's radii are L-infinity: take CarliniWagner('linf') or Attack(Pixels(0.3)); "
            f"got {brief(attack)}"
        )
    wanted = valid_pairs(split, pairs, defence)
    eps = radius(split, defence)
    for alpha, beta in tqdm(wanted, desc="(alpha, beta)", disable=not progress):
        images = shifted(split, alpha, beta)
        paper = printed(split, alpha, beta, defence)
        success, scaled = _both(attack, eps, alpha, model, images)
        rows.append(
            {
                "alpha": alpha,
                "beta": beta,
                "accuracy": accuracy(model, images),
                "success": success,
                "success_scaled": scaled,
                "printed_accuracy": paper.accuracy if paper else float("nan"),
                "printed_success": paper.success if paper else float("nan"),
                "printed_scaled": paper.success_scaled if paper else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def on_images(attack: Attack | CarliniWagner) -> None:
    """ValueError for an attack that does not begin at the transformed image itself."""
    if isinstance(attack.set, OnManifold):
        raise ValueError(
            "scaled and shifted images have no code on the manifold: attack their pixels, "
            "Attack(Pixels(0.3)) say"
        )


def _both(
    attack: Attack | CarliniWagner, eps: float, alpha: float, model: nn.Module, images: Split
) -> tuple[Rate, Rate]:
    """Success within eps and within alpha * eps."""
    result = attack(model, images)
    if isinstance(attack, CarliniWagner):
        return (
            result.success_rate("images", within=eps),
            result.success_rate("images", within=alpha * eps),
        )
    success = result.success_rate("images")
    if alpha == 1:
        return success, success
    stricter = replace(attack, set=attack.set.scaled(alpha))
    return success, stricter(model, images).success_rate("images")
