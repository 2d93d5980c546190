"""Benchmark of the L-infinity attack that looks for the smallest change."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import advnb
from advnb.perturbations import norms

from .measured import line

CHUNK, IMAGES, COMPARED = 200, 1000, 200


def smallest() -> None:
    """C&W's L-infinity attack on the robust models: against PGD-40 x 5 at eps, 1,000 images, and
    against other toolkits' smallest changes, the first 200."""
    for name, eps in (("mnist", 0.3), ("fashion", 0.1)):
        model, split = advnb.zoo.load(f"{name}-cnn-adversarial"), advnb.load(name).test(IMAGES)
        right = advnb.models.logits(model, split).argmax(1) == split.y
        seconds, sizes, theirs = 0.0, [], []
        for start in range(0, IMAGES, CHUNK):
            part = split[start : start + CHUNK]
            began = time.process_time()
            result = advnb.CarliniWagner("linf")(model, part)
            seconds += time.process_time() - began
            sizes.append(_checked(model, part, *result.x))
            theirs.append(advnb.zoo.pgd(eps)(model, part).success.any(0))
        size, pgd = torch.cat(sizes)[right], torch.cat(theirs)[right]
        ours = size <= eps
        line(f"{name}, {len(size)} images: fooled within {eps}", f"{int(ours.sum())}",
             f">= {int(pgd.sum())}", bool(ours.sum() >= pgd.sum()))  # fmt: skip
        missed = (pgd & ~ours).sum().item() / len(pgd)
        line("    PGD fools, C&W does not", f"{missed:.2%}", "<= 1 %", missed <= 0.01)
        quantiles = size.quantile(size.new_tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()
        print(f"    norms at 5, 25, 50, 75, 95 %: {', '.join(f'{q:.4f}' for q in quantiles)}; "
              f"{seconds / IMAGES:.2f} s of one core an image", flush=True)  # fmt: skip
        part = split[:COMPARED][right[:COMPARED]]
        median = size[: len(part)].median().item()
        for other, run in _peers(model, part).items():
            began = time.process_time()
            peer = _checked(model, part, run()).median().item()
            told = f"{median / peer:.3f} ({peer:.4f}, {time.process_time() - began:.0f} s)"
            line(f"    median, {len(part)} images, over {other}", told, "<= 1.05",
                 median <= 1.05 * peer)  # fmt: skip


def _checked(model: nn.Module, split: advnb.Split, *found: Tensor) -> Tensor:
    """The smallest norm, float64 [N], of the images that the model itself gets wrong."""
    sizes = []
    for x in found:
        x = x.detach().clamp(0, 1)
        wrong = advnb.models.logits(model, split.with_x(x)).argmax(1) != split.y
        sizes.append(norms(x.double() - split.x.double(), "linf").masked_fill(~wrong, torch.inf))
    return torch.stack(sizes).amin(0)


def _peers(model: nn.Module, part: advnb.Split) -> dict[str, Callable[[], Tensor]]:
    runs: dict[str, Callable[[], Tensor]] = {}
    try:
        import foolbox
        from foolbox.attacks import (
            LinfDeepFoolAttack,
            LInfFMNAttack,
            LinfinityBrendelBethgeAttack,
        )

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        for attack in (LinfDeepFoolAttack(steps=50), LInfFMNAttack(steps=1000)):
            runs[f"foolbox, {type(attack).__name__}"] = lambda attack=attack: attack(
                wrapped, part.x, part.y, epsilons=None
            )[1]

        def boundary() -> Tensor:
            """Along the boundary, from what PGD finds within 0.6."""
            start = advnb.zoo.pgd(0.6)(model, part)
            fooled, x = start.success.any(0), part.x.clone()
            begin = start.x[start.success.int().argmax(0), torch.arange(len(part))][fooled]
            x[fooled] = LinfinityBrendelBethgeAttack(steps=100)(
                wrapped, x[fooled], part.y[fooled], starting_points=begin, epsilons=None
            )[1]
            return x

        runs["foolbox, Brendel and Bethge, 100 steps"] = boundary
    except ImportError:
        print("    foolbox is not installed")
    try:
        import torchattacks

        fab = torchattacks.FAB(model, norm="Linf", eps=1.0, steps=100, n_restarts=1, n_classes=10)
        runs["torchattacks, FAB, 100 steps"] = lambda: fab(part.x, part.y)
    except ImportError:
        print("    torchattacks is not installed")
    return runs
