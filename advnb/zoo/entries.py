"""How each model of the zoo is made: its data, network, recipe, and the attack that measures it."""

from __future__ import annotations

from dataclasses import dataclass

from ..attacks import Attack
from ..perturbations import Pixels
from ..recipes import OneCycle, Recipe, adversarial, certified, cured, normal, wrm

BOTH = (-1.0, 1.0)  # darker and lighter shifts


def pgd(eps: float, lr: float = 0.01, restarts: int = 5) -> Attack:
    """Madry et al.'s PGD-40: steps of `lr` along the sign, uniform starts. They and Zhang et al.
    measure MNIST (eps 0.3) and Fashion-MNIST (0.1) with 0.01, CIFAR-10 (8/255) with 2/255."""
    return Attack(
        Pixels(eps), steps=40, lr=lr, optimizer="sign", start="uniform", restarts=restarts
    )


def _attack(eps: float) -> Attack:
    return Attack(Pixels(eps), steps=7, lr=2.5 * eps / 7, optimizer="sign", start="uniform")


def _madry(eps: float, peak: float, warmup: float, batch_size: int = 100) -> Recipe:
    """100 % adversarial batches from 7 large steps, in place of 40 small ones: a small network
    on a laptop's clock. The radius warms up, or training at 0.3 may never take off."""
    return adversarial(
        _attack(eps),
        1.0,
        batch_size=batch_size,
        schedule=OneCycle(peak),
        warmup=warmup,
        betas=(0.9, 0.999),
        weight_decay=0.0,
    )


def _cured(eps: float, lowest: float, shifts: tuple[float, float] = (0.0, 1.0)) -> Recipe:
    return cured(
        _attack(eps), lowest, shifts=shifts, schedule=OneCycle(0.01), warmup=2, betas=(0.9, 0.999),
        weight_decay=0.0,
    )  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """How one model of the zoo is made, and which attack measures it."""

    data: str
    network: str
    n: int
    recipe: Recipe
    epochs: int
    attack: Attack
    attacked: int  # the first images of the test set that the card's success rate counts
    seed: int = 0
    certify: float | None = None  # the radius of the card's certified error
    ships: bool = True  # else `zoo train` makes it, where its data is
    bits: int = 16  # a weight that is kept: 16, or 8 with a scale for every 64


ENTRIES = {
    "mnist-cnn-normal": Entry("mnist", "CNN", 60_000, normal(), 20, pgd(0.3), 1000),
    "mnist-cnn-adversarial": Entry(
        "mnist", "CNN", 60_000, _madry(0.3, 0.01, 2), 12, pgd(0.3), 10_000
    ),
    "fashion-cnn-normal": Entry("fashion", "CNN", 60_000, normal(), 20, pgd(0.1), 1000),
    "fashion-cnn-adversarial": Entry(
        "fashion", "CNN", 60_000, _madry(0.1, 0.01, 2), 12, pgd(0.1), 10_000
    ),
    "fonts-cnn-normal": Entry(
        "fonts", "CNN", 5000, normal(), 20, Attack(Pixels(0.3), restarts=5), 1000
    ),
    "fonts-cnn-adversarial": Entry("fonts", "CNN", 40_000, _madry(0.1, 0.01, 1), 8, pgd(0.1), 2000),
    "cifar10-cnn-normal": Entry(
        "cifar10", "WideCNN", 50_000, normal(), 20, pgd(8 / 255, 2 / 255), 1000, bits=8
    ),
    "cifar10-cnn-adversarial": Entry(
        "cifar10", "WideCNN", 50_000, _madry(8 / 255, 0.005, 1), 30, pgd(8 / 255, 2 / 255), 10_000
    ),
    "mnist-small-certified": Entry(
        "mnist", "WongKolter", 60_000, certified(0.1), 20, pgd(0.1), 10_000, certify=0.1
    ),
    "fashion-small-certified": Entry(
        "fashion", "WongKolter", 60_000, certified(0.1), 20, pgd(0.1), 10_000, certify=0.1
    ),
    "fonts-small-certified": Entry(
        "fonts",
        "WongKolter",
        40_000,
        certified(0.1, warmup=4.0),
        10,
        pgd(0.1),
        2000,
        certify=0.1,
        bits=8,
    ),
    "cifar-small-certified": Entry(
        "cifar10",
        "WongKolter",
        50_000,
        certified(2 / 255),
        40,
        pgd(2 / 255, 0.5 / 255),
        10_000,
        certify=2 / 255,
        bits=8,
    ),
    # 11 of the authors' 25 epochs
    "mnist-wrm": Entry("mnist", "WRM", 60_000, wrm(), 11, pgd(0.1), 2000, bits=8),
    "fashion-wrm": Entry("fashion", "WRM", 60_000, wrm(), 11, pgd(0.1), 2000, bits=8),
    "mnist-cnn-cured": Entry(
        "mnist", "CNN", 60_000, _cured(0.3, 0.7), 12, pgd(0.3), 10_000, bits=8
    ),
    "fashion-cnn-cured": Entry(
        "fashion", "CNN", 60_000, _cured(0.1, 0.8), 12, pgd(0.1), 10_000, bits=8
    ),
    "fonts-cnn-cured": Entry("fonts", "CNN", 40_000, _cured(0.1, 0.8), 8, pgd(0.1), 2000, bits=8),
    "mnist-cnn-cured-both": Entry(
        "mnist", "CNN", 60_000, _cured(0.3, 0.7, BOTH), 12, pgd(0.3), 10_000, bits=8
    ),
    "fashion-cnn-cured-both": Entry(
        "fashion", "CNN", 60_000, _cured(0.1, 0.8, BOTH), 12, pgd(0.1), 10_000, bits=8
    ),
    "fonts-cnn-cured-both": Entry(
        "fonts", "CNN", 40_000, _cured(0.1, 0.8, BOTH), 8, pgd(0.1), 2000, bits=8
    ),
    # the network of Z's tables 2 and 3: 6.5 MB
    "mnist-madry": Entry(
        "mnist", "MadryMNIST", 60_000, _madry(0.3, 0.002, 2, 250), 24, pgd(0.3), 10_000, ships=False
    ),
    "fashion-madry": Entry(
        "fashion",
        "MadryMNIST",
        60_000,
        _madry(0.1, 0.002, 2, 250),
        24,
        pgd(0.1),
        10_000,
        ships=False,
    ),
    # 26,640 images: those that torchvision calls the training set
    "gtsrb-cnn-normal": Entry(
        "gtsrb", "WideCNN", 26_640, normal(), 20, pgd(8 / 255, 2 / 255), 1000, ships=False
    ),
    "gtsrb-cnn-adversarial": Entry(
        "gtsrb",
        "WideCNN",
        26_640,
        _madry(8 / 255, 0.005, 1),
        30,
        pgd(8 / 255, 2 / 255),
        10_000,
        ships=False,
    ),
}
