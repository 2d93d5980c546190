"""The training strategies and attacks of S's curves (sections 3.4 to 3.6), each by a name."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

from .attacks import Attack
from .data import Dataset
from .learned import KINDS, SHARED, LearnedManifold
from .perturbations import Affine, Norm, OnManifold, PerturbationSet, Pixels, manifold_of
from .recipes import Recipe, adversarial, augmented, combined, noisy, normal

Make = Callable[[Dataset], Recipe]
Keep = Literal["first", "strongest"]

EPS = ETA = 0.3  # S's radii in L-infinity: of pixels, and of codes and transforms
ETA_SHARED = 0.1  # of the codes of a model that serves all classes
EPS_L2 = 1.5  # of pixels in L2; that of codes stays the same
LIMIT = 2.0  # S counts (and means to train) on a learned manifold where a code's numbers are less
SOURCE = 10_000, 1000  # images and seed of the normal model whose examples are transferred


@lru_cache(maxsize=4)
def _manifold(name: str, kind: str = KINDS[0]) -> LearnedManifold:
    return LearnedManifold.load(name, kind)


# what the attacks search; on a learned manifold, that which ships, of each class or of all
SETS: dict[str, Callable[[Dataset, Norm], PerturbationSet]] = {
    "regular": lambda data, norm: Pixels(EPS if norm == "linf" else EPS_L2, norm),
    "on-true": lambda data, norm: OnManifold(manifold_of(data.train(1)), ETA, norm),
    "on-learned": lambda data, norm: OnManifold(_manifold(data.name), ETA, norm),
    "transformation": lambda data, norm: Affine(ETA, norm),
    "on-shared": lambda data, norm: OnManifold(_manifold(data.name, SHARED), ETA_SHARED, norm),
}
LEARNED = ("on-learned", "on-shared")


def searched(data: Dataset, name: str) -> PerturbationSet:
    """The set of a strategy or attack by its name: L2 where that says "l2" or "cw"."""
    base, _, form = name.rpartition("-") if name.endswith(("-l2", "-cw")) else (name, "", "")
    return SETS[base](data, "l2" if form else "linf")


def _against(
    name: str, fraction: float = 0.5, keep: Keep = "strongest", within: float | None = LIMIT
) -> Make:
    """Adversarial training against a set."""
    within = within if name.startswith(LEARNED) else None
    return lambda data: adversarial(
        Attack(searched(data, name)), fraction, keep=keep, within=within
    )


def _both(*names: str) -> Make:
    return lambda data: combined([_against(name)(data) for name in names])


MAIN = ("regular", "on-true", "on-learned")  # what the supplement varies

# S's strategies and what is to be held against them, each by a name
RECIPES: dict[str, Make] = {
    "normal": lambda data: normal(),
    "augmented": lambda data: augmented(form="printed"),
    "augmented-plain": lambda data: augmented(),
    **{name: _against(name) for name in SETS},
    **{f"{name}-l2": _against(f"{name}-l2") for name in MAIN},
    **{f"{name}-full": _against(name, 1.0) for name in MAIN},
    **{f"{name}-weak": _against(name, keep="first") for name in MAIN},
    "regular+on-true": _both("regular", "on-true"),
    "regular+on-learned": _both("regular", "on-learned"),
    "regular+transformation": _both("regular", "transformation"),
    "random-pixels": lambda data: noisy(searched(data, "regular")),
    "random-code": lambda data: noisy(searched(data, "on-true")),
    "random-learned-code": lambda data: noisy(searched(data, "on-learned"), within=LIMIT),
    # as S's code has them: it means to take codes within 2 alone, and takes any
    "on-learned-printed": _against("on-learned", within=None),
    "on-learned-full-printed": _against("on-learned", 1.0, within=None),
    # ours: chance that reaches as far as the search, and as few attacked pixels as "regular+..."
    "random-pixels-uniform": lambda data: noisy(searched(data, "regular"), start="uniform"),
    "random-code-uniform": lambda data: noisy(searched(data, "on-true"), start="uniform"),
    "regular-quarter": _against("regular", 0.25),
}

# What is measured: the error on test images, or an attack's success on them; "-l2" and "-cw" are
# S's L2 attacks, "-transfer" those found for another model, and "-unseen" is measured on faces
# that FONTS does not have.
BASE = ["error", *SETS]
ATTACKS = [
    *BASE,
    *(f"{name}-{form}" for name in MAIN for form in ("l2", "cw")),
    *(f"{name}-transfer" for name in SETS),
    *(f"{name}-unseen" for name in ("error", "regular", "on-true")),
]
