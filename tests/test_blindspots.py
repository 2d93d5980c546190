"""Scaling and shifting by the paper's formula, and the table against a brute-force count."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import advnb
from advnb import Attack, Pixels, blindspots, scale_shift, valid_shift
from advnb.models import CNN

from .conftest import refused

# (alpha, beta): success at eps and at alpha * eps, in per cent, as printed in tables 2 to 5
PRINTED = {
    ("adversarial", "mnist"): {
        (1, 0): (9.7, None),
        (0.9, 0): (75.2, 15.2),
        (0.9, 0.05): (93.65, 82.5),
        (0.8, 0): (94.85, 52.3),
        (0.8, 0.1): (99.55, 95.45),
        (0.7, 0): (98.6, 82.45),
        (0.7, 0.15): (99.95, 99.95),
    },
    ("adversarial", "fashion"): {
        (1, 0): (6.4, None),
        (0.95, 0): (11.25, 9.05),
        (0.95, 0.025): (22.55, 18.55),
        (0.9, 0): (25.7, 19.15),
        (0.9, 0.05): (62.6, 55.95),
    },
    ("certified", "mnist"): {
        (1, 0): (2.15, None),
        (0.95, 0): (5.55, 4.35),
        (0.95, 0.025): (28.5, 17.55),
        (0.9, 0): (30.1, 15.4),
        (0.9, 0.05): (86.35, 80.7),
    },
    ("certified", "fashion"): {
        (1, 0): (6.85, None),
        (0.95, 0): (15.45, 9.3),
        (0.95, 0.025): (39.75, 29.35),
        (0.9, 0): (34.25, 24.65),
        (0.9, 0.05): (69.95, 65.2),
    },
    ("wrm", "mnist"): {
        (1, 0): (12.2, None),
        (0.95, 0): (27.05, 22.95),
        (0.95, 0.025): (36.15, 30.9),
        (0.9, 0): (45.25, 31.55),
        (0.9, 0.05): (58.9, 45.6),
    },
    ("wrm", "fashion"): {
        (1, 0): (31.4, None),
        (0.95, 0): (46.3, 41.1),
        (0.95, 0.025): (58.0, 53.3),
        (0.9, 0): (61.2, 51.8),
        (0.9, 0.05): (69.1, 62.85),
    },
}


def images() -> torch.Tensor:
    return torch.rand(3, 1, 5, 5, generator=advnb.stats.generator(0))


@given(alpha=st.floats(0.01, 1), part=st.floats(-1, 1))
def test_the_papers_formula(alpha: float, part: float) -> None:
    beta = part * (1 - alpha) / 2
    x = images().double()
    expected = (alpha * (x - 0.5) + beta) + 0.5  # pixels read in [-0.5, 0.5]
    assert torch.allclose(scale_shift(x, alpha, beta), expected, atol=1e-12)
    assert torch.allclose(scale_shift(x.float(), alpha, beta), expected.float(), atol=1e-6)


def test_black_and_white() -> None:
    black_and_white = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)

    def levels(alpha: float, beta: float) -> list[float]:
        return scale_shift(black_and_white, alpha, beta).flatten().tolist()

    assert levels(1, 0) == [0, 1]
    assert levels(0.7, 0) == pytest.approx([0.15, 0.85])
    assert levels(0.7, 0.15) == pytest.approx([0.30, 1])
    assert levels(0.9, -0.05) == pytest.approx([0, 0.9])


def test_nothing_to_do_changes_nothing() -> None:
    assert torch.equal(scale_shift(images(), 1, 0), images())


@given(alpha=st.floats(0.01, 1))
def test_valid_shift_is_tight(alpha: float) -> None:
    x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    low, high = valid_shift(alpha)
    assert (low, high) == pytest.approx((-(1 - alpha) / 2, (1 - alpha) / 2))
    for beta in (low, high, (low + high) / 2):
        moved = scale_shift(x, alpha, beta)
        assert moved.min() >= 0
        assert moved.max() <= 1
    for beta in (low - 1e-4, high + 1e-4):
        with refused(r"outside \[0, 1\]: choose beta within valid_shift"):
            scale_shift(x, alpha, beta)


@pytest.mark.parametrize("alpha", [0, -0.5, math.nan, math.inf])
def test_bad_alpha(alpha: float) -> None:
    with refused("alpha"):
        scale_shift(images(), alpha, 0)
    with refused("alpha"):
        valid_shift(alpha)


def test_bad_beta_and_large_alpha() -> None:
    for beta, words in ((math.nan, "beta must be"), (math.inf, "beta must be"), (0.3, "outside")):
        with refused(words):
            scale_shift(images(), 0.9, beta)
    with refused("outside"):
        scale_shift(images(), 1.5, 0)
    grey = torch.full((1, 1, 2, 2), 0.5)
    assert torch.equal(scale_shift(grey, 1.5, 0), grey)  # no pixel leaves
    with refused("no other has a valid shift"):
        valid_shift(1.5)


def test_shifted_keeps_labels_and_order(fonts: advnb.Dataset) -> None:
    split = fonts.test(30)
    moved = blindspots.shifted(split, 0.8, 0.1)
    assert torch.equal(moved.y, split.y)
    assert torch.allclose(moved.x, 0.8 * split.x + 0.2)
    assert moved.dataset is split.dataset


@pytest.mark.parametrize("name", PRINTED)
def test_the_printed_numbers(name: tuple[str, str]) -> None:
    rows = {(p.alpha, p.beta): p for p in blindspots.PRINTED[name]}
    assert set(rows) == set(PRINTED[name])
    for pair, (success, scaled) in PRINTED[name].items():
        assert rows[pair].success == pytest.approx(success / 100)
        # at alpha = 1 the two radii are one
        assert rows[pair].success_scaled == pytest.approx((scaled or success) / 100)
        assert 0.79 < rows[pair].accuracy < 1
        low, high = valid_shift(pair[0])
        assert low - 1e-9 <= pair[1] <= high + 1e-9


def test_table_against_a_count(trained: CNN, fonts: advnb.Dataset) -> None:
    split = fonts.test(40)
    attack = Attack(Pixels(0.03), steps=6, lr=0.01, optimizer="sign", restarts=2)
    pairs = [(1, 0), (0.8, 0.1), (0.9, -0.05)]
    table = blindspots.table(trained, split, attack, pairs, progress=False)
    assert list(zip(table.alpha, table.beta)) == pairs
    assert set(table.columns) == {
        "alpha", "beta", "accuracy", "success", "success_scaled",
        "printed_accuracy", "printed_success", "printed_scaled",
    }  # fmt: skip
    for row in table.itertuples():
        moved = split.with_x((row.alpha * (split.x - 0.5) + row.beta + 0.5).clamp(0, 1))
        for eps, rate in ((0.03, row.success), (row.alpha * 0.03, row.success_scaled)):
            scaled = Attack(Pixels(eps), steps=6, lr=0.01, optimizer="sign", restarts=2)
            found = scaled(trained, moved).x
            with torch.no_grad():
                right = trained(moved.x).argmax(1) == split.y
                fooled = torch.stack([trained(x).argmax(1) != split.y for x in found]).any(0)
            hits = (fooled & right).sum().item()
            assert rate.n == right.sum().item()
            # a pixel may round differently in the formula written here
            assert abs(rate.value * rate.n - hits) <= 1
        assert row.accuracy.n == 40
        assert row.accuracy.value == pytest.approx(right.float().mean().item())
        assert math.isnan(row.printed_success)  # nothing is printed for FONTS
        if row.alpha == 1:
            assert row.success_scaled == row.success
        else:
            assert row.success_scaled.value <= row.success.value


def test_a_table_of_smallest_changes(trained: CNN, fonts: advnb.Dataset) -> None:
    split, pairs = fonts.test(30), [(1.0, 0.0), (0.7, 0.1)]
    attack = advnb.CarliniWagner("linf", searches=4, steps=5)
    table = blindspots.table(trained, split, attack, pairs, progress=False)
    for (alpha, beta), row in zip(pairs, table.itertuples()):
        result = attack(trained, blindspots.shifted(split, alpha, beta))
        smallest = result.distances.amin(0)[result.correct]
        for rate, eps in ((row.success, 0.1), (row.success_scaled, alpha * 0.1)):
            assert rate.value == (smallest <= eps).double().mean().item()
        assert row.success.value >= row.success_scaled.value
    for other in (advnb.CarliniWagner(), Attack(Pixels(1.5, "l2"))):
        with refused("radii are L-infinity: take .* got "):
            blindspots.table(trained, split, other, pairs)


def test_default_columns(mnist: advnb.Dataset) -> None:
    attack = Attack(Pixels(0.1), steps=1)
    table = blindspots.table(CNN(3).eval(), mnist.test(20), attack, progress=False)
    assert dict(zip(zip(table.alpha, table.beta), 100 * table.printed_success)) == pytest.approx(
        {pair: success for pair, (success, _) in PRINTED["adversarial", "mnist"].items()}
    )
    assert blindspots.radius(mnist.test(2)) == 0.3
    assert blindspots.radius(mnist.test(2), "wrm") == blindspots.radius(mnist.test(2), "certified")
    table = blindspots.table(CNN(3).eval(), mnist.test(20), attack, None, False, defence="wrm")
    assert dict(zip(zip(table.alpha, table.beta), 100 * table.printed_success)) == pytest.approx(
        {pair: success for pair, (success, _) in PRINTED["wrm", "mnist"].items()}
    )


def test_radius_and_columns_by_data_set(fonts: advnb.Dataset) -> None:
    assert blindspots.radius(fonts.test(2)) == 0.1
    assert set(blindspots.columns(fonts.test(2))) == set(PRINTED["adversarial", "fashion"])
    assert blindspots.printed(fonts.test(2), 0.9, 0) is None
    with refused("defence must be one of"):
        blindspots.columns(fonts.test(2), "wong")  # type: ignore[arg-type]
