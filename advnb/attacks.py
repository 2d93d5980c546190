"""The one search: maximise a loss over a perturbation set (S eq. 1, 3, 5; Z).

`attack.iterate(model, split)` yields the search's state after each evaluated iterate; calling
the attack runs it to the end and returns an `AttackResult`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .data import Split
from .models import BATCH, device_of, finite, lent, logits, probe
from .perturbations import STARTS, PerturbationSet, Region, Start, norms
from .stats import Rate, generator, rate

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits [N, K], labels [N]) -> [N]


class AttackWarning(UserWarning):
    """Something about the model or the images makes the attack's numbers suspect."""


def ce(output: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each image, [N]."""
    return cross_entropy(output, y, reduction="none")


def margin(output: Tensor, y: Tensor) -> Tensor:
    """The best wrong logit minus the true one, [N]: positive exactly where the model is fooled."""
    true = output.gather(1, y[:, None])[:, 0]
    return output.scatter(1, y[:, None], -math.inf).amax(1) - true


LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin}


@dataclass(frozen=True)
class Attack:
    """Search `set` for the change that maximises `loss`, from `restarts` random starts.

    `steps` updates of size `lr` follow the start, so there are steps + 1 iterates. "adam" is
    Adam on the raw gradient (S); "sign" moves by `lr` along the steepest direction of the set's
    norm: the gradient's sign for L-infinity (Madry et al.), the unit gradient for L2.

    `keep="first"`: the first fooling iterate is the result and the image leaves the batch, so
    that the cost follows what is left (evaluation; S). `keep="strongest"`: every step runs;
    until the label flips the newest iterate is kept, from then on the one of highest loss (S's
    adversarial training).

    `loss` is "ce", "margin" or a function (logits [N, K], labels [N]) -> [N]. Random starts
    depend on `seed` alone; `batch_size` only bounds the memory.
    """

    set: PerturbationSet
    _: KW_ONLY
    steps: int = 40
    lr: float = 0.005
    optimizer: Literal["adam", "sign"] = "adam"
    restarts: int = 1
    start: Start = "ball"
    loss: Literal["ce", "margin"] | Loss = "ce"
    keep: Literal["first", "strongest"] = "first"
    batch_size: int = BATCH
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("restarts", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number >= {least}; got {value!r}")
        if not isinstance(self.lr, int | float) or not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be a positive number; got {self.lr!r}")
        choices = {"optimizer": ("adam", "sign"), "start": STARTS, "keep": ("first", "strongest")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}; got {getattr(self, name)!r}")
        if not callable(self.loss) and self.loss not in LOSSES:
            raise ValueError(f'loss must be "ce", "margin" or a function; got {self.loss!r}')
        if not hasattr(self.set, "region"):
            raise ValueError(f"set must be a perturbation set such as Pixels(0.3); got {self.set!r}")

    def __call__(self, model: nn.Module, split: Split) -> AttackResult:
        """Attack every image of `split`; the result is on the split's device."""
        check(model, split)
        correct = logits(model, split, self.batch_size).argmax(1) == split.y
        runs = [self._search(model, split, restart).finish() for restart in range(self.restarts)]
        code, success, first = (torch.stack(parts).to(split.y.device) for parts in zip(*runs))
        return AttackResult(self, split, correct, success, first, code)

    def iterate(self, model: nn.Module, split: Split) -> Iterator[State]:
        """The state after each iterate: steps 0 (the start) to `steps`, restart after restart.

        With keep="first", a restart ends early once every image is fooled.
        """
        check(model, split)
        for restart in range(self.restarts):
            search = self._search(model, split, restart)
            for step in search.run():
                yield search.state(step)

    def adversarial(self, model: nn.Module, split: Split) -> Tensor:
        """Adversarial images [N, C, H, W] from one start, for training: no checks, no result."""
        return self.set.decode(self._search(model, split, quiet=True).finish()[0], split)

    def _search(self, model: nn.Module, split: Split, restart: int = 0, quiet: bool = False) -> Search:
        stream = generator(self.seed, restart)
        return Search(self, model, split.to(device_of(model)), stream, restart, quiet)


class Search:
    """One restart over all images of a split, in lockstep, in chunks that are always full.

    `rows` are the positions of the images still in the batch; `code`, `left`, `live`, `region`
    and `moments` belong to them, in that order. `kept`, `loss`, `first` and `fooled` cover the
    whole split. Fooled rows are marked in `left` at once and leave when a sixteenth of the batch
    is fooled: copying what stays costs more than a few wasted rows.
    """

    def __init__(
        self,
        attack: Attack,
        model: nn.Module,
        split: Split,
        stream: torch.Generator,
        restart: int,
        quiet: bool,
    ) -> None:
        self.attack, self.model, self.restart, self.quiet = attack, model, restart, quiet
        self.split = self.live = split
        self.region: Region = attack.set.region(split)
        self.code = self.region.start(attack.start, stream)
        self.kept = self.code.clone()
        n, device = len(split), self.code.device
        self.rows = torch.arange(n, device=device)
        self.left = torch.ones(n, dtype=torch.bool, device=device)
        self.loss = torch.full((n,), -math.inf, device=device)
        self.first = torch.full((n,), -1, dtype=torch.int64, device=device)
        self.fooled = torch.zeros(n, dtype=torch.bool, device=device)
        count = 2 if attack.optimizer == "adam" else 0
        self.moments = [torch.zeros_like(self.code) for _ in range(count)]
        self.score = LOSSES[attack.loss] if isinstance(attack.loss, str) else attack.loss
        self.record = self._record_first if attack.keep == "first" else self._record_strongest

    def run(self) -> Iterator[int]:
        """Yield 0, 1, ... `steps`, each after that iterate has been evaluated and recorded."""
        for step in range(self.attack.steps + 1):
            last = step == self.attack.steps
            chunks = [
                slice(start, start + self.attack.batch_size)
                for start in range(0, len(self.rows), self.attack.batch_size)
            ]
            with lent(self.model), torch.set_grad_enabled(not last):
                gradients = [self._evaluate(step, chunk, not last) for chunk in chunks]
            if step == 0 and not last and not self.quiet:
                self._warn_if_flat(gradients)
            yield step
            if not self.left.any():
                return
            if not last:
                for chunk, gradient in zip(chunks, gradients):
                    self._update(step + 1, chunk, gradient)
                self._drop()

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """Run to the end: (codes, whether each fools, its first fooling step), [N, ...]."""
        for _ in self.run():
            pass
        return self.current(), self.fooled, self.first

    def current(self) -> Tensor:
        """Codes that the result would hold if the search ended here, [N, ...]."""
        if self.attack.keep == "strongest":
            return self.kept.clone()
        kept = self.kept.clone()
        kept[self.rows[self.left]] = self.code[self.left]
        return kept

    def state(self, step: int) -> State:
        return State(
            step, self.restart, self.loss.clone(), self.fooled.clone(),
            self.current(), self.attack.set, self.split,
        )  # fmt: skip

    def _evaluate(self, step: int, chunk: slice, differentiate: bool) -> Tensor | None:
        """Record the chunk's iterate; the gradient of its loss with respect to its codes.

        The gradient of the codes alone: weights are not differentiated, and keep no .grad.
        """
        part, code = self.live[chunk], self.code[chunk].detach().requires_grad_(differentiate)
        output = finite(self.model(self.attack.set.decode(code, part)))
        losses = self.score(output, part.y)
        self.record(step, chunk, losses.detach().float(), output.detach().argmax(1) != part.y)
        return torch.autograd.grad(losses.sum(), code)[0] if differentiate else None

    def _record_first(self, step: int, chunk: slice, losses: Tensor, fooled: Tensor) -> None:
        rows, left = self.rows[chunk], self.left[chunk]
        self.loss[rows[left]] = losses[left]
        fooled = fooled & left
        if fooled.any():
            hits = rows[fooled]
            self.kept[hits] = self.code[chunk][fooled]
            self.first[hits] = step
            self.fooled[hits] = True
            left &= ~fooled

    def _record_strongest(self, step: int, chunk: slice, losses: Tensor, fooled: Tensor) -> None:
        loss, first = self.loss[chunk], self.first[chunk]  # nobody leaves: rows are in order
        better = (first < 0) | (losses > loss)
        loss[better] = losses[better]
        self.kept[chunk][better] = self.code[chunk][better]
        self.fooled[chunk][better] = fooled[better]
        first[fooled & (first < 0)] = step

    def _update(self, t: int, chunk: slice, gradient: Tensor | None) -> None:
        """Update number t of a chunk's codes, in place: ascend, then back into the region."""
        assert gradient is not None
        code, region, lr = self.code[chunk], self.region[chunk], self.attack.lr
        if self.attack.optimizer == "sign":
            code.add_(region.ascend(gradient), alpha=lr)
        else:  # Kingma and Ba 2015, algorithm 1, with the usual constants
            mean, square = (moment[chunk] for moment in self.moments)
            mean.lerp_(gradient, 1 - 0.9)
            square.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
            scale = (square / (1 - 0.999**t)).sqrt_().add_(1e-8)
            code.addcdiv_(mean, scale, value=lr / (1 - 0.9**t))
        region.project_(code)

    def _drop(self) -> None:
        gone = len(self.left) - int(self.left.sum())
        if gone * 16 < len(self.left) or not gone:
            return
        stay = self.left.nonzero()[:, 0]
        self.rows, self.code, self.left = self.rows[stay], self.code[stay], self.left[stay]
        self.region, self.live = self.region[stay], self.live[stay]
        self.moments = [moment[stay] for moment in self.moments]

    def _warn_if_flat(self, gradients: list[Tensor | None]) -> None:
        flat = torch.cat([g.flatten(1).abs().amax(1) < 1e-12 for g in gradients if g is not None])
        share = (flat & self.left).sum().item() / max(int(self.left.sum()), 1)
        if share > 0.1:
            warnings.warn(
                f"the gradient vanishes for {share:.0%} of the images: a low success rate would say "
                'nothing about robustness (gradient masking; try loss="margin" or other starts)',
                AttackWarning,
                stacklevel=4,
            )


@dataclass(frozen=True)
class State:
    """A search after one iterate: what the result would be if it ended here.

    `loss` and `success` are [N] in the split's order; `x` [N, C, H, W] is decoded when read. A
    state is a copy: it stays what it was while the search goes on.
    """

    step: int
    restart: int
    loss: Tensor
    success: Tensor
    code: Tensor
    set: PerturbationSet
    split: Split

    @property
    def x(self) -> Tensor:
        return decoded(self.set, self.code, self.split)


@dataclass(frozen=True)
class AttackResult:
    """What an attack found for N images and R restarts.

    `success` bool [R, N]: the kept image is misclassified, whether or not x was right;
    `first_success_step` int64 [R, N], -1 where never; `correct` bool [N]: x was right.
    """

    attack: Attack
    split: Split
    correct: Tensor
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

    def success_rate(self, over: Literal["pairs", "images"] = "pairs") -> Rate:
        """Share of images that were classified correctly and are fooled.

        over="pairs": every (image, restart) counts, as in S; the interval is clustered by image.
        over="images": an image counts as fooled if any restart fooled it, as in Z.
        """
        if over not in ("pairs", "images"):
            raise ValueError(f'over must be "pairs" or "images"; got {over!r}')
        hits = self.success[:, self.correct]
        return rate(hits if over == "pairs" else hits.any(0))

    def mean_distance(self) -> float:
        """Mean norm of successful changes of correctly classified images (S Fig. 8), in the norm
        of the set; NaN where there is none."""
        change = self.delta if self.change is None else self.change
        hits = self.success & self.correct
        return norms(change[hits], self.attack.set.norm).mean().item() if hits.any() else math.nan

    def __repr__(self) -> str:
        return (
            f"AttackResult({self.attack.set}, {len(self.split):,} images x {len(self.success)} "
            f"restarts: {self.success_rate()})"
        )


def decoded(set: PerturbationSet, code: Tensor, split: Split) -> Tensor:
    """The images of codes [N, ...], without gradients, on the split's device."""
    with torch.no_grad():
        parts = [
            set.decode(code[start : start + BATCH], split[start : start + BATCH])
            for start in range(0, len(split), BATCH)
        ]
    return torch.cat(parts).to(split.y.device)


def check(model: nn.Module, split: Split) -> None:
    """Warn about what would make an attack's numbers meaningless; raise where they cannot be."""
    if model.training:
        warn("the model is in train mode; it is attacked in eval mode and given back as it was")
    output = probe(model, split)
    if (output >= 0).all() and torch.allclose(output.sum(1), torch.ones_like(output[:, 0])):
        warn(
            "the model's outputs are probabilities already: a loss on top of them has vanishing "
            "gradients, so take the softmax out"
        )
    if not torch.equal(output, probe(model, split)):
        warn(
            "the model is stochastic: two looks at the same images differ, so a flip may be luck; "
            "attack the mean of its outputs"
        )


def warn(text: str) -> None:
    warnings.warn(text, AttackWarning, stacklevel=4)
