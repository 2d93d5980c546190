"""Detectors of scaled and shifted images: against scikit-learn, simulation and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn.functional import softmax

import advnb
from advnb import Attack, OnManifold, Pixels, Split, blindspots, plots, stats
from advnb.blindspots import auc, detect, shifted
from advnb.embedding import pixels
from advnb.models import CNN, logits

from .conftest import refused


@pytest.fixture
def robust() -> CNN:
    model = advnb.zoo.load("fonts-cnn-adversarial")
    assert isinstance(model, CNN)
    return model


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_auc_against_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    a, b = (torch.tensor(side).double() for side in zip(*pairs))
    found = auc(a, b)
    truth = [0] * len(a) + [1] * len(b)
    assert found.value == pytest.approx(roc_auc_score(truth, [*a.tolist(), *b.tolist()]))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert auc(b, a).value == pytest.approx(1 - found.value)


@pytest.mark.parametrize(("shift", "together"), [(0.0, 0.0), (0.5, 0.9), (1.5, 0.6)])
def test_the_interval_covers(shift: float, together: float) -> None:
    # pairs with a correlation: a truth that is known, and what a bootstrap of images finds
    truth, n, stream = norm.cdf(shift / 2**0.5), 80, stats.generator(1)
    inside, widths, spreads = 0, [], []
    for repeat in range(300):
        a, noise = torch.randn(2, n, generator=stream).double()
        b = shift + together * a + (1 - together**2) ** 0.5 * noise
        found = auc(a, b)
        inside += found.low <= truth <= found.high
        if repeat < 10:
            rows = torch.randint(n, (150, n), generator=stream)
            again = torch.tensor([auc(a[row], b[row]).value for row in rows])
            widths.append(found.high - found.low)
            spreads.append(2 * stats.Z95 * again.std().item())
    assert 0.92 <= inside / 300 <= 0.98
    assert sum(widths) == pytest.approx(sum(spreads), rel=0.15)


def test_auc_at_the_ends() -> None:
    x = torch.rand(50, generator=stats.generator(0))
    same, apart = auc(x, x), auc(x, x + 1)
    assert (same.value, same.low, same.high) == (0.5, 0.5, 0.5)  # no rank has changed
    assert apart.value == apart.high == 1
    assert apart.low == stats.rate(torch.ones(50, dtype=torch.bool)).low


def test_detect_against_a_count(robust: CNN, fonts: advnb.Dataset) -> None:
    split, train = fonts.test(60), fonts.train(150)
    attack = Attack(Pixels(0.03), steps=4, lr=0.01, optimizer="sign", start="uniform")
    names = {"own": robust.features, "pixels": pixels}
    found = detect(robust, train, split, 0.8, 0.1, attack=attack, features=names, k=3)
    moved = shifted(split, 0.8, 0.1)
    right = torch.ones(60, dtype=torch.bool)
    for images in (split, moved):
        right &= logits(robust, images).argmax(1) == split.y
    assert torch.equal(found.right, right)
    assert 2 <= right.sum() < 60
    for images, scores in ((split[right], found.original), (moved[right], found.transformed)):
        with torch.no_grad():
            rows, among = robust.features(images.x), robust.features(train.x)
            sure = softmax(robust(images.x).double(), 1).amax(1)
        near = torch.cdist(rows.double(), among.double()).sort(1).values[:, :3].mean(1)
        flat = images.x.flatten(1)
        far = torch.cdist(flat.double(), train.x.flatten(1).double()).sort(1).values[:, :3].mean(1)
        expected = {
            "distance, own": near,
            "distance, pixels": far,
            "1 - max probability": 1 - sure,
            "darkest pixel": flat.min(1).values,
            "missing contrast": 1 - flat.max(1).values + flat.min(1).values,
        }
        assert list(scores) == list(expected)
        for name, values in expected.items():
            assert torch.allclose(scores[name].double(), values.double(), atol=1e-5), name
    assert found.success_before == attack(robust, split[right]).success_rate("images")
    assert found.success == attack(robust, moved[right]).success_rate("images")
    assert found.success.n == right.sum()
    for name, area in found.auc.items():
        assert area == auc(found.original[name], found.transformed[name])


class Sums(nn.Module):
    """Two classes by whether the left half is the brighter one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.flatten(1).chunk(2, 1)
        return torch.stack([left.sum(1), right.sum(1)], 1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def test_the_cheats() -> None:
    x = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 1], [1, 0.5, 0, 0], [0, 0, 0, 1]])
    split = Split(x.view(4, 1, 1, 4), torch.tensor([0, 1, 0, 1]))

    def areas(beta: float) -> dict[str, float]:
        found = detect(Sums(), split, split, 0.8, beta, k=1)
        assert found.success is None
        # a linear model is less sure of less contrast
        sure = "1 - max probability"
        assert (found.transformed[sure] > found.original[sure]).all()
        return {name: area.value for name, area in found.auc.items()}

    grey, black = areas(0.1), areas(-0.1)
    assert grey["darkest pixel"] == grey["missing contrast"] == 1
    # the darkest shift leaves black black: only the white that is gone tells
    assert black["darkest pixel"] == 0.5
    assert black["missing contrast"] == 1
    assert grey["distance, own features"] == 1


def test_the_model_comes_back_as_it_was(fonts: advnb.Dataset, robust: CNN) -> None:
    expected = detect(robust, fonts.train(50), fonts.test(30), 0.9, 0)
    robust.train()
    try:
        found = detect(robust, fonts.train(50), fonts.test(30), 0.9, 0)
        assert robust.training
    finally:
        robust.eval()
    for name, scores in expected.transformed.items():
        assert torch.equal(found.transformed[name], scores)


def test_mnist_as_in_figure_5(mnist: advnb.Dataset) -> None:
    model = advnb.zoo.load("mnist-cnn-adversarial")
    attack = Attack(Pixels(0.3), steps=20, lr=0.03, optimizer="sign", start="uniform")
    found = detect(model, mnist.train(1000), mnist.test(100), 0.9, 0.05, attack=attack)
    assert found.success_before is not None
    assert found.success is not None
    assert found.success_before.high < 0.3 < 0.7 < found.success.low
    area = found.auc["distance, own features"]
    assert 0.45 < area.low <= area.high < 0.55
    assert found.auc["darkest pixel"].value == 1


def test_colour_and_other_sizes() -> None:
    stream = stats.generator(0)
    x = torch.rand(12, 3, 5, 7, generator=stream)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(105, 3)).eval()
    with torch.no_grad():
        split = Split(x, model(x).argmax(1))
    found = detect(model, split, split, 0.99, 0, features={"pixels": pixels}, k=2)
    assert found.right.sum() >= 2
    with torch.no_grad():
        none = Split(x, (model(x).argmax(1) + 1) % 3)
    with refused("0 of 12 images right .* take more images"):
        detect(model, none, none, 0.99, 0, features={"pixels": pixels})


def test_the_picture(robust: CNN, fonts: advnb.Dataset) -> None:
    found = detect(robust, fonts.train(50), fonts.test(40), 0.8, 0.1)
    picture = plots.detection(found, "FONTS", "alt")
    shown = [axes for axes in picture.axes if axes.get_visible()]
    assert len(shown) == len(found.auc)
    for axes, (name, area) in zip(shown, found.auc.items()):
        assert axes.get_title() == (
            f"{name}\nAUC {area.value:.2f} [{area.low:.2f}, {area.high:.2f}]"
        )
        heights = [patch.get_height() for patch in axes.patches]
        assert sum(heights) == pytest.approx(2)  # every image once, in either histogram
    assert len(picture.png()) > 5000


def test_bad_input(robust: CNN, fonts: advnb.Dataset) -> None:
    split, plain = fonts.test(5), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with refused("no features of its own: name some"):
        detect(plain, split, split, 0.9, 0)
    with refused("features must be a dict of names and functions"):
        detect(robust, split, split, 0.9, 0, features=pixels)  # type: ignore[arg-type]
    with refused("attack must be an Attack or None"):
        detect(robust, split, split, 0.9, 0, attack="pgd")  # type: ignore[arg-type]
    along = Attack(OnManifold(fonts.manifold, 0.3))  # it would attack the untouched images twice
    with refused("have no code on the manifold: attack their pixels"):
        detect(robust, split, split, 0.9, 0, attack=along)
    with refused("choose beta within valid_shift"):
        detect(robust, split, split, 0.9, 0.2)
    with refused("a Split is needed, use its .train"):
        detect(robust, fonts, fonts, 0.9, 0)  # type: ignore[arg-type]
    with refused("without NaN"):
        auc(torch.tensor([1.0, torch.nan]), torch.ones(2))
    with refused("a tensor"):
        auc([1, 2], [1, 2])  # type: ignore[arg-type]
    with refused("same 2 images or more; got 1 and 1"):
        auc(torch.ones(1), torch.ones(1))
    with refused("got 3 and 2"):
        auc(torch.ones(3), torch.ones(2))
    assert "detect" in blindspots.__all__


def test_histograms_show_what_is_below_zero() -> None:
    groups = {"one": torch.tensor([-1.0, -0.5, 0.2, 1.0]), "other": torch.tensor([-3.0, -2.0])}
    (axes,) = plots.histograms(groups).axes
    outlines = [patch.get_xy() for patch in axes.patches]  # up and down at every edge of a bin
    widths = np.diff(outlines[0][:, 0])
    bars = [(np.diff(line[:, 0]) * line[1:, 1]).clip(0).sum() for line in outlines]
    assert [bar / widths.max() for bar in bars] == pytest.approx([1, 1])
    assert outlines[1][:, 0].min() == -3


def test_curves_show_what_is_below_zero() -> None:
    for values, low in (([0.5, 0.2], 0), ([float("nan"), 0.2], 0), ([0.5, -0.2], None)):
        (axes,) = plots.curves({"one": values, "other": torch.tensor([0.1, 0.3])}).axes
        bottom, top = axes.get_ylim()
        assert bottom < min(values) < max(values) < top or bottom == low
