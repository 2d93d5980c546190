"""Images scaled and shifted (Zhang et al. 2019, section 3.3), and what is printed for them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from ..checks import brief, number
from ..splits import Split

SLACK = 1e-6  # what rounding may add to a pixel that lies exactly on the edge


@dataclass(frozen=True)
class Printed:
    """A column of Z's tables 2 to 5, fractions: success at eps and at alpha * eps."""

    alpha: float
    beta: float
    accuracy: float
    success: float
    success_scaled: float = float("nan")


# Table 2 and 3 (Madry et al.'s networks), 4 (Wong and Kolter's) and 5 (Sinha et al.'s), by defence
# and data; the attack is C&W L-infinity on (it seems) 2,000 images. At (1, 0) the radii are one.
PRINTED: dict[tuple[str, str], tuple[Printed, ...]] = {
    ("adversarial", "mnist"): (
        Printed(1.0, 0.0, 0.982, 0.097, 0.097),
        Printed(0.9, 0.0, 0.983, 0.752, 0.152),
        Printed(0.9, 0.05, 0.985, 0.9365, 0.825),
        Printed(0.8, 0.0, 0.984, 0.9485, 0.523),
        Printed(0.8, 0.1, 0.985, 0.9955, 0.9545),
        Printed(0.7, 0.0, 0.984, 0.986, 0.8245),
        Printed(0.7, 0.15, 0.981, 0.9995, 0.9995),
    ),
    ("adversarial", "fashion"): (
        Printed(1.0, 0.0, 0.861, 0.064, 0.064),
        Printed(0.95, 0.0, 0.861, 0.1125, 0.0905),
        Printed(0.95, 0.025, 0.864, 0.2255, 0.1855),
        Printed(0.9, 0.0, 0.861, 0.257, 0.1915),
        Printed(0.9, 0.05, 0.862, 0.626, 0.5595),
    ),
    ("certified", "mnist"): (
        Printed(1.0, 0.0, 0.975, 0.0215, 0.0215),
        Printed(0.95, 0.0, 0.975, 0.0555, 0.0435),
        Printed(0.95, 0.025, 0.975, 0.285, 0.1755),
        Printed(0.9, 0.0, 0.975, 0.301, 0.154),
        Printed(0.9, 0.05, 0.974, 0.8635, 0.807),
    ),
    ("certified", "fashion"): (
        Printed(1.0, 0.0, 0.791, 0.0685, 0.0685),
        Printed(0.95, 0.0, 0.791, 0.1545, 0.093),
        Printed(0.95, 0.025, 0.794, 0.3975, 0.2935),
        Printed(0.9, 0.0, 0.792, 0.3425, 0.2465),
        Printed(0.9, 0.05, 0.792, 0.6995, 0.652),
    ),
    ("wrm", "mnist"): (
        Printed(1.0, 0.0, 0.987, 0.122, 0.122),
        Printed(0.95, 0.0, 0.985, 0.2705, 0.2295),
        Printed(0.95, 0.025, 0.986, 0.3615, 0.309),
        Printed(0.9, 0.0, 0.987, 0.4525, 0.3155),
        Printed(0.9, 0.05, 0.984, 0.589, 0.456),
    ),
    ("wrm", "fashion"): (
        Printed(1.0, 0.0, 0.885, 0.314, 0.314),
        Printed(0.95, 0.0, 0.883, 0.463, 0.411),
        Printed(0.95, 0.025, 0.882, 0.58, 0.533),
        Printed(0.9, 0.0, 0.881, 0.612, 0.518),
        Printed(0.9, 0.05, 0.878, 0.691, 0.6285),
    ),
}
USUAL = PRINTED["adversarial", "fashion"]  # the (alpha, beta) of all tables but MNIST's first
# Z's L-infinity radii for adversarially trained networks; 0.1 for anything else here
EPS = {"mnist": 0.3, "fashion": 0.1, "cifar10": 8 / 255, "gtsrb": 8 / 255}

Defence = Literal["adversarial", "certified", "wrm"]


def _table(split: Split, defence: Defence) -> tuple[Printed, ...]:
    if defence not in get_args(Defence):
        raise ValueError(f"defence must be one of {get_args(Defence)}; got {brief(defence)}")
    return PRINTED.get((defence, split.dataset.name if split.dataset else ""), ())


def radius(split: Split, defence: Defence = "adversarial") -> float:
    """The L-infinity radius that the paper uses for the split's data set: 0.1 for certified
    networks and those trained by WRM. Where it prints no table of these, of CIFAR-10 say, the one
    for adversarially trained networks; 0.1 for data that it does not have."""
    if defence != "adversarial" and _table(split, defence):
        return 0.1
    return EPS.get(split.dataset.name if split.dataset else "", 0.1)


def columns(split: Split, defence: Defence = "adversarial") -> list[tuple[float, float]]:
    """The (alpha, beta) of Z's table for the split's data set; Fashion-MNIST's for others."""
    return [(p.alpha, p.beta) for p in _table(split, defence) or USUAL]


def valid_pairs(
    split: Split, pairs: Iterable[tuple[float, float]] | None, defence: Defence = "adversarial"
) -> list[tuple[float, float]]:
    """The pairs as a list, or by default the paper's `columns`; ValueError unless each is an
    (alpha, beta) that is valid for any image."""
    try:
        wanted = columns(split, defence) if pairs is None else [(a, b) for a, b in pairs]
    except (TypeError, ValueError):
        raise ValueError(
            f"pairs must be a list of (alpha, beta), two numbers each; got {brief(pairs)}"
        ) from None
    for alpha, beta in wanted:
        low, high = valid_shift(alpha)
        number("beta", beta, "a number", math.isfinite)
        if not low - SLACK <= beta <= high + SLACK:
            raise ValueError(
                f"beta = {beta:g} is not valid for alpha = {alpha:g}: it may go from {low:g} to "
                f"{high:g}"
            )
    return wanted


def printed(
    split: Split, alpha: float, beta: float, defence: Defence = "adversarial"
) -> Printed | None:
    """What Z print for this data set, alpha and beta; None where they print nothing."""
    table = _table(split, defence)
    near = (p for p in table if abs(p.alpha - alpha) + abs(p.beta - beta) < 1e-6)
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
