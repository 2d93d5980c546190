"""What is known of a margin: lower bounds, which no change within eps can break, an upper bound,
which an attack has reached, and what the two leave open."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .attacks import Attack
from .certify import margins
from .checks import brief, number, widest
from .models import logits
from .perturbations import Pixels
from .relaxations import Inner
from .search import margin
from .splits import Split

if TYPE_CHECKING:
    import pandas as pd

STANDINGS = ("certified", "open", "fooled", "wrong")


def standing(right: Tensor, fooled: Tensor, sure: Tensor) -> Tensor:
    """A position in STANDINGS for each image, int64 [N], from bool [N] each: the model has it
    right, an attack fools it, it is certified. An image both certified and fooled, which would
    refute the proof, counts as fooled."""
    found = torch.where(sure, 0, 1)
    found = torch.where(fooled, 2, found)
    return torch.where(right, found, 3)


def within(attack: object, eps: float) -> Attack:
    """The attack with another radius, as margins and certificates know L-infinity alone. ValueError
    unless it is an Attack on pixels in that norm: its set would be replaced unasked."""
    if not isinstance(attack, Attack):
        raise ValueError(f"attack must be an Attack or None; got {brief(attack)}")
    if not isinstance(attack.set, Pixels) or attack.set.norm != "linf":
        raise ValueError(
            f"the radius is of pixels in L-infinity: take Attack(Pixels({eps:g})); "
            f"got {brief(attack.set)}"
        )
    return replace(attack, set=Pixels(eps))


def attacked_margins(
    model: nn.Module, split: Split, eps: float, attack: Attack | None = None
) -> Tensor:
    """The smallest margin (true logit minus the best other one) found within `eps` of each image
    in L-infinity, float64 [N]: by `attack`, whose radius is replaced, or the image's own.

    By default 20 steps of PGD on the margin itself.
    """
    number("eps", eps, "a number in [0, 1]", lambda v: 0 <= v <= 1)
    if attack is not None:
        attack = within(attack, eps or 1.0)  # within 0 it is not run
    images = [split]
    if eps > 0:
        attack = attack or Attack(
            Pixels(eps), steps=20, lr=eps / 8, optimizer="sign", start="uniform", loss="margin",
            keep="strongest",
        )  # fmt: skip
        images += [split.with_x(x) for x in attack(model, split).x]
    least = torch.stack([-margin(logits(model, one), one.y) for one in images]).amin(0)
    return least.to(widest(least.device))


def bracket(
    model: nn.Module,
    split: Split,
    eps: float = 0.1,
    attack: Attack | None = None,
    *,
    inner: Inner = "ibp",
) -> pd.DataFrame:
    """The smallest margin within `eps` of each image, from both sides. Columns, a row an image:
    `ibp` and `crown`, lower bounds (`certify.margins`, with `inner`), and `attack`, the upper one
    of `attacked_margins`. In real arithmetic ibp <= crown <= the smallest margin <= attack."""
    import pandas as pd

    found = {
        "ibp": margins(model, split, eps, method="ibp"),
        "crown": margins(model, split, eps, inner=inner),
        "attack": attacked_margins(model, split, eps, attack),
    }
    return pd.DataFrame({name: values.cpu().numpy() for name, values in found.items()})


def growth(
    model: nn.Module,
    image: Split,
    radii: Iterable[float],
    attack: Attack | None = None,
    *,
    inner: Inner = "backward",
) -> pd.DataFrame:
    """`bracket` of one image as the radius grows: a row for each of the `radii`, with `radius` as
    the first column. What was found within a smaller radius counts within the larger ones."""
    import pandas as pd

    if not isinstance(image, Split) or len(image) != 1:
        raise ValueError(f"one image is needed, test[:1] say; got {brief(image)}")
    wanted = sorted(radii) if isinstance(radii, Iterable) else [radii]
    if not wanted:
        raise ValueError("there are no radii: give one or more")
    rows = [bracket(model, image, radius, attack, inner=inner) for radius in wanted]
    table = pd.concat(rows, ignore_index=True)
    table.insert(0, "radius", wanted)
    return table.assign(attack=table.attack.cummin())
