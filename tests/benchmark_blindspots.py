"""Benchmarks of blind spots: Z's tables beside the printed ones, and what the cure closes."""

from __future__ import annotations

from itertools import combinations

import advnb
from advnb import blindspots, sweeps, zoo
from advnb.blindspots import runs
from advnb.stats import rank_correlation

from .measured import line

# (alpha, beta, whether within alpha * eps): the bound on the cured model's success on MNIST
CURE = {(0.8, 0.1, False): 0.25, (0.8, 0.1, True): 0.08, (0.7, 0.15, True): 0.45}
OTHERS = [(0.7, 0.15, False), (0.7, 0.0, False), (0.8, -0.1, False), (0.8, -0.1, True)]
TOLD = [(1.0, 0.0), (0.9, 0.05), (0.8, 0.0), (0.9, -0.05)]  # in the README, for all cured models


def tables() -> None:
    """Tables 2 to 5 as they ship, beside the printed rows (`python -m advnb blindspots` makes
    them: a third of a second an image, column and core)."""
    done = sweeps.shipped("blindspots")
    for (model, attack), rows in done.groupby(["model", "attack"], sort=False):
        print(f"{model}, {rows.images.max():,} images, {attack}, {rows.machine.iloc[0]}")
        table = runs.measured(str(model), attack)
        for row in table.itertuples():
            print(f"    ({row.alpha:g}, {row.beta:g}): accuracy {row.accuracy.value:.1%}, success "
                  f"{row.success.value:.1%} / {row.success_scaled.value:.1%}, printed "
                  f"{row.printed_success:.1%} / {row.printed_scaled:.1%}")  # fmt: skip
        for name, paper in (("success", "printed_success"), ("success_scaled", "printed_scaled")):
            _ranked(name, [rate.value for rate in table[name]], list(table[paper]))
        if rows.norm_50.notna().all():  # the median smallest change has no ceiling
            _ranked("- norm_50", list(-rows.norm_50), list(table.printed_success))
        accuracy = [rate.value for rate in table.accuracy]
        off = max(abs(value - accuracy[0]) for value in accuracy)
        line("    accuracy, farthest from untransformed", f"{off:.2%}", "<= 1 %", off <= 0.01)


def _ranked(name: str, ours: list[float], theirs: list[float]) -> None:
    rank = rank_correlation(ours, theirs)
    # ties, at 100 % say, cost some of its height: how many pairs stand the other way round
    pairs = list(combinations(zip(ours, theirs), 2))
    turned = sum((a - c) * (b - d) < 0 for (a, b), (c, d) in pairs)
    line(f"    Spearman, {name}", f"{rank}, {turned} of {len(pairs)} pairs turned", ">= .9",
         rank.value >= 0.9 - 1e-9)  # fmt: skip


def cure() -> None:
    """The cured models on 2,000 images, PGD-40 x 5; the bounds are for MNIST's lighter shifts."""
    for name in ("mnist", "fashion", "fonts"):
        test = advnb.load(name).test(2000)
        for model in (f"{name}-cnn-cured", f"{name}-cnn-cured-both"):
            for alpha, beta in TOLD:
                images = blindspots.shifted(test, alpha, beta)
                result = zoo.pgd(blindspots.radius(test))(zoo.load(model), images)
                print(f"    {model} at ({alpha:g}, {beta:g}): {result.success_rate('images')}")
    data = advnb.load("mnist")
    before = advnb.accuracy(zoo.load("mnist-cnn-adversarial"), data.test()).value
    for name in ("mnist-cnn-cured", "mnist-cnn-cured-both"):
        model, bounds = zoo.load(name), CURE if name.endswith("cured") else {}
        after = advnb.accuracy(model, data.test()).value
        line(f"{name}: accuracy, uncured less cured", f"{before:.2%} - {after:.2%}", "<= 1 %",
             before - after <= 0.01)  # fmt: skip
        for alpha, beta, scaled in (*CURE, *OTHERS):
            images = blindspots.shifted(data.test(2000), alpha, beta)
            attack = zoo.pgd(0.3 * (alpha if scaled else 1))
            success = attack(model, images).success_rate("images")
            told = f"success at ({alpha:g}, {beta:g}) within {'alpha * eps' if scaled else 'eps'}"
            bound = bounds.get((alpha, beta, scaled))
            if bound is None:
                print(f"    {told}: {success}")
            else:
                line(told, f"{success}", f"<= {bound:.0%}", success.value <= bound)


if __name__ == "__main__":
    tables()
    cure()
