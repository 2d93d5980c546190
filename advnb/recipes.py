"""Training strategies as data: how a batch is cut, who attacks which part, how fast to learn.

`advnb.fit` is the only training loop; a `Recipe` tells it what to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from .attacks import Attack
from .certify import RobustLoss
from .checks import brief, number, whole
from .perturbations import Affine, PerturbationSet, Pixels, Start
from .relaxations import Inner, Method
from .tones import ScaleShift
from .transport import InverseRoot, Mean, Smoothed, Transport


class Schedule(Protocol):
    """Learning rate at a point of the training, `epoch` counted in fractions from 0."""

    def __call__(self, epoch: float, epochs: int) -> float: ...


@dataclass(frozen=True)
class Decay:
    """start * factor^(epoch + 1), at least `floor`: 0.0095 falling by 5 % an epoch (S)."""

    start: float = 0.01
    factor: float = 0.95
    floor: float = 1e-7

    def __post_init__(self) -> None:
        number("start", self.start, "a positive number", lambda v: 0 < v < math.inf)

    def __call__(self, epoch: float, epochs: int) -> float:
        return max(self.start * self.factor ** (epoch + 1), self.floor)


@dataclass(frozen=True)
class OneCycle:
    """Up from peak/25 over the first `rise` of the run, then down to 0, both along a cosine
    (Smith and Topin 2019)."""

    peak: float = 0.01
    rise: float = 0.2

    def __call__(self, epoch: float, epochs: int) -> float:
        done = epoch / epochs
        low = self.peak / 25 if done < self.rise else 0.0
        part = done / self.rise if done < self.rise else (1 - done) / (1 - self.rise)
        return low + (self.peak - low) * (1 - math.cos(math.pi * part)) / 2


class Loss(Protocol):
    """What a part learns from, a mean over its images: x [n, C, H, W] (attacked where the part
    is), the logits [n, K] that the model in train mode gave for them, labels y [n], and how far
    the recipe's warm-up has got, from 0 to 1. A checkpoint knows it by its repr, so that a
    dataclass serves best."""

    def __call__(
        self, model: nn.Module, x: Tensor, output: Tensor, y: Tensor, growth: float
    ) -> Tensor: ...


@dataclass(frozen=True, repr=False)
class Part:
    """A share of every batch: attacked, or clean where `attack` is None.

    `within`: drawn only from images whose own code lies within this much of zero, in every
    number (2 on a learned manifold, as S's code means to, though it takes any). `loss`:
    cross-entropy if None.
    """

    share: float
    attack: Attack | None = None
    within: float | None = None
    loss: Loss | None = None

    def __post_init__(self) -> None:
        number("share", self.share, "a number in (0, 1]", lambda v: 0 < v <= 1)
        if self.within is not None:
            number("within", self.within, "a positive number or None", lambda v: 0 < v < math.inf)
            if self.attack is None:
                raise ValueError("within is for parts that are attacked: give an attack as well")
        if self.attack is not None and not isinstance(self.attack, Attack):
            raise ValueError(
                f"an Attack is needed, Attack(Pixels(0.3)) say; got {brief(self.attack)}"
            )
        if self.loss is not None and not callable(self.loss):
            raise ValueError(f"loss must be a function or None; got {brief(self.loss)}")

    def __repr__(self) -> str:
        # a run of cross-entropy is told as it was before there were other losses
        told = "" if self.loss is None else f", loss={self.loss!r}"
        return f"Part(share={self.share!r}, attack={self.attack!r}, within={self.within!r}{told})"


@dataclass(frozen=True)
class Recipe:
    """How to train. The loss is the mean over the parts of their mean losses, cross-entropy if
    they name none, so that parts weigh the same whatever their shares (S eq. 2, 4).

    Adam with `betas` and coupled L2 `weight_decay` on all parameters (S); over the first
    `warmup` epochs the attacks' radius grows linearly from 0. With `apart`, every part of a batch
    is an update of its own, one after the other, and not a term of one loss.
    """

    parts: tuple[Part, ...]
    batch_size: int = 100
    schedule: Schedule = Decay()
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = 1e-4
    warmup: float = 0.0
    apart: bool = False

    def __post_init__(self) -> None:
        whole("batch_size", self.batch_size, 1)
        number("warmup", self.warmup, "a number of epochs >= 0", lambda v: 0 <= v < math.inf)
        number("weight_decay", self.weight_decay, "a number >= 0", lambda v: 0 <= v < math.inf)
        if not isinstance(self.betas, Sequence) or len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers in [0, 1); got {brief(self.betas)}")
        for beta in self.betas:
            number("betas", beta, "two numbers in [0, 1)", lambda v: 0 <= v < 1)
        if not callable(self.schedule):
            raise ValueError(
                f"schedule must be a function, Decay() say; got {brief(self.schedule)}"
            )
        if not isinstance(self.parts, tuple) or not all(isinstance(p, Part) for p in self.parts):
            raise ValueError(f"parts must be a tuple of Part; got {brief(self.parts)}")
        shares = [part.share for part in self.parts]
        if not math.isclose(sum(shares), 1):
            raise ValueError(f"the parts' shares must be positive and sum to 1; got {shares}")
        if min(self.counts()) < 1:
            raise ValueError(
                f"a batch of {self.batch_size} is too small for shares {shares}: make it larger"
            )

    def counts(self) -> list[int]:
        """Images of a batch that go to each part."""
        edges = [0.0]
        for part in self.parts:
            edges.append(edges[-1] + part.share * self.batch_size)
        whole = [round(edge) for edge in edges]
        return [b - a for a, b in pairwise(whole)]


def normal(**settings: Any) -> Recipe:
    """Training on clean images; `settings` replace fields of the Recipe."""
    return Recipe((Part(1.0),), **settings)


def adversarial(
    attack: Attack,
    fraction: float = 0.5,
    *,
    keep: Literal["first", "strongest"] = "strongest",
    within: float | None = None,
    **settings: Any,
) -> Recipe:
    """Adversarial training: `fraction` of every batch attacked, the rest clean (S eq. 2, 4, 5, by
    the attack's set); fraction=1 is Madry et al.'s form.

    The attack trains with one start and `keep`, whatever its own say: "strongest" is S's main
    variant, "first" its weak one (every image stops at its first flip). `within`: see `Part`.
    """
    if not isinstance(attack, Attack):
        raise ValueError(f"an Attack is needed, Attack(Pixels(0.3)) say; got {brief(attack)}")
    number("fraction", fraction, "a number in (0, 1]", lambda v: 0 < v <= 1)
    attacked = Part(fraction, replace(attack, keep=keep, restarts=1), within)
    clean = () if fraction == 1 else (Part(1 - fraction),)
    return Recipe((*clean, attacked), **settings)


def noisy(
    set: PerturbationSet, fraction: float = 0.5, *, start: Start = "ball", **settings: Any
) -> Recipe:
    """Random changes from `set` in place of attacked ones: what adversarial training is to be
    held against. `start` is their distribution (see `Attack`)."""
    return adversarial(Attack(set, steps=0, start=start), fraction, **settings)


def augmented(
    eta: float = 0.3, *, form: Literal["plain", "printed"] = "plain", **settings: Any
) -> Recipe:
    """Data augmentation: half of every batch moved, sheared, scaled and turned at random.

    form="plain": T(x; identity + t), t within `eta`, one update a batch. form="printed": what S's
    curves were made with, an update for the clean half and then one for the other, which is
    T(x; t): the scale is always the smallest allowed (see `Affine`).
    """
    if form not in ("plain", "printed"):
        raise ValueError(f'form must be "plain" or "printed"; got {brief(form)}')
    if form == "plain":
        return noisy(Affine(eta), **settings)
    return noisy(Affine(eta, around="zero"), apart=True, **settings)


def combined(recipes: Sequence[Recipe]) -> Recipe:
    """Several strategies in one: equal shares of every batch for each, their clean parts as one
    (S Fig. 7: regular and on-manifold adversarial training, a quarter of the batch each, the rest
    clean). ValueError where the recipes differ in more than their parts."""
    recipes = list(recipes)
    if not recipes or not all(isinstance(r, Recipe) for r in recipes):
        raise ValueError(f"combined needs a list of recipes; got {brief(recipes)}")
    bare = [replace(r, parts=(Part(1.0),)) for r in recipes]
    if any(other != bare[0] for other in bare):
        raise ValueError("the recipes differ in more than their parts: give all the same settings")
    parts = [part for r in recipes for part in r.parts]
    plain = [part.attack is None and part.loss is None for part in parts]
    clean = sum(part.share for part, same in zip(parts, plain) if same) / len(recipes)
    others = [replace(p, share=p.share / len(recipes)) for p, same in zip(parts, plain) if not same]
    first = [Part(clean)] if clean else []
    return replace(recipes[0], parts=(*first, *others))


def certified(
    eps: float = 0.1,
    *,
    method: Method = "ibp",
    inner: Inner = "ibp",
    start: float = 0.0,
    weight: tuple[float, float] = (0.0, 0.5),
    **settings: Any,
) -> Recipe:
    """Training on bounds, so that `advnb.certify` has something to certify within `eps`.

    By default Gowal et al.'s (2018): intervals, their radius growing from `start` to `eps` over
    the `warmup` epochs, and their weight in the loss from and to those of `weight`. Wong and
    Kolter's (2018) loss is method="dual", inner="backward", weight=(1, 1), start=0.01: a GPU's
    work. inner="ibp" is its fast form. Bounds see batch normalisation with its running statistics.
    """
    number("eps", eps, "a number in (0, 1]", lambda v: 0 < v <= 1)
    number("start", start, f"a number from 0 to eps = {eps:g}", lambda v: 0 <= v <= eps)
    if not isinstance(weight, Sequence) or len(weight) != 2:
        raise ValueError(f"weight must be two numbers in [0, 1]; got {brief(weight)}")
    for value in weight:
        number("weight", value, "two numbers in [0, 1]", lambda v: 0 <= v <= 1)
    loss = RobustLoss((start, eps), (weight[0], weight[1]), method, inner)
    usual = {"betas": (0.9, 0.999), "weight_decay": 0.0, "schedule": OneCycle(0.002), "warmup": 8.0}
    return Recipe((Part(1.0, loss=loss),), **{**usual, **settings})


PUBLISHED = InverseRoot()  # Sinha et al.'s steps


def wrm(
    scale: float = 1.3,
    *,
    steps: int = 16,
    lr: float | Callable[[int], float] = PUBLISHED,
    smoothing: float = 0.1,
    **settings: Any,
) -> Recipe:
    """Distributionally robust training (Sinha et al. 2018, algorithm 1): every image is moved to
    where scale * loss - |change|^2 / 2 is large, scale = 1 / (2 gamma), by gradient steps from x,
    the first of the gradient itself, the later ones shorter by 1 / sqrt(t)."""
    loss = Smoothed(smoothing)
    attack = Attack(
        Transport(scale), steps=steps, lr=lr, optimizer="sign", start="zero", loss=loss,
        keep="strongest",
    )  # fmt: skip
    usual = {"betas": (0.9, 0.999), "weight_decay": 0.0, "schedule": Decay(0.001, 1.0)}
    part = Part(1.0, attack, loss=Mean(loss))
    return Recipe((part,), **{"batch_size": 256, **usual, **settings})


def cured(
    attack: Attack, lowest: float = 0.7, *, relative: bool = False, searched: bool = False,
    shifts: tuple[float, float] = (0.0, 1.0), **settings: Any,
) -> Recipe:  # fmt: skip
    """Adversarial training against the blind spot as well: half of every batch attacked as it is,
    half scaled and shifted, alpha from `lowest` to 1 and beta from 0 to (1 - alpha) / 2, as in Z's
    tables, and attacked there within the same radius, or within alpha times it if `relative`.

    alpha and beta are drawn at random; with `searched` they are the attack's to choose. `shifts`
    is the range of beta over (1 - alpha) / 2: (-1, 1) for whatever is valid, where for eps above
    alpha - 1/2 no pixel alone tells ink from paper any more (notebook 10). `attack` is one on
    `Pixels` in L-infinity. (Z expect little of augmentation, section 3.3; the form is ours.)
    """
    pixels = getattr(attack, "set", None)
    if not isinstance(pixels, Pixels) or pixels.norm != "linf":
        raise ValueError(f"cured needs an Attack on Pixels in L-infinity; got {brief(attack)}")
    tones = ScaleShift(pixels.eps, lowest, relative, searched, shifts)
    on_tones = replace(attack, set=tones, start="uniform")
    both = [adversarial(one, 1.0, **settings) for one in (attack, on_tones)]
    return combined(both)
