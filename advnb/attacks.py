"""The one search: maximise a loss over a perturbation set (S eq. 1, 3, 5; Z).

`attack.iterate(model, split)` yields the search's state after each evaluated iterate; calling
the attack runs it to the end and returns an `AttackResult`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .checks import brief, number, whole, widest
from .doubts import check, check_set
from .models import BATCH, device_of, logits
from .perturbations import STARTS, PerturbationSet, Start, norms
from .search import LOSSES, Loss, Search, State, decoded
from .splits import Split
from .stats import Rate, generator, rate


@dataclass(frozen=True)
class Attack:
    """Search `set` for the change that maximises `loss`, from `restarts` random starts.

    `steps` updates of size `lr` (a number, or a function of the update's number 1, 2, ...) follow
    the start, so there are steps + 1 iterates. "adam" is Adam on the raw gradient (S); "adam-0.4"
    the one that S ran, PyTorch 0.4's: its constant 1e-8 weighs 32 times as much in the first step
    and 5 times in the 40th, so that an image of tiny gradients hardly moves. "sign" moves by `lr`
    along the steepest direction of the set's norm: the gradient's sign for L-infinity (Madry et
    al.), the unit gradient for L2.

    `keep="first"`: the first fooling iterate is the result and the image leaves the batch, so
    that the cost follows what is left (evaluation; S). `keep="strongest"`: every step runs;
    until the label flips the newest iterate is kept, from then on the one of highest loss (S's
    adversarial training). `keep="smallest"`: every step runs, and of the fooling iterates that of
    the smallest change is kept.

    `loss` is "ce", "margin" or a function (logits [N, K], labels [N]) -> [N]; with keep="first" it
    sees those images alone that are left, and any wrong class counts as success, also where a loss
    aims at one: count its own with keep="strongest". Random starts
    depend on `seed` alone; `batch_size` only decides memory and speed (by default 200 on a CPU,
    where larger batches leave the caches, and 2,000 elsewhere).
    """

    set: PerturbationSet
    _: KW_ONLY
    steps: int = 40
    lr: float | Callable[[int], float] = 0.005
    optimizer: Literal["adam", "adam-0.4", "sign"] = "adam"
    restarts: int = 1
    start: Start = "ball"
    loss: Literal["ce", "margin"] | Loss = "ce"
    keep: Literal["first", "strongest", "smallest"] = "first"
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("restarts", 1), ("batch_size", 1)):
            if name != "batch_size" or self.batch_size is not None:
                whole(name, getattr(self, name), least)
        if not callable(self.lr):
            number("lr", self.lr, "a positive number", lambda v: 0 < v < math.inf)
        choices = {
            "optimizer": ("adam", "adam-0.4", "sign"),
            "start": STARTS,
            "keep": ("first", "strongest", "smallest"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}; got {brief(getattr(self, name))}")
        if not callable(self.loss) and str(self.loss) not in LOSSES:
            raise ValueError(f'loss must be "ce", "margin" or a function; got {brief(self.loss)}')
        parts = ("region", "decode")
        if isinstance(self.set, type) or not hasattr(self.set, "region"):
            raise ValueError(
                f"set must be a perturbation set, Pixels(0.3) say; got {brief(self.set)}"
            )
        if missing := [part for part in parts if not hasattr(self.set, part)]:
            raise ValueError(f"the set {brief(self.set)} lacks {missing[0]}: see PerturbationSet")

    def __call__(self, model: nn.Module, split: Split) -> AttackResult:
        """Attack every image of `split`; the result is on the split's device."""
        check(model, split)
        check_set(self.set, model, split)
        runs = [self._search(model, split, restart).finish() for restart in range(self.restarts)]
        return self.result(model, split, runs)

    def result(
        self, model: nn.Module, split: Split, runs: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> AttackResult:
        """The result of restarts that were run: codes, success and first fooling step of each."""
        correct = self._correct(model, split)
        reconstructed = correct
        region = self.set.region(split)
        if region.origin.shape != split.x.shape:  # a code: what it stands for may not be x itself
            start = decoded(self.set, region.origin, split)
            reconstructed = self._correct(model, split.with_x(start))
        code, success, first = (torch.stack(parts).to(split.y.device) for parts in zip(*runs))
        return AttackResult(self, split, correct, reconstructed, success, first, code)

    def _correct(self, model: nn.Module, split: Split) -> Tensor:
        return logits(model, split, self.batch_size or BATCH).argmax(1) == split.y

    def iterate(self, model: nn.Module, split: Split) -> Iterator[State]:
        """The state after each iterate: steps 0 (the start) to `steps`, restart after restart.

        With keep="first", a restart ends early once every image is fooled.
        """
        check(model, split)
        check_set(self.set, model, split)
        for restart in range(self.restarts):
            search = self._search(model, split, restart)
            for step in search.run():
                yield search.state(step, split)

    def _search(self, model: nn.Module, split: Split, restart: int) -> Search:
        stream, home = generator(self.seed, restart), split.to(device_of(model))
        return Search(self, model, home, stream, restart=restart, quiet=False)


@dataclass(frozen=True)
class AttackResult:
    """What an attack found for N images and R restarts.

    `success` bool [R, N]: the kept image is misclassified, whether or not x was right;
    `first_success_step` int64 [R, N], -1 where never; `correct` bool [N]: x was right;
    `reconstructed` bool [N]: the image of x's own code was, where the search begins. For sets of
    pixels that is x, and for FONTS' own manifold too; on a learned one it is not.
    """

    attack: Attack
    split: Split
    correct: Tensor
    reconstructed: Tensor
    success: Tensor
    first_success_step: Tensor
    found: Tensor

    @property
    def x(self) -> Tensor:
        """The kept images, [R, N, C, H, W]."""
        return torch.stack([decoded(self.attack.set, code, self.split) for code in self.found])

    @property
    def delta(self) -> Tensor:
        """x minus the split's images, [R, N, C, H, W], for every set."""
        return self.x - self.split.x

    @property
    def code(self) -> Tensor | None:
        """The kept codes [R, N, d], for sets that search one; None for sets of pixels."""
        return self.found if self.found.ndim == 3 else None

    @property
    def change(self) -> Tensor | None:
        """code minus the code that the search started around, [R, N, d]."""
        return None if self.code is None else self.code - self.attack.set.region(self.split).origin

    def success_rate(
        self,
        over: Literal["pairs", "images"] = "pairs",
        *,
        correct: Literal["x", "reconstruction"] = "x",
        code_limit: float | None = None,
        within: float | None = None,
    ) -> Rate:
        """Share of images that were classified correctly and are fooled.

        over="pairs": every (image, restart) counts, as in S; the interval is clustered by image.
        over="images": an image counts as fooled if any restart fooled it, as in Z.
        `within`: only changes of that norm or less count, of a minimum-norm attack say.

        On a learned manifold "classified correctly" has two readings: the image itself
        (correct="x"), or the image of its code (correct="reconstruction", S's code), where an
        attack starts. S's code also lets a success count only where every number of the original
        code lies within 2 of zero, out of all images: code_limit=2.
        """
        if over not in ("pairs", "images"):
            raise ValueError(f'over must be "pairs" or "images"; got {brief(over)}')
        hits = self.success
        if within is not None:
            number("within", within, "a number >= 0", lambda v: 0 <= v < math.inf)
            hits = self.distances <= within
        hits = (hits & self._within(code_limit))[:, self._right(correct)]
        return rate(hits if over == "pairs" else hits.any(0))

    def _right(self, correct: str) -> Tensor:
        """Which images count as classified correctly, [N]."""
        if correct not in ("x", "reconstruction"):
            raise ValueError(f'correct must be "x" or "reconstruction"; got {brief(correct)}')
        return self.correct if correct == "x" else self.reconstructed

    def _within(self, code_limit: float | None) -> Tensor:
        """Whose original code lies within the limit, [N]."""
        if code_limit is None:
            return torch.ones_like(self.correct)
        number("code_limit", code_limit, "a positive number", lambda v: 0 < v < math.inf)
        origin = self.attack.set.region(self.split).origin
        if origin.ndim != 2:
            raise ValueError("code_limit is for sets that search a code, not for pixels")
        return (origin.abs() <= code_limit).all(1)

    def success_by_step(self) -> list[float]:
        """Success rates over pairs after 0, 1, ... steps: one run tells them all, as every image
        remembers its first fooling step."""
        first = self.first_success_step[:, self.correct].flatten()
        steps = range(self.attack.steps + 1)
        return [((first >= 0) & (first <= k)).float().mean().item() for k in steps]

    def transferred(
        self,
        model: nn.Module,
        *,
        correct: Literal["x", "reconstruction"] = "x",
        code_limit: float | None = None,
    ) -> Rate:
        """Share of (image, restart) pairs that fool, and fool `model` as well, which
        was not attacked; of images that both models classify correctly (S's transfer attacks).
        `correct` and `code_limit` are those of `success_rate`, for both models; S's code asks the
        one that was not attacked about x in any case."""
        right, start = self._right(correct), self.split
        if correct == "reconstruction":
            origin = self.attack.set.region(start).origin
            start = start.with_x(decoded(self.attack.set, origin, start))
        right = right & (logits(model, start).argmax(1) == start.y)
        wrong = [logits(model, self.split.with_x(x)).argmax(1) != self.split.y for x in self.x]
        return rate((torch.stack(wrong) & self.success & self._within(code_limit))[:, right])

    @property
    def distances(self) -> Tensor:
        """Norms of the changes, float64 [R, N] (MPS has float32 alone), in the set's norm; infinite
        where none fools."""
        kept, origin = self.code, self.attack.set.region(self.split).origin
        if kept is None:
            kept, origin = self.x, self.split.x
        origin = origin.to(widest(origin.device))
        sizes = [norms(one.to(origin) - origin, self.attack.set.norm) for one in kept]
        return torch.stack(sizes).masked_fill(~self.success, math.inf)

    def mean_distance(self) -> float:
        """Mean of the distances of correctly classified images (S Fig. 8); NaN where none fools."""
        return self.distances[self.success & self.correct].mean().item()

    def __repr__(self) -> str:
        count = f"{len(self.split):,} images x {len(self.success)} restarts"
        if self.attack.keep == "smallest":
            found = self.distances.amin(0)[self.correct]
            middle = f"{found.median():.4g}" if len(found) else "-"
            norm = self.attack.set.norm
            return f"AttackResult(the smallest changes found, {norm}, {count}: median {middle})"
        return f"AttackResult({self.attack.set}, {count}: {self.success_rate()})"
