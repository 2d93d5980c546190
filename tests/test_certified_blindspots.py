"""Certificates in the blind spot, and what no classifier can hold: against closed forms and brute
force over all sets of images."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import advnb
from advnb import Affine, Attack, Pixels, Split, blindspots, certify, plots, stats
from advnb.blindspots import certified_table, robust_limits, separation, shifted
from advnb.relaxations import Inner

from .conftest import refused

PAIRS = [(1.0, 0.0), (0.9, 0.05), (0.5, -0.2)]


def images(n: int, shape: tuple[int, int, int], classes: int, seed: int = 0) -> Split:
    x = torch.rand(n, *shape, generator=stats.generator(seed)).double()
    return Split(x, torch.arange(n) % classes)


def test_a_linear_model_in_closed_form() -> None:
    # the worst image of the box is known: what is not proved is broken, and nothing in between
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 2)).double().eval()
    row = torch.tensor([1.0, -0.7, 0.5, -1.1, 0.2, 0.1])
    model.load_state_dict({"1.weight": torch.stack([row, -row]), "1.bias": torch.zeros(2)})
    split = images(80, (1, 2, 3), 2)
    with torch.no_grad():
        split = Split(split.x, model(split.x).argmax(1))
        split.y[:5] = 1 - split.y[:5]
    eps, weight = 0.1, (model[1].weight[0] - model[1].weight[1]).detach()
    attack = Attack(Pixels(0.7), steps=5, lr=0.1, optimizer="sign")
    table = certified_table(model, split, eps, PAIRS, attack=attack, progress=False)
    assert list(zip(table.alpha, table.beta)) == PAIRS
    for told in table.itertuples():
        moved = shifted(split, told.alpha, told.beta).x
        sign = 1 - 2 * split.y
        with torch.no_grad():
            right = model(moved).argmax(1) == split.y
        for size, ending in ((eps, ""), (told.alpha * eps, "_scaled")):
            signed = sign[:, None] * weight
            low, high = (moved - size).clamp_min(0), (moved + size).clamp_max(1)
            worst = torch.where(signed > 0, low.flatten(1), high.flatten(1))
            holds = (signed * worst).sum(1) > 0
            for name in ("robust", "certified"):
                assert getattr(told, name + ending) == stats.rate(holds), (name, ending)
            assert getattr(told, "certified_error" + ending) == stats.rate(~holds)
            assert getattr(told, "success" + ending) == stats.rate(~holds[right])
        assert told.accuracy == stats.rate(right)
        assert told.contradictions == 0
    assert 0.2 < table.certified[0].value < 0.9  # there is something to tell


def small() -> tuple[nn.Module, Split]:
    """A small random network and images with its own labels, but for one."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 16), nn.ReLU(),
        nn.Linear(16, 3),
    ).eval()  # fmt: skip
    split = images(20, (1, 6, 6), 3)
    split = split.with_x(split.x.float())
    with torch.no_grad():
        split = Split(split.x, model(split.x).argmax(1))
    split.y[0] = (split.y[0] + 1) % 3
    return model, split


@pytest.mark.parametrize("inner", ["ibp", "backward"])
def test_the_order_of_the_rates(inner: Inner) -> None:
    model, split = small()
    table = certified_table(model, split, 0.1, PAIRS, inner=inner, progress=False)
    for row in table.itertuples():
        assert row.certified.value <= row.robust.value <= row.accuracy.value < 1
        assert row.certified.value <= row.certified_scaled.value
        moved = shifted(split, row.alpha, row.beta)
        for size, rate in ((0.1, row.certified), (row.alpha * 0.1, row.certified_scaled)):
            assert rate == stats.rate(certify.certified(model, moved, size, inner=inner))
        assert row.contradictions == 0
    first = table.iloc[0]
    assert 0 < first.certified.value < first.robust.value < first.accuracy.value
    assert first.certified == first.certified_scaled


def test_the_certificate_collapses(mnist: advnb.Dataset) -> None:
    model = advnb.zoo.load("mnist-small-certified")
    attack = Attack(Pixels(0.1), steps=10, lr=0.02, optimizer="sign", start="uniform")
    pairs = [(1, 0), (0.9, 0.05)]
    table = certified_table(model, mnist.test(50), pairs=pairs, attack=attack, progress=False)
    first, last = table.certified_error.iloc[0], table.certified_error.iloc[-1]
    assert first.value <= 0.12
    assert last.value >= 5 * first.value
    assert table.accuracy.iloc[-1].value >= 0.95
    assert table.contradictions.sum() == 0


@given(
    levels=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=2, max_size=8),
    classes=st.integers(2, 3),
    ratio=st.sampled_from([0, 0.25, 0.3, 0.5, 0.75, 1, 1.5]),
)
def test_limits_against_all_sets(levels: list[list[int]], classes: int, ratio: float) -> None:
    x = torch.tensor(levels).float() / 4
    n = len(x)
    split = Split(x.view(n, 1, 1, 3), torch.arange(n) % classes)
    clash = {
        (i, j)
        for i, j in combinations(range(n), 2)
        if i % classes != j % classes and max(abs(x[i] - x[j])) <= ratio
    }
    best = max(
        len(chosen)
        for size in range(1, n + 1)
        for chosen in combinations(range(n), size)
        if not clash.intersection(combinations(chosen, 2))
    )
    row = robust_limits(split, [ratio]).iloc[0]
    assert row.ratio == ratio
    assert row.possible <= best / n <= row.bound
    if classes == 2:  # a bipartite graph: matching and cover are one (König)
        assert row.bound == best / n
    assert row.in_conflict.value == pytest.approx(len({i for pair in clash for i in pair}) / n)
    far = separation(split)
    for k in range(n):
        others = [max(abs(x[k] - x[j])).item() for j in range(n) if (j - k) % classes]
        assert far.distance[k].item() == min(others)
        assert max(abs(x[k] - x[far.index[k]])) == min(others)
        assert (far.index[k] - k) % classes


def test_the_same_grey() -> None:
    # full contrast in every image, classes of 2, 3 and 5
    stream = stats.generator(0)
    x = (torch.rand(10, 1, 4, 4, generator=stream) < 0.5).double()
    split = Split(x, torch.tensor([0] * 2 + [1] * 3 + [2] * 5))
    below, at = robust_limits(split, [0.999, 1.0]).itertuples()
    assert below.possible == below.bound == 1
    assert at.possible == at.bound == 0.5
    alpha = 0.7
    moved = shifted(split, alpha, 0.15).x
    grey = torch.full_like(moved[0], 0.3 + alpha / 2)
    assert (moved - grey).abs().max().item() == pytest.approx(alpha / 2)


def test_images_that_can_be_held_and_that_cannot() -> None:
    split, alpha, beta = images(30, (3, 2, 2), 3), 0.8, 0.1
    moved, far = shifted(split, alpha, beta), separation(split)
    flat, stream = moved.x.flatten(1), stats.generator(3)
    eps = 0.499 * alpha * far.distance.min().item()
    assert robust_limits(split, [2 * eps / alpha]).possible[0] == 1
    for _ in range(20):  # a nearest neighbour holds them all, in the corners of the boxes too
        sign = (torch.rand(flat.shape, generator=stream) < 0.5) * 2 - 1
        attacked = (flat + eps * sign).clamp(0, 1)
        guess = split.y[torch.cdist(attacked, flat, p=torch.inf).argmin(1)]
        assert torch.equal(guess, split.y)
    k = int(far.distance.argmin())
    other = int(far.index[k])
    meeting = (flat[k] + flat[other]) / 2
    eps = alpha * far.distance[k].item() / 2 + 1e-12
    assert robust_limits(split, [2 * eps / alpha]).bound[0] == 29 / 30
    for row in (k, other):
        assert (meeting - flat[row]).abs().max() <= eps
    assert split.y[k] != split.y[other]


def test_images_exactly_on_the_limit() -> None:
    x = torch.tensor([0.1, 0.3]).view(2, 1, 1, 1)
    assert (x[1] - x[0]).item() > 0.2  # as float32 has it
    assert robust_limits(Split(x, torch.tensor([0, 1])), [0.1999, 0.2]).bound.tolist() == [1, 0.5]


def test_among_others_and_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    split, among = images(7, (1, 3, 3), 2), images(40, (1, 3, 3), 4, seed=1)
    monkeypatch.setattr(blindspots.corner, "CELLS", 30)
    far = separation(split, among)
    for k in range(7):
        away = np.abs(among.x.numpy() - split.x[k].numpy()).max((1, 2, 3))
        away[among.y.numpy() == split.y[k].item()] = np.inf
        assert far.distance[k].item() == away.min()
        assert far.index[k].item() == away.argmin()
    alone = Split(split.x, torch.zeros(7, dtype=torch.int64))
    assert separation(alone).distance.isinf().all()
    assert robust_limits(alone, [1]).bound[0] == 1


def test_the_papers_columns_can_be_held(mnist: advnb.Dataset, fashion: advnb.Dataset) -> None:
    for data in (mnist, fashion):
        split = data.test(150)
        ratios = [2 * blindspots.radius(split) / a for a, _ in blindspots.columns(split)]
        assert robust_limits(split, ratios).possible.min() == 1


def test_pictures() -> None:
    model, split = small()
    limits = robust_limits(split, [0, 0.5, 1])
    picture = plots.corner(limits, 0.3, [(0.7, 0.15), (0.7, 0), (1, 0)], "FONTS")
    circles = [line.get_xdata() for line in picture.axes[0].lines if line.get_marker() == "o"]
    assert [list(row) for row in circles] == [[0.7, 1]]
    shown = picture.axes[0].collections[0].get_array()
    assert isinstance(shown, np.ma.MaskedArray)
    assert set(np.unique(shown)) <= {*limits.bound}
    assert shown.min() == limits.bound.min()
    table = certified_table(model, split, 0.01, PAIRS[:2], progress=False)
    picture = plots.certificates(table, 0.01, "FONTS")
    heights = [bar.get_height() for bar in picture.axes[0].patches]
    names = ("accuracy", "robust", "certified")
    assert heights == [rate.value for name in names for rate in table[name]]
    assert len(picture.png()) > 5000


def bad(x: Tensor | None = None) -> Split:
    return Split(torch.zeros(2, 1, 2, 2) if x is None else x, torch.tensor([0, 1]))


def test_bad_input() -> None:
    model, split = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), bad()
    for eps in (0, -1, 2, "a"):
        with refused("eps must be a positive number"):
            certified_table(model, split, eps)  # type: ignore[arg-type]
    with refused("not valid for alpha = 0.9: it may go from"):
        certified_table(model, split, 0.1, [(0.9, 0.2)])
    with refused("attack must be an Attack or None"):
        certified_table(model, split, 0.1, attack=0.1)  # type: ignore[arg-type]
    with refused("a Split is needed"):
        certified_table(model, split.x, 0.1)  # type: ignore[arg-type]
    default = certified_table(model, split, progress=False)
    assert list(zip(default.alpha, default.beta)) == blindspots.columns(split)
    with refused("inner must be one of"):
        certified_table(model, split, 0.1, inner="lp", progress=False)  # type: ignore[arg-type]
    for other in (Pixels(0.05, "l2"), Affine(0.1)):  # what would be replaced
        with refused(r"of pixels in L-infinity: take Attack\(Pixels\(0.1\)\); got "):
            certified_table(model, split, 0.1, attack=Attack(other), progress=False)
    for ratio in (-1, np.inf, -np.inf, np.nan):
        with refused("ratio 2 \\* eps / alpha must be a number >= 0"):
            robust_limits(split, [1, ratio])
    with refused("a Split is needed"):
        robust_limits(split.x, [1])  # type: ignore[arg-type]
    with refused("images must be of one size"):
        separation(split, bad(torch.zeros(2, 1, 2, 3)))
