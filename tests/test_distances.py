"""Attack success against distance, and data sets beside each other."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import advnb
from advnb import comparisons, distance_to_training_set, plots, zoo
from advnb.__main__ import main
from advnb.comparisons import Cell, PlaneCell, cells, plane_cells, run
from advnb.distances import FEATURES, attacked, bins, features_of, relation
from advnb.divergence import kl_by_class
from advnb.embedding import Standardised, embed, project
from advnb.models import accuracy
from advnb.profiles import PROFILES
from advnb.stats import generator, rate
from advnb.sweeps import key

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
        *((name, 5) for name in ("adversarial-unit", "normal-unit", "pca", "pixels")),
    ]  # fmt: skip
    planes = plane_cells("fonts", SMOKE, ("tsne", "umap"))
    assert [(c.features, c.projection) for c in planes] == [
        ("adversarial", "tsne"), ("adversarial", "umap"), ("normal", "tsne"), ("normal", "umap"),
    ]  # fmt: skip


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
    (sentence,) = comparisons.sentences(run([cell], cache=tmp_path, progress=False))
    assert sentence == found.sentence("FONTS (hard), adversarial features, k = 5")
    alike = distance_to_training_set(Standardised(model.features, train), train, test)
    assert row["distance"] == pytest.approx(alike.mean().item(), rel=1e-6)
    assert row["distance_low"] < row["distance"] < row["distance_high"]


def test_what_was_attacked_once_is_not_changed_by_its_users() -> None:
    first = attacked("fonts", 20, 1)
    for flags in attacked("fonts", 20, 1):
        flags.logical_not_()
    assert all(torch.equal(a, b) for a, b in zip(first, attacked("fonts", 20, 1)))


def test_a_plane_cell_measures_what_its_parts_say(fonts: advnb.Dataset, tmp_path: Path) -> None:
    cell = PlaneCell("fonts", "normal", "pca", 120, 100, 3)
    (row,) = run([cell], cache=tmp_path, progress=False).to_dict("records")
    train, test = fonts.train(120), fonts.test(100)
    features = features_of("fonts", "normal", train)
    a, b = project(embed(features, train), embed(features, test), "pca", seed=3)
    found = kl_by_class(a, train.y, b, test.y)
    assert row["error"] == ""
    assert (row["kl"], row["kl_low"], row["bias"]) == (found.value, found.low, found.bias)


def test_sets_without_data_or_models_are_left_out(
    unkept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert comparisons.available() == ["fonts"]
    monkeypatch.setattr(comparisons, "find", lambda name: Path(name))
    assert comparisons.available() == ["fashion", "mnist", "cifar10", "fonts"]
    monkeypatch.setattr(zoo, "made", lambda name: True)  # traffic signs, once trained
    assert comparisons.available()[-1] == "gtsrb"


def test_bad_input_is_one_line() -> None:
    with refused("features must be one of adversarial, normal, .*, pca, pixels; got 'deep'"):
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


def test_the_command_writes_both_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(PROFILES, "smoke", SMOKE)
    monkeypatch.setenv("ADVNB_CACHE", str(tmp_path / "cache"))
    command = ["distances", "fonts", "--profile", "smoke", "--out", str(tmp_path)]
    assert main(command) == 0
    told = capsys.readouterr().out
    relations, planes = (pd.read_csv(tmp_path / f"{n}.csv") for n in ("distances", "divergence"))
    assert len(relations) == len(cells("fonts", SMOKE))
    assert len(planes) == 2
    table = comparisons.table1(relations, planes)
    assert f"{table.value.iloc[0]:.6f}" in told
    kl = table[table.measure == "KL, normal features"].iloc[0]
    assert kl.value == planes[planes.features == "normal"].kl.iloc[0]
    assert table.printed.isna().all()
    assert main(["distances", "nothing", "--profile", "smoke"]) == 2


# what ships ---------------------------------------------------------------------------------------


def test_what_ships_is_whole_and_finished() -> None:
    relations, planes = (advnb.sweeps.shipped(name) for name in ("distances", "divergence"))
    for name in ("mnist", "fashion", "cifar10", "fonts"):
        part = relations[relations.data == name]
        assert set(part[part.features == "adversarial"].k) == {1, 5, 10, 100, 1000}
        assert set(part.features) == {*FEATURES}
        assert set(planes[planes.data == name].features) == {"adversarial", "normal"}
    assert (relations.images == 10_000).all()
    for table, kind in ((relations, Cell), (planes, PlaneCell)):
        names = kind.__dataclass_fields__
        run_of = comparisons.Relate() if kind is Cell else comparisons.Diverge()
        for row in table.to_dict("records"):
            assert row["key"] == key(kind(**{n: row[n] for n in names}), run_of)
    for row in relations.itertuples():
        for what in ("accuracy", "success", "distance", "further", "rank", "slope"):
            value, low, high = (getattr(row, f"{what}{end}") for end in ("", "_low", "_high"))
            assert low < value < high


def test_table_1_has_the_printed_numbers_beside_ours() -> None:
    table = comparisons.table1(
        advnb.sweeps.shipped("distances"), advnb.sweeps.shipped("divergence")
    ).set_index(["data", "measure"])
    # Z's table 1
    assert table.printed["fashion", "KL, adversarial features"] == 0.046
    assert table.printed["mnist", "normalised distance"] == 0.3993
    assert table.printed["cifar10", "success"] == 0.379
    card = zoo.card("mnist-cnn-adversarial")["measured"]["success"]
    assert table.value["mnist", "success"] == pytest.approx(card["value"], abs=0.002)


def test_differences_say_whose_order_it_is() -> None:
    columns = ["data", "measure", "value", "low", "high", "printed"]
    rows = [
        ["a", "one", 3.0, 2.9, 3.2, 5.0], ["b", "one", 1.0, 0.8, 1.1, 9.0],
        ["c", "one", 0.9, 0.0, 3.0, 1.0], ["d", "one", 7.0, 6.0, 8.0, math.nan],
    ]  # fmt: skip
    table = comparisons.differences(pd.DataFrame(rows, columns=columns))
    assert table.difference.tolist() == ["a - b", "a - c", "b - c"]
    assert table.order.tolist() == ["reversed", "open", "open"]
    first = table.iloc[0]
    assert (first.value, first.printed) == (2.0, -4.0)
    assert first.low == pytest.approx(2 - math.hypot(0.1, 0.1))
    assert first.high == pytest.approx(2 + math.hypot(0.2, 0.2))
    turned = comparisons.differences(
        pd.DataFrame(rows, columns=columns).assign(printed=[9, 5, 1, 1])
    )
    assert turned.order.iloc[0] == "as printed"


# figures ------------------------------------------------------------------------------------------


def test_the_figure_has_a_bar_for_every_bin_with_enough_images() -> None:
    table = bins(*toy(300, 1.0), count=12, least=15)
    picture = plots.success_by_distance({"one": table, "two": table}, alt="two")
    above, _, below, _ = picture.axes
    told = table[table.success.notna()]
    assert [bar.get_height() for bar in above.patches] == [r.value for r in told.success]
    assert [bar.get_height() for bar in below.patches] == table.n.tolist()
    assert len(told) < len(table)
    assert picture.png().startswith(b"\x89PNG")


def test_points_keep_the_colour_of_their_class() -> None:
    stream = generator(0)
    train, test = torch.randn(30, 2, generator=stream), torch.randn(9, 2, generator=stream)
    picture = plots.plane(train, test, torch.arange(30) % 3, torch.arange(9) % 3, "abc")
    many = picture.axes[0].collections
    assert [len(points.get_offsets()) for points in many] == [10, 3] * 3
    for small, ringed in zip(many[::2], many[1::2]):
        assert (small.get_facecolor()[0][:3] == ringed.get_facecolor()[0][:3]).all()
    scatter = plots.scatter(train[:, 0], {"y": train[:, 1]})
    assert len(scatter.axes[0].collections[0].get_offsets()) == 30


def test_what_may_be_negative_has_a_scale_around_zero() -> None:
    low, high = torch.zeros(2), torch.ones(2)
    grids = {"p": torch.rand(5, 5), "difference": torch.rand(5, 5) - 0.5}
    picture = plots.densities(grids, low, high)
    p, difference = (axes.images[0] for axes in picture.axes[:2])
    assert p.get_clim() == (0, pytest.approx(grids["p"].max().item()))
    below, above = difference.get_clim()
    assert below == -above
