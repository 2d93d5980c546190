"""Neighbours, features and distances to the training set, against NumPy in double precision and
scikit-learn."""

from __future__ import annotations

import copy
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import advnb
from advnb import Split, distance_to_training_set, embedding, nearest, neighbours
from advnb.embedding import PCA, Standardised, Unit, embed, pixels, project
from advnb.neighbours import Nearest, nearest_rows
from advnb.stats import generator

from .conftest import refused


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def images(n: int, seed: int = 0, side: int = 5) -> Split:
    stream = generator(seed)
    y = torch.arange(n) % 3
    return Split(torch.rand(n, 1, side, side, generator=stream), y)


def brute(rows: Tensor, among: Tensor) -> np.ndarray:
    """All distances in double precision, from differences."""
    a, b = rows.double().numpy(), among.double().numpy()
    return np.linalg.norm(a[:, None] - b[None], axis=2)


def agree(found: Nearest, rows: Tensor, among: Tensor, k: int) -> None:
    """The k smallest distances to 1e-6, and neighbours that have them."""
    every = brute(rows, among)
    expected = np.sort(every, axis=1)[:, :k]
    assert found.index.shape == found.distance.shape == (len(rows), k)
    assert all(len(set(row)) == k for row in found.index.tolist()), "a neighbour twice"
    np.testing.assert_allclose(found.distance, expected, rtol=1e-6, atol=1e-12)
    # the very neighbours, but where two are equally far in double precision
    chosen = np.take_along_axis(every, found.index.numpy(), 1)
    np.testing.assert_allclose(chosen, expected, rtol=1e-14)


# the nearest rows ---------------------------------------------------------------------------------


@given(
    n=st.integers(1, 8), m=st.integers(1, 400), d=st.integers(1, 30), seed=st.integers(0, 99),
    offset=st.sampled_from([0.0, 1.0, 1e3]), copies=st.booleans(), data=st.data(),
)  # fmt: skip
def test_the_nearest_are_those_of_brute_force(
    n: int, m: int, d: int, seed: int, offset: float, copies: bool, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, min(m, 20)))
    rows, among = normal(n, d, seed=seed) + offset, normal(m, d, seed=seed + 1) + offset
    if copies:  # of each other and of a row
        among[m // 2 :] = among[: m - m // 2].clone()
        among[0] = rows[0]
    agree(nearest_rows(rows, among, k), rows, among, k)


@pytest.mark.parametrize("k", [1, 5, 100, 1000])
def test_the_nearest_of_thousands(k: int) -> None:
    rows, among = normal(40, 64) * 2 + 3, normal(3000, 64, seed=1) + 3
    agree(nearest_rows(rows, among, k), rows, among, k)


def test_rounding_of_the_product_hides_no_neighbour() -> None:
    """Two far clusters whose points are closer together than the product can tell."""
    far = torch.full((1, 200), 100.0)
    here, there = (normal(500, 200, seed=seed) * 1e-3 for seed in (1, 2))
    among = torch.cat([here + far, there - far])
    rows = normal(20, 200, seed=3) * 1e-3 + far
    product = (rows.square().sum(1)[:, None] - 2 * rows @ among.T + among.square().sum(1)).topk(
        5, largest=False
    )
    expected = np.argsort(brute(rows, among), axis=1)[:, :5]
    assert (product.indices.numpy() != expected).any(), "else the test shows nothing"
    agree(nearest_rows(rows, among, 5), rows, among, 5)


@given(blocks=st.lists(st.integers(1, 30), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_blocks_give_what_all_rows_give(blocks: list[int], seed: int) -> None:
    rows, among = normal(6, 4, seed=seed), normal(sum(blocks), 4, seed=seed + 1)
    k = min(7, sum(blocks))
    whole, parts = nearest_rows(rows, among, k), nearest_rows(rows, iter(among.split(blocks)), k)
    assert torch.equal(whole.index, parts.index)
    assert torch.equal(whole.distance, parts.distance)


def test_small_tiles_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, among = normal(50, 8), normal(600, 8, seed=1)
    whole = nearest_rows(rows, among, 6)
    monkeypatch.setattr(neighbours, "CELLS", 2000)
    monkeypatch.setattr(neighbours, "BLOCK", 100)
    parts = nearest_rows(rows, among, 6)
    assert torch.equal(whole.index, parts.index)


def test_equal_distances_come_in_the_order_of_their_positions() -> None:
    among = torch.cat([torch.ones(5, 3), torch.zeros(5, 3), torch.ones(5, 3)])
    found = nearest_rows(torch.ones(1, 3), among, 7)
    assert found.index.tolist() == [[0, 1, 2, 3, 4, 10, 11]]
    assert found.distance.eq(0).all()


@given(
    m=st.integers(1, 300), count=st.integers(1, 40), n=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_the_smallest_values_by_groups(m: int, count: int, n: int, seed: int) -> None:
    values = normal(n, m, seed=seed)
    count = min(count, m)
    chosen = values.gather(1, neighbours._smallest(values, count)).sort(1).values
    assert torch.equal(chosen, values.sort(1).values[:, :count])


# features -----------------------------------------------------------------------------------------


def test_distances_are_the_mean_of_scikit_learns() -> None:
    train, test = images(80), images(30, seed=1)
    oracle = NearestNeighbors(n_neighbors=4).fit(train.x.flatten(1).numpy())
    far, near = oracle.kneighbors(test.x.flatten(1).numpy())
    found = nearest(pixels, train, test, 4)
    assert found.index.tolist() == near.tolist()
    distance = distance_to_training_set(pixels, train, test, 4)
    assert distance.dtype == torch.float32
    np.testing.assert_allclose(distance, far.mean(1), rtol=1e-5)
    assert torch.equal(distance, distance_to_training_set(pixels, train.x, test.x, 4)), "tensors"
    assert torch.equal(distance, found.distance.mean(1))


def test_a_training_image_is_its_own_neighbour() -> None:
    train = images(60)
    found = nearest(pixels, train, train[10:20], 2)
    assert found.index[:, 0].tolist() == [*range(10, 20)]
    assert found.distance[:, 0].eq(0).all()
    assert found.distance[:, 1].gt(0).all()


def test_by_class_looks_at_the_own_class_only() -> None:
    train, test = images(90), images(20, seed=1)
    found = nearest(pixels, train, test, 3, by_class=True)
    assert torch.equal(train.y[found.index], test.y[:, None].expand(-1, 3))
    for label in range(3):
        part, own = test[test.y == label], train[train.y == label]
        expected = distance_to_training_set(pixels, own, part, 3)
        there = distance_to_training_set(pixels, train, test, 3, by_class=True)[test.y == label]
        assert torch.equal(there, expected)


def test_training_images_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test, seen = images(100), images(5, seed=1), []

    def watched(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.flatten(1)

    whole = nearest(watched, train, test, 3)
    monkeypatch.setattr(embedding, "BLOCK", 30)
    parts = nearest(watched, train, test, 3)
    assert max(seen[2:]) <= 30
    assert torch.equal(whole.index, parts.index)


def test_a_network_is_lent_in_eval_mode_and_comes_back() -> None:
    model = advnb.models.CNN(0, shape=(1, 12, 12)).train()
    split = images(40, side=12)
    expected = copy.deepcopy(model).eval().features(split.x)
    before = copy.deepcopy(model.state_dict())
    for features in (model.features, Standardised(model.features, split).features):
        assert torch.equal(embed(features, split), expected.detach())
    assert torch.equal(embed(model, split), copy.deepcopy(model).eval()(split.x).detach())
    Standardised(model.features, split)(split.x)
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_standardised_features_are_scikit_learns() -> None:
    train, test = images(50), images(20, seed=1)
    dead = torch.zeros(25)
    dead[:7] = 1

    def partly(x: Tensor) -> Tensor:  # seven features that say nothing
        return x.flatten(1) * (1 - dead) + 3 * dead

    scaler = StandardScaler().fit(train.x.flatten(1)[:, 7:].double().numpy())
    scaler.scale_ *= math.sqrt(50 / 49)  # of a sample
    expected = scaler.transform(test.x.flatten(1)[:, 7:].double().numpy()) / math.sqrt(18)
    found = Standardised(partly, train)(test.x)
    np.testing.assert_allclose(found[:, 7:], expected, rtol=1e-4, atol=1e-6)
    assert found[:, :7].eq(0).all()


def test_normalised_distances_do_not_depend_on_scale_or_width() -> None:
    train, test = images(60), images(20, seed=1)

    def wide(x: Tensor) -> Tensor:  # every feature twice, on other scales
        flat = x.flatten(1)
        return torch.cat([flat * torch.linspace(1, 50, 25), 7 - flat], 1)

    one = distance_to_training_set(Standardised(pixels, train), train, test)
    two = distance_to_training_set(Standardised(wide, train), train, test)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_unit_features_know_no_length() -> None:
    train, test = images(40), images(9, seed=1)
    found = Unit(pixels)(test.x)
    assert torch.allclose(found.norm(dim=1), torch.ones(9))
    longer = Unit(lambda x: x.flatten(1) * (1 + x.sum((1, 2, 3)))[:, None])
    one, two = (distance_to_training_set(h, train, test) for h in (Unit(pixels), longer))
    torch.testing.assert_close(one, two)


# in the plane -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_projection_embeds_both_together_and_repeats(method: embedding.Method) -> None:
    clusters = torch.cat([normal(20, 6, seed=s) + 30 * s for s in range(3)])
    train, test = clusters[::2], clusters[1::2]
    (a, b), again = project(train, test, method, seed=1), project(train, test, method, seed=1)
    assert a.shape == b.shape == (30, 2)
    assert a.dtype == torch.float32
    assert torch.equal(a, again[0])
    assert torch.equal(b, again[1])
    # a test point lies among the training points of its own cluster
    cluster = torch.arange(60) // 20
    near = nearest_rows(b, a, 1).index[:, 0]
    assert torch.equal(cluster[::2][near], cluster[1::2])


def test_pca_in_the_plane_is_the_one_of_numpy() -> None:
    train, test = normal(30, 5) * torch.tensor([9.0, 4, 1, 1, 1]), normal(10, 5, seed=1)
    points = torch.cat([train, test]).double()
    _, _, axes = torch.linalg.svd(points - points.mean(0), full_matrices=False)
    expected = (points - points.mean(0)) @ axes[:2].T
    found = torch.cat(project(train, test, "pca"))
    np.testing.assert_allclose(found.abs(), expected.abs(), rtol=1e-3, atol=1e-3)


def test_umap_leaves_torchs_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class UMAP:
        def __init__(self, **settings: object) -> None:
            pass

        def fit_transform(self, points: np.ndarray) -> np.ndarray:
            torch.set_num_threads(2)  # as numba does
            return points[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    train, test = normal(6, 3), normal(4, 3, seed=1)
    assert torch.equal(project(train, test, "umap")[1], test[:, :2])
    assert torch.get_num_threads() == 1


# bad input ----------------------------------------------------------------------------------------

TRAIN, TEST = images(20), images(4, seed=1)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: nearest(pixels, TRAIN, TEST, 0), "k must be a whole number >= 1"),
        (lambda: nearest(pixels, TRAIN, TEST, 21), "k must be at most the 20 rows there are"),
        (lambda: nearest(pixels, TRAIN, TEST, 8, by_class=True), "class 0 has 7 training images"),
        (lambda: nearest("pixels", TRAIN, TEST), "features must be a function"),
        (lambda: nearest(lambda x: x, TRAIN, TEST), r"finite floats \[4, d\].*\[4, 1, 5, 5\]"),
        (lambda: nearest(lambda x: x.flatten(1) / 0, TRAIN, TEST), "finite floats"),
        (lambda: nearest(lambda x: x.flatten(1)[:2], TRAIN, TEST), r"these gave \[2, 25\]"),
        (lambda: nearest(pixels, TRAIN, images(4, side=6)), "of one size"),
        (lambda: nearest(pixels, TRAIN.x, TEST, by_class=True), "train must be a Split"),
        (lambda: nearest(pixels, TRAIN, [1, 2]), "test must be a Split or a tensor"),
        (lambda: nearest(pixels, TRAIN, TEST.x[:0]), "not empty"),
        (lambda: distance_to_training_set(pixels, 3, TEST), "train must be a Split or a tensor"),
        (lambda: PCA(TRAIN, 20), "at most 19 components"),
        (lambda: Standardised(lambda x: x.flatten(1) * 0, TRAIN), "all features are constant"),
        (lambda: project(normal(9, 3), normal(9, 4), "pca"), r"\[9, 3\] and \[9, 4\]"),
        (lambda: project(normal(2, 3), normal(2, 3), "pca"), "5 points or more"),
        (lambda: project(normal(9, 3), normal(9, 3), "isomap"), "umap, tsne, pca"),  # type: ignore[arg-type]
        (lambda: project(normal(9, 3), normal(9, 3), "pca", colour=1), "pca has no such setting"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(call: object, what: str) -> None:
    with refused(what):
        call()  # type: ignore[operator]


def test_a_feature_function_that_is_a_module_without_weights() -> None:
    assert torch.equal(embed(nn.Flatten(), TEST), TEST.x.flatten(1))


def test_features_that_change_their_input_leave_the_images(fonts: advnb.Dataset) -> None:
    split = fonts.test(5)
    before = split.x.clone()
    found = embed(lambda x: x.mul_(0).add_(1).flatten(1), split)
    assert found.eq(1).all()
    assert split.x.equal(before)


def test_features_of_other_images_are_refused(fonts: advnb.Dataset) -> None:
    model = advnb.zoo.load("fonts-cnn-normal")
    with refused("features cannot be had of images of 3x28x28"):
        embed(model.features, torch.rand(2, 3, 28, 28))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_and_gradients_can_be_projected(kind: torch.dtype) -> None:
    points = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).to(kind)
    a, b = project(points.requires_grad_(), points, "pca")
    assert a.dtype == torch.float32
    assert not a.requires_grad
    assert torch.allclose(a, b)
