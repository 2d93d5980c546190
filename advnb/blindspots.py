"""Blind spots (Zhang et al. 2019, section 3.3): scaled and shifted images that a robust model
still classifies correctly, and no longer defends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .attacks import Attack
from .checks import brief, number
from .minimal import CarliniWagner
from .models import accuracy
from .splits import Split
from .stats import Rate

if TYPE_CHECKING:
    import pandas as pd

SLACK = 1e-6  # what rounding may add to a pixel that lies exactly on the edge


@dataclass(frozen=True)
class Printed:
    """A column of Z's tables 2 and 3, fractions: success at eps and at alpha * eps."""

    alpha: float
    beta: float
    accuracy: float
    success: float
    success_scaled: float = float("nan")


# Madry et al.'s networks; the attack is C&W L-infinity on (it seems) 2,000 images.
PRINTED: dict[str, tuple[Printed, ...]] = {
    "mnist": (
        Printed(1.0, 0.0, 0.982, 0.097, 0.097),  # the two radii are one here
        Printed(0.9, 0.0, 0.983, 0.752, 0.152),
        Printed(0.9, 0.05, 0.985, 0.9365, 0.825),
        Printed(0.8, 0.0, 0.984, 0.9485, 0.523),
        Printed(0.8, 0.1, 0.985, 0.9955, 0.9545),
        Printed(0.7, 0.0, 0.984, 0.986, 0.8245),
        Printed(0.7, 0.15, 0.981, 0.9995, 0.9995),
    ),
    "fashion": (
        Printed(1.0, 0.0, 0.861, 0.064, 0.064),
        Printed(0.95, 0.0, 0.861, 0.1125, 0.0905),
        Printed(0.95, 0.025, 0.864, 0.2255, 0.1855),
        Printed(0.9, 0.0, 0.861, 0.257, 0.1915),
        Printed(0.9, 0.05, 0.862, 0.626, 0.5595),
    ),
}
# Z's L-infinity radii; 0.1 for anything else here
EPS = {"mnist": 0.3, "fashion": 0.1, "cifar10": 8 / 255, "gtsrb": 8 / 255}


def radius(split: Split) -> float:
    """The L-infinity radius that the paper uses for the split's data set."""
    return EPS.get(split.dataset.name if split.dataset else "", 0.1)


def columns(split: Split) -> list[tuple[float, float]]:
    """The (alpha, beta) of Z's table for the split's data set; Fashion-MNIST's for others."""
    name = split.dataset.name if split.dataset else ""
    return [(p.alpha, p.beta) for p in PRINTED.get(name, PRINTED["fashion"])]


def printed(split: Split, alpha: float, beta: float) -> Printed | None:
    """What Z print for this data set, alpha and beta; None where they print nothing."""
    name = split.dataset.name if split.dataset else ""
    near = (p for p in PRINTED.get(name, ()) if abs(p.alpha - alpha) + abs(p.beta - beta) < 1e-6)
    return next(near, None)


def scale_shift(x: Tensor, alpha: float, beta: float) -> Tensor:
    """x' = alpha * x + beta with pixels read in [-0.5, 0.5] (Z section 3.3), for images in [0, 1]:

        x' = alpha * x + (1 - alpha) / 2 + beta.

    Even with beta = 0 a black background becomes (1 - alpha) / 2. Raises ValueError where a
    pixel would leave [0, 1]; `valid_shift(alpha)` is the range of beta that never does.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.numel() == 0:
        what = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a float tensor of images; got {what}")
    number("alpha", alpha, "a positive number", lambda v: 0 < v < math.inf)
    number("beta", beta, "a number", math.isfinite)
    moved = alpha * x + ((1 - alpha) / 2 + beta)
    low, high = moved.detach().amin().item(), moved.detach().amax().item()
    if not (low >= -SLACK and high <= 1 + SLACK):
        raise ValueError(
            f"alpha = {alpha:g}, beta = {beta:g} moves pixels to [{low:.3g}, {high:.3g}], outside "
            "[0, 1]: choose beta within valid_shift(alpha)"
        )
    return moved.clamp(0, 1)


def valid_shift(alpha: float) -> tuple[float, float]:
    """The (low, high) range of beta for which any image stays valid: +-(1 - alpha) / 2."""
    number("alpha", alpha, "a number in (0, 1]: no other has a valid shift", lambda v: 0 < v <= 1)
    return -(1 - alpha) / 2, (1 - alpha) / 2


def shifted(split: Split, alpha: float, beta: float) -> Split:
    """The split with every image scaled and shifted; labels and order stay."""
    return split.with_x(scale_shift(split.x, alpha, beta))


def table(
    model: nn.Module,
    split: Split,
    attack: Attack | CarliniWagner,
    pairs: Iterable[tuple[float, float]] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Z's tables 2 and 3 for your model: a row an (alpha, beta), by default the printed ones.

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
    if isinstance(attack, CarliniWagner) and attack.norm != "linf":
        raise ValueError('the paper\'s radii are L-infinity: take CarliniWagner("linf")')
    try:
        wanted = columns(split) if pairs is None else [(alpha, beta) for alpha, beta in pairs]
    except (TypeError, ValueError):
        raise ValueError(
            f"pairs must be a list of (alpha, beta), two numbers each; got {brief(pairs)}"
        ) from None
    for alpha, beta in wanted:  # all of them before the first attack starts
        low, high = valid_shift(alpha)
        number("beta", beta, "a number", math.isfinite)
        if not low - SLACK <= beta <= high + SLACK:
            raise ValueError(
                f"beta = {beta:g} is not valid for alpha = {alpha:g}: it may go from {low:g} to "
                f"{high:g}"
            )
    for alpha, beta in tqdm(wanted, desc="(alpha, beta)", disable=not progress):
        images = shifted(split, alpha, beta)
        paper = printed(split, alpha, beta)
        success, scaled = _both(attack, alpha, model, images)
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


def _both(
    attack: Attack | CarliniWagner, alpha: float, model: nn.Module, images: Split
) -> tuple[Rate, Rate]:
    """Success within eps and within alpha * eps."""
    result = attack(model, images)
    if isinstance(attack, CarliniWagner):
        eps = radius(images)
        return (
            result.success_rate("images", within=eps),
            result.success_rate("images", within=alpha * eps),
        )
    success = result.success_rate("images")
    if alpha == 1:
        return success, success
    stricter = replace(attack, set=attack.set.scaled(alpha))
    return success, stricter(model, images).success_rate("images")
