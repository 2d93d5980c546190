"""The search itself: gradient ascent over a perturbation set, one restart at a time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .checks import number, watched
from .models import BATCH, NOT_FINITE, lent, shaped
from .passes import quickened
from .perturbations import PerturbationSet, Region
from .splits import Split
from .stacks import Stack

if TYPE_CHECKING:
    from .attacks import Attack

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


class Search:
    """One restart over all images of a split, in lockstep, in chunks that are always full.

    `rows` are the positions of the images still in the batch; `code`, `left`, `live`, `region`
    and `moments` belong to them, in that order. `kept`, `loss`, `first` and `fooled` cover the
    whole split. Fooled rows are marked in `left` at once and leave when a sixteenth of the batch
    is fooled: copying what stays costs more than a few wasted rows.

    `streams` draw the start, one for all rows or each for its equal part of them. A search in
    which nobody leaves (`keep` other than "first") asks its device for nothing on the way, so that
    a CUDA graph can record it (see `recorded`).
    """

    def __init__(
        self,
        attack: Attack,
        model: nn.Module,
        split: Split,
        *streams: torch.Generator,
        restart: int = 0,
        quiet: bool = True,
    ) -> None:
        self.attack, self.model, self.restart, self.quiet = attack, model, restart, quiet
        self.split = self.live = split
        self.batch_size = attack.batch_size or (200 if split.y.device.type == "cpu" else 2000)
        self.whole = isinstance(model, Stack)  # it tells whose a row is by its place among all
        if self.whole:
            self.batch_size = len(split)
        self.region: Region = attack.set.region(split)
        each = len(split) // len(streams)
        parts = [
            self.region[slice(k * each, (k + 1) * each)].start(attack.start, stream)
            for k, stream in enumerate(streams)
        ]
        self.start = torch.cat(parts) if len(parts) > 1 else parts[0]
        self.seed = int(torch.randint(2**62, (1,), generator=streams[0]))
        self.score = LOSSES[attack.loss] if isinstance(attack.loss, str) else attack.loss
        self.leaving = attack.keep == "first"
        self.record = {
            "first": self._record_first,
            "strongest": self._record_strongest,
            "smallest": self._record_smallest,
        }[attack.keep]

    def begin(self, code: Tensor | None = None) -> None:
        """To step 0, at the start drawn or at `code`, with the model's weights as of now."""
        self.forward = quickened(self.model)
        self.code = (self.start if code is None else code).clone()
        self.kept = self.code.clone()
        n, device = len(self.live), self.code.device
        self.rows = torch.arange(n, device=device)
        self.left = torch.ones(n, dtype=torch.bool, device=device)
        self.loss = torch.full((n,), -math.inf, device=device)
        self.first = torch.full((n,), -1, dtype=torch.int64, device=device)
        self.fooled = torch.zeros(n, dtype=torch.bool, device=device)
        count = 0 if self.attack.optimizer == "sign" else 2
        self.moments = [torch.zeros_like(self.code) for _ in range(count)]
        self.size = torch.full((n,), math.inf, dtype=self.code.dtype, device=device)
        self.finite = torch.ones(2, dtype=torch.bool, device=device)  # outputs, losses

    def run(self) -> Iterator[int]:
        """Yield 0, 1, ... `steps`, each after that iterate has been evaluated and recorded.

        Whoever has not called `begin` begins at the start. While a graph records this, the model
        is to be lent by who records.
        """
        if not hasattr(self, "code"):
            self.begin()
        for step in range(self.attack.steps + 1):
            last = step == self.attack.steps
            chunks = [
                slice(start, start + self.batch_size)
                for start in range(0, len(self.rows), self.batch_size)
            ]
            # a randomised model is to draw other numbers in every step
            model = lent(self.model, self.seed + step) if watched() else nullcontext()
            with model, torch.set_grad_enabled(not last):
                gradients = [self._evaluate(step, chunk, not last) for chunk in chunks]
            if watched() and (self.leaving or last or not self.quiet):
                self.check()
            if step == 0 and not last and not self.quiet:
                self._warn_if_flat(gradients)
            yield step
            if self.leaving and not self.left.any():
                return
            if not last:
                for chunk, gradient in zip(chunks, gradients):
                    self._update(step + 1, chunk, gradient)
                if self.leaving:
                    self._drop()

    def check(self) -> None:
        """ValueError where an output or a loss was NaN or infinite."""
        outputs, losses = self.finite.tolist()
        if not outputs:
            if self.split.dtype == torch.float16:
                raise ValueError("float16 is too coarse for the attack's steps: take float32")
            raise ValueError(NOT_FINITE)
        if not losses:
            raise ValueError("the loss is NaN or infinite: check the loss function")

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """Run to the end: (codes, whether each fools, its first fooling step), [N, ...]."""
        for _ in self.run():
            pass
        return self.current(), self.fooled, self.first

    def images(self) -> Tensor:
        """Run to the end: the images found, [N, C, H, W]."""
        code, *_ = self.finish()
        return self.attack.set.decode(code, self.split).to(self.split.dtype).detach()

    def current(self) -> Tensor:
        """Codes that the result would hold if the search ended here, [N, ...]."""
        if not self.leaving:
            return self.kept.clone()
        kept = self.kept.clone()
        kept[self.rows[self.left]] = self.code[self.left]
        return kept

    def state(self, step: int, split: Split) -> State:
        """A copy of the search as it stands, on the device of `split`, the caller's own."""
        home = split.y.device
        loss, fooled = self.loss.clone().to(home), self.fooled.clone().to(home)
        code = self.current().to(home)
        return State(step, self.restart, loss, fooled, code, self.attack.set, split)

    def _evaluate(self, step: int, chunk: slice, differentiate: bool) -> Tensor | None:
        """Record the chunk's iterate; the gradient of its loss with respect to its codes.

        The gradient of the codes alone: weights are not differentiated, and keep no .grad.
        """
        part, code = self.live[chunk], self.code[chunk].detach().requires_grad_(differentiate)
        images = self.attack.set.decode(code, part).to(part.dtype)  # codes may be of another type
        output = shaped(self.forward(images), len(images))
        losses = self.score(output, part.y)
        if not isinstance(losses, Tensor):
            raise ValueError(
                f"the loss must return a tensor, one number per image; got {type(losses).__name__}"
            )
        if step == 0 and (losses.shape != part.y.shape or losses.requires_grad != differentiate):
            raise ValueError(
                f"the loss must return one number per image, {list(part.y.shape)}, and keep the "
                f"way back to the image; it returned {list(losses.shape)}"
            )
        losses = self.region[chunk].weighed(losses, code)
        if watched() or step == self.attack.steps:  # what is not finite stays so to the end
            self.finite &= torch.stack([row.detach().isfinite().all() for row in (output, losses)])
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
        _put(better, losses, loss)
        _put(better, self.code[chunk], self.kept[chunk])
        _put(better, fooled, self.fooled[chunk])
        first.masked_fill_(fooled & (first < 0), step)

    def _record_smallest(self, step: int, chunk: slice, losses: Tensor, fooled: Tensor) -> None:
        size = self.region[chunk].size(self.code[chunk])
        first = self.first[chunk]
        better = torch.where(fooled, size < self.size[chunk], first < 0)
        _put(better, losses, self.loss[chunk])
        _put(better, self.code[chunk], self.kept[chunk])
        _put(better & fooled, size, self.size[chunk])
        first.masked_fill_(fooled & (first < 0), step)
        self.fooled[chunk] |= fooled

    def _update(self, t: int, chunk: slice, gradient: Tensor | None) -> None:
        """Update number t of a chunk's codes, in place: ascend, then back into the region."""
        assert gradient is not None
        code, region, lr = self.code[chunk], self.region[chunk], self.attack.lr
        if callable(lr):
            lr = number(f"lr({t})", lr(t), "a number >= 0", lambda v: 0 <= v < math.inf)
        if self.attack.optimizer == "sign":
            code.add_(region.ascend(gradient), alpha=lr)
        else:  # Kingma and Ba 2015, algorithm 1, with the usual constants
            mean, square = (moment[chunk] for moment in self.moments)
            mean.lerp_(gradient, 1 - 0.9)
            square.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
            short = 1 - 0.999**t  # what the mean of squares is short of; 0.4 adds 1e-8 before that
            constant = 1e-8 / (math.sqrt(short) if self.attack.optimizer == "adam-0.4" else 1)
            scale = (square / short).sqrt_().add_(constant)
            code.addcdiv_(mean, scale, value=lr / (1 - 0.9**t))
        region.project_(code)

    def _drop(self) -> None:
        gone = len(self.left) - int(self.left.sum())
        if gone * 16 < len(self.left) or not gone or self.whole:
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
                f"the gradient vanishes for {share:.0%} of the images: a low success rate would "
                "say nothing about robustness (gradient masking; try loss='margin', other starts)",
                AttackWarning,
                stacklevel=4,
            )


def _put(where: Tensor, new: Tensor, old: Tensor) -> None:
    """Rows `where` [N] of `new` into `old`, without asking the device how many they are."""
    torch.where(where.view(-1, *[1] * (old.ndim - 1)), new, old, out=old)


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


def decoded(set: PerturbationSet, code: Tensor, split: Split) -> Tensor:
    """The images of codes [N, ...], without gradients, on the split's device."""
    with torch.no_grad():
        parts = [
            set.decode(code[start : start + BATCH], split[start : start + BATCH])
            for start in range(0, len(split), BATCH)
        ]
    return torch.cat(parts).to(split.y.device, split.dtype)
