"""Certified accuracy in the blind spot: a proof for an image does not outlive the image's contrast.
Zhang et al. 2019 attack certified networks there (table 4) and show no certificate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..attacks import Attack
from ..bounds import within
from ..certify import certified
from ..checks import number
from ..perturbations import Pixels
from ..relaxations import Inner, Method
from ..splits import Split
from ..stats import rate
from .shift import radius, shifted, valid_pairs

if TYPE_CHECKING:
    import pandas as pd


def certified_table(
    model: nn.Module,
    split: Split,
    eps: float | None = None,
    pairs: Iterable[tuple[float, float]] | None = None,
    *,
    attack: Attack | None = None,
    method: Method = "crown",
    inner: Inner = "ibp",
    progress: bool = True,
) -> pd.DataFrame:
    """What is proved and what is broken of scaled and shifted images: a row an (alpha, beta), by
    default those that Z print for certified networks. `eps` is by default
    `radius(split, "certified")`, 0.1 where they do.

    Columns, Rates but for the last: `accuracy`; within `eps`, and with the ending `_scaled` within
    alpha * eps, `robust`: right, and not fooled by `attack`; `certified`: right, and proved to stay
    so (`certify.certified` with `method` and `inner`); `certified_error`: the other images;
    `success`: the attack's, over the images that are right, as Z count; and `contradictions`: how
    many images are both proved and fooled, in either radius, which must be 0. The first five count
    all images: the best possible attack would leave between `certified` and `robust`.

    `attack`: an Attack on pixels in L-infinity, whose radius is replaced; PGD of 40 steps by
    default.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    if not isinstance(split, Split):
        raise ValueError(f"a Split is needed; got {type(split).__name__}")
    eps = radius(split, "certified") if eps is None else eps
    number("eps", eps, "a positive number up to 1", lambda v: 0 < v <= 1)
    wanted = valid_pairs(split, pairs, "certified")
    if attack is None:
        attack = Attack(Pixels(eps), lr=eps / 10, optimizer="sign", start="uniform")
    attack = within(attack, eps)
    rows = []
    for alpha, beta in tqdm(wanted, desc="(alpha, beta)", disable=not progress):
        images = shifted(split, alpha, beta)
        row: dict[str, Any] = {"alpha": alpha, "beta": beta}
        contradictions = 0
        for ending, size in {"": eps, "_scaled": alpha * eps}.items():
            if math.isclose(size, eps) and ending:  # the same once more
                row |= {f"{name}_scaled": row[name] for name in PARTS}
                continue
            held = certified(model, images, size, method=method, inner=inner)
            right, fooled = _fooled(within(attack, size), model, images)
            found = (right & ~fooled, held, ~held, fooled[right])
            row |= {"accuracy": rate(right)}
            row |= {f"{name}{ending}": rate(part) for name, part in zip(PARTS, found)}
            contradictions += int((held & fooled).sum())
        rows.append(row | {"contradictions": contradictions})
    return pd.DataFrame(rows)


PARTS = ("robust", "certified", "certified_error", "success")  # told for either radius


def _fooled(attack: Attack, model: nn.Module, images: Split) -> tuple[Tensor, Tensor]:
    """Which images are right, and which of these the attack fools from any start, bool [N] each."""
    result = attack(model, images)
    return result.correct, result.success.any(0) & result.correct
