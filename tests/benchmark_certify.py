"""Benchmarks of certificates: against the authors' own toolkit, and of the models that ship."""

from __future__ import annotations

import time

import torch
from torch import nn

import advnb
from advnb import blindspots, zoo
from advnb.certify import certified, margins

from .measured import line


def certificates() -> None:
    """The dual bound beside its authors' toolkit, its time; nothing both certified and fooled."""
    _oracle()
    for name in zoo.names():
        if name.endswith("-certified"):
            _model(name)


def _oracle() -> None:
    try:
        import convex_adversarial
    except ImportError:
        print("convex_adversarial is not installed: pip install --no-deps convex_adversarial")
        return
    split, model = advnb.load("mnist").test(10), advnb.models.WongKolter(0)
    split = split.with_x(split.x.double())
    model = model.double()
    sequence = nn.Sequential(*model.body, model.head)
    own, theirs, worst = [], [], 0.0
    for number in range(5):  # in turn, so that neither has the quieter machine
        part = split[2 * number : 2 * number + 2]
        began = time.process_time()
        bound = margins(model, part, 0.1, method="dual")
        own.append(time.process_time() - began)
        began = time.process_time()
        bounds = convex_adversarial.RobustBounds(sequence, 0.1, bounded_input=True)
        with torch.no_grad():
            other = -bounds(part.x, part.y)
        theirs.append(time.process_time() - began)
        other[torch.arange(2), part.y] = torch.inf
        worst = max(worst, (bound - other.amin(1)).abs().max().item())
    line(
        "dual bound from convex_adversarial's, 10 images", f"{worst:.1e}", "<= 1e-3", worst <= 1e-3
    )
    ratio = min(own) / min(theirs)
    line("    time over its", f"{ratio:.2f} ({min(own) / 2:.2f} s an image)", "<= 1", ratio <= 1)


def _model(name: str) -> None:
    entry, model = zoo.entry(name), zoo.load(name)
    split, eps = advnb.load(entry.data).test(500), entry.certify
    attack = zoo.pgd(eps, lr=eps / 10)
    print(f"{name}, {len(split)} images, eps {eps:.3g}")
    for alpha, beta in blindspots.columns(split, "certified"):
        moved = blindspots.shifted(split, alpha, beta)
        began = time.process_time()
        sure = certified(model, moved, eps)
        took = (time.process_time() - began) / len(split)
        fooled = attack(model, moved).success.any(0)
        told = f"{1 - sure.double().mean().item():.1%} ({1000 * took:.0f} ms an image)"
        rate = advnb.accuracy(model, moved)
        print(f"    ({alpha:g}, {beta:g}): accuracy {rate}, not certified {told}")
        both = int((sure & fooled).sum())
        line("        certified and fooled by PGD-40 x 5", f"{both}", "0", both == 0)


if __name__ == "__main__":
    certificates()
