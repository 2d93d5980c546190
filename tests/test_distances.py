"""Attack success against distance, and data sets beside each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import advnb
from advnb import distance_to_training_set, distances, zoo
from advnb.distances import Cell, PlaneCell, bins, cells, features_of, plane_cells, relation, run
from advnb.divergence import kl_by_class
from advnb.embedding import Standardised, embed, project
from advnb.models import accuracy
from advnb.profiles import PROFILES
from advnb.stats import generator, rate

from .conftest import refused

SMOKE = replace(PROFILES["smoke"], far=80, plane=80, neighbours=300, restarts=1)


def toy(n: int, slope: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Distances, and who is fooled with log odds that grow by `slope` a standard deviation."""
    stream = generator(seed)
    distance = 5 + torch.randn(n, generator=stream)
    return distance, torch.rand(n, generator=stream) < torch.sigmoid(slope * (distance - 5) - 1)


# the claim ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slope", "words"),
    [(1.0, "grows with the distance"), (-1.0, "FALLS with the distance"), (0.0, "cannot be told")],
)
def test_the_sentence_follows_the_numbers(slope: float, words: str) -> None:
    found = relation(*toy(2000, slope))
    assert found.slope.low < slope < found.slope.high
    assert words in found.sentence("toys")
    assert np.sign(found.further.value) == np.sign(found.rank.value) or slope == 0
    assert f"{found.fooled:,} of 2,000" in found.sentence("toys")


def test_a_relation_by_hand() -> None:
    distance = torch.tensor([1.0, 2, 3, 4, 5, 6])
    fooled = torch.tensor([False, True, False, False, True, True])
    found = relation(distance, fooled)
    assert found.further.value == pytest.approx(13 / 3 - 8 / 3)
    assert (found.fooled, found.n) == (3, 6)
    assert found.rank.value == pytest.approx(0.4879500364742666)  # Spearman with ties, by hand


def test_nobody_fooled_is_no_relation() -> None:
    found = relation(torch.arange(9.0), torch.zeros(9, dtype=torch.bool))
    assert "cannot be told" in found.sentence("nothing")
    assert np.isnan(found.slope.value)


def test_bins_hold_every_image_once() -> None:
    distance, fooled = toy(500, 1.0)
    table = bins(distance, fooled, count=9, least=12)
    assert table.n.sum() == 500
    assert table.low.iloc[0] == distance.min()
    assert table.high.iloc[-1] == distance.max()
    np.testing.assert_allclose(table.high[:-1], table.low[1:])
    counts, _ = np.histogram(distance.double().numpy(), [*table.low, table.high.iloc[-1]])
    assert table.n.tolist() == counts.tolist()
    for row in table.itertuples():
        inside = (distance >= row.low) & (distance < row.high)
        if row.n < 12:
            assert row.success is None
        elif row.Index < 8:
            assert row.success == rate(fooled[inside])


# cells --------------------------------------------------------------------------------------------


def test_cells_are_the_profiles() -> None:
    made = cells("fonts", SMOKE)
    assert {(c.train, c.images, c.restarts) for c in made} == {(300, 80, 1)}
    assert [(c.features, c.k) for c in made] == [
        *((name, k) for name in ("adversarial", "normal") for k in (1, 5, 10, 100)),
        ("pca", 5), ("pixels", 5),
    ]  # fmt: skip
    assert {c.projection for c in plane_cells("fonts", SMOKE)} == {"tsne", "umap"}


def test_a_cell_measures_what_its_parts_say(fonts: advnb.Dataset, tmp_path: Path) -> None:
    cell = Cell("fonts", "adversarial", 5, 300, 80, 1)
    (row,) = run([cell], cache=tmp_path, progress=False).to_dict("records")
    model, train, test = zoo.load("fonts-cnn-adversarial"), fonts.train(300), fonts.test(80)
    attack = replace(zoo.entry("fonts-cnn-adversarial").attack, restarts=1)
    result = attack(model, test)
    assert row["error"] == ""
    assert row["accuracy"] == accuracy(model, test).value
    assert row["success"] == result.success_rate("images").value
    away = distance_to_training_set(model.features, train, test)
    found = relation(away[result.correct], result.success[0][result.correct])
    assert (row["slope"], row["slope_low"]) == (found.slope.value, found.slope.low)
    alike = distance_to_training_set(Standardised(model.features, train), train, test)
    assert row["distance"] == pytest.approx(alike.mean().item(), rel=1e-6)
    assert row["distance_low"] < row["distance"] < row["distance_high"]


def test_a_plane_cell_measures_what_its_parts_say(fonts: advnb.Dataset, tmp_path: Path) -> None:
    cell = PlaneCell("fonts", "normal", "pca", 120, 100, 3)
    (row,) = run([cell], cache=tmp_path, progress=False).to_dict("records")
    train, test = fonts.train(120), fonts.test(100)
    features = features_of("fonts", "normal", train)
    a, b = project(embed(features, train), embed(features, test), "pca", seed=3)
    found = kl_by_class(a, train.y, b, test.y)
    assert row["error"] == ""
    assert (row["kl"], row["kl_low"], row["bias"]) == (found.value, found.low, found.bias)


def test_sets_without_data_are_left_out(unkept: Path) -> None:
    assert distances.available() == ["fonts"]


def test_bad_input_is_one_line() -> None:
    with refused("features must be one of adversarial, normal, pca, pixels; got 'deep'"):
        features_of("fonts", "deep", advnb.load("fonts").train(10))
    with refused("cells must be all Cell or all PlaneCell"):
        run([])
    for distance, fooled in (
        (torch.zeros(5), torch.zeros(4, dtype=torch.bool)),
        (torch.zeros(5), torch.zeros(5)),
    ):
        with refused("must be of the same images"):
            relation(distance, fooled)
    with refused("four finite distances"):
        bins(torch.full((5,), float("nan")), torch.zeros(5, dtype=torch.bool))
    with refused("count must be a whole number"):
        bins(torch.zeros(5), torch.zeros(5, dtype=torch.bool), count=0)
