"""The embedding panel without a browser: what is under the pointer, and what stands beside it,
against brute force and attacks of our own."""

from __future__ import annotations

import io
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import advnb
from advnb import Attack, Pixels, Split
from advnb.embedding import embed, pixels, project
from advnb.live import EmbeddingPanel, close_all
from advnb.live import embedding as module
from advnb.live import pieces as pieces_module
from advnb.live.pieces import PIECE
from advnb.live.plane import EmbeddingFrame
from advnb.live.runner import Frame
from advnb.live.scatter import Map, ScatterFigure, Scene, Side

from .conftest import refused
from .test_live import PNG, WAIT, all_ended, press, shown

PGD = Attack(Pixels(0.02), steps=3, lr=0.01, optimizer="sign", start="uniform")

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    yield
    close_all()
    assert all_ended()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return advnb.zoo.load("fonts-cnn-normal")


@pytest.fixture(scope="module")
def train(fonts: advnb.Dataset) -> Split:
    return fonts.train(60)


@pytest.fixture(scope="module")
def test(fonts: advnb.Dataset) -> Split:
    return fonts.test(40)


Make = Callable[..., EmbeddingPanel]


@pytest.fixture
def make(model: nn.Module, train: Split, test: Split) -> Make:
    """Makes a small panel, once it is complete."""

    def made(*features: Any, **settings: Any) -> EmbeddingPanel:
        settings = {"attack": PGD, "projection": "pca", "points": 100} | settings
        return shown(EmbeddingPanel(model, train, test, *features, **settings))

    return made


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Scene, int, Tensor, bool, Side]]:
    """What panels draw from now on."""
    seen: list[Any] = []
    draw = ScatterFigure.draw

    def noted(self: ScatterFigure, *what: Any) -> bytes:
        seen.append(what)
        return draw(self, *what)

    monkeypatch.setattr(ScatterFigure, "draw", noted)
    return seen


def brute(features: Callable, train: Split, test: Split) -> Tensor:
    """All distances in feature space [M, N], one difference after another."""
    with torch.no_grad():
        a, b = features(train.x).double(), features(test.x).double()
    return torch.stack([(row - a).square().sum(1).sqrt() for row in b])


def spot_of(panel: EmbeddingPanel, image: int) -> list[float]:
    """Where a test point lies on the page."""
    found = frame(panel).map
    assert found is not None
    return (found.places[image] / torch.tensor(found.size)).tolist()


def frame(panel: EmbeddingPanel) -> EmbeddingFrame:
    assert isinstance(panel.frame, EmbeddingFrame)
    return panel.frame


def picture(panel: EmbeddingPanel) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(frame(panel).png)).convert("L"))


def pieces(test: Split) -> Iterator[tuple[slice, Split]]:
    for start in range(0, len(test), PIECE):
        rows = slice(start, start + PIECE)
        yield rows, test[rows]


# the point under the pointer ----------------------------------------------------------------------

unit = st.floats(0, 1, width=32)


@given(st.integers(1, 60), st.integers(0, 2**31), unit, unit)
def test_the_nearest_point_is_the_one_of_brute_force(n: int, seed: int, x: float, y: float) -> None:
    size, box = (900, 400), (9.0, 40.0, 450.0, 360.0)
    points = np.random.default_rng(seed).random((n, 2)).tolist()
    places = [(9 + 441 * a, 40 + 320 * b) for a, b in points]
    found = Map(torch.tensor(places, dtype=torch.float64), box, size).nearest(x, y)
    if not (9 <= x * 900 <= 450 and 40 <= y * 400 <= 360):
        assert found is None
        return
    away = [math.hypot(a - x * 900, b - y * 400) for a, b in places]
    assert found is not None
    assert away[found] <= min(away) + 1e-9


def test_pointing_picks_the_point_that_is_marked_there(make: Make) -> None:
    panel = make()
    for image in (0, 17, 39, 3):
        panel.view.spot = spot_of(panel, image)
        shown(panel)
        at = panel.params["image"]
        places = frame(panel).map.places
        assert (places[at] - places[image]).norm() < 0.01, "another point in the same place"
        assert frame(panel).params["image"] == at
        assert f"Test image {at} shows" in panel.frame.alt
        ring, (x, y) = picture(panel), places[at].tolist()
        turn, radius = np.linspace(0, 2 * np.pi, 12, endpoint=False), np.array([[7], [7.8], [8.6]])
        rows, columns = y + radius * np.sin(turn), x + radius * np.cos(turn)
        dark = ring[rows.astype(int), columns.astype(int)].min(0) < 90
        assert dark.all(), "the ring lies around the place"
    where = panel.params
    for outside in ([0.8, 0.5], [0.3, 0.01], [-1.0, -1.0]):
        panel.view.spot = outside
    assert panel.params == where


def test_a_click_holds_and_arrows_step(make: Make) -> None:
    panel = make()
    panel.view.click = [*spot_of(panel, 5), 1]
    at = panel.params["image"]
    assert panel.params["hold"]
    shown(panel)
    assert panel.message.value.count(f"Test image {at}, held:") == 1
    panel.view.spot = spot_of(panel, 30)
    assert panel.params["image"] == at, "it is held"
    panel.view.click = [*spot_of(panel, 30), 2]
    other = panel.params["image"]
    assert other != at
    assert panel.params["hold"], "a click on another point holds that one"
    panel.view.click = [*spot_of(panel, 30), 3]
    assert not panel.params["hold"]
    panel.view.spot = spot_of(panel, 5)
    assert panel.params["image"] == at
    panel.view.arrows = [2, 1]  # right, right and down, before the kernel heard of them
    assert panel.params["image"] == at + 3
    panel.view.arrows = [1, 1]
    assert panel.params["image"] == at + 2
    panel.view.arrows = [-1000, 0]
    assert panel.params["image"] == 0
    panel.view.arrows = [1000, 0]
    assert panel.params["image"] == 39
    press(panel, "Reset")
    assert shown(panel).params["image"] == 0


# what stands beside it ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "pixels"])
def test_neighbours_are_those_of_brute_force(
    make: Make, drawn: list, model: nn.Module, train: Split, test: Split, name: str
) -> None:
    panel = make({"model": model.features, "pixels": pixels}, k=1)
    away = brute({"model": model.features, "pixels": pixels}[name], train, test)
    for image, k in ((0, 1), (11, 5), (39, 10)):
        shown(panel, image=image, k=k, features=name, colour="distance")
        scene, at, near, _, side = drawn[-1]
        want = away[image].sort(stable=True)
        assert at == image
        assert near.tolist() == want.indices[:k].tolist()
        assert torch.equal(side.near, train.x[want.indices[:k]])
        names = [train.dataset.classes[y] for y in train.y[want.indices[:k]]]
        assert f"the nearest are {', '.join(names)}." in panel.frame.alt
        for text, label, d in zip(side.near_captions, names, want.values):
            same = label == test.dataset.classes[test.y[image]]
            told, number = text["text"].split("\n")
            assert told == (label if same else f"✗ {label}")
            assert float(number) == pytest.approx(d.item(), rel=0.006)
        mean = away.sort(1).values[:, :k].mean(1)
        assert torch.allclose(scene.values.double(), mean, rtol=1e-5)
        share = (mean < mean[image]).double().mean().item()
        assert f"farther than {share:.0%} of the test images" in panel.message.value
        assert f"{name} features" in panel.frame.alt


def test_outcomes_are_those_of_an_attack_of_our_own(
    make: Make, drawn: list, model: nn.Module, test: Split
) -> None:
    panel = make(colour="outcome")
    right, fooled = torch.zeros(40, dtype=torch.bool), torch.zeros(40, dtype=torch.bool)
    for rows, part in pieces(test):
        result = PGD(model, part)
        right[rows], fooled[rows] = result.correct, result.success[0]
        for image in range(rows.start, rows.start + 3):
            shown(panel, image=image)
            side, x = drawn[-1][4], result.x[0][image - rows.start]
            assert torch.equal(side.trio[0], test.x[image])
            assert torch.equal(side.trio[1], x)
            ((guess, _),) = test[image].named(model(x[None]).argmax(1))
            assert f"adversarial example is classified as {guess};" in panel.frame.alt
            assert side.captions[2]["text"] == f"at most {(x - test.x[image]).abs().max():.3f}"
    want = {"right, withstood": right & ~fooled, "fooled": right & fooled, "wrong before": ~right}
    groups = {g.label.split(":")[0]: g.rows for g in drawn[-1][0].groups}
    assert all(mask.any() for mask in want.values()), "a weak example shows nothing"
    assert groups.keys() == want.keys()
    for name, mask in want.items():
        assert torch.equal(groups[name], mask)


def test_every_point_has_the_colour_of_its_class(make: Make, drawn: list, test: Split) -> None:
    make()
    for group in drawn[-1][0].groups:
        assert {test.dataset.classes[y] for y in test.y[group.rows]} == {group.label}
    assert sum(group.rows.sum() for group in drawn[-1][0].groups) == len(test)


# order, thrift and newer values -------------------------------------------------------------------


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What panels show from now on."""
    seen: list[Any] = []
    show = EmbeddingPanel._show

    def noted(self: EmbeddingPanel, item: Frame | Exception) -> None:
        seen.append(item)
        show(self, item)

    monkeypatch.setattr(EmbeddingPanel, "_show", noted)
    return seen


def test_a_preview_comes_first_and_the_refinement_takes_its_place(
    make: Make, frames: list, drawn: list, model: nn.Module, train: Split, test: Split
) -> None:
    panel = make({"model": model.features}, projection="tsne", image=37)
    assert frames[0].alt.startswith("PCA (t-SNE follows) of model features,")
    assert "its adversarial example is being searched" in frames[0].alt
    assert "40 test images are still to be attacked." in frames[0].status
    assert "classified as" in frames[1].alt.split(";")[1], "its own piece is attacked first"
    told = [f for f in frames if f.status.startswith("t-SNE is being computed, which nothing can")]
    assert len(told) == 1
    assert told[0].alt.startswith("PCA (t-SNE follows)")
    after = frames[frames.index(told[0]) + 1 :]
    assert after
    assert all(f.alt.startswith("t-SNE of model features,") for f in after)
    assert [f.complete for f in frames] == [False] * (len(frames) - 1) + [True]
    # as the panel computes them: t-SNE makes much of rounding
    rows = embed(model.features, train, PIECE), embed(model.features, test, PIECE)
    for scene, method in ((drawn[0][0], "pca"), (drawn[-1][0], "tsne")):
        for part, want in zip((scene.train, scene.test), project(*rows, method)):
            # signs and turns of a map mean nothing, distances in it do
            assert torch.allclose(torch.cdist(part, part), torch.cdist(want, want), atol=0.02)
    frames.clear()
    shown(panel, projection="pca")
    shown(panel, projection="tsne")
    assert [f.complete for f in frames] == [True, True], "what is known needs no preview"


def test_what_was_computed_is_kept(
    make: Make, frames: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, attacked, projected = [], [], []

    def counted(x: Tensor) -> Tensor:
        seen.append(len(x))
        return pixels(x)

    monkeypatch.setattr(
        pieces_module, "project", lambda *what: projected.append(what[2]) or project(*what)
    )
    iterate = Attack.iterate
    monkeypatch.setattr(
        Attack, "iterate", lambda *what: attacked.append(len(what[2])) or iterate(*what)
    )
    panel = make({"counted": counted, "pixels": pixels})
    assert sum(seen) == 100
    assert sum(attacked) == 40
    frames.clear()
    choices = itertools.product((1, 10), ("class", "distance", "outcome"), (0, 39))
    for k, colour, image in choices:
        shown(panel, k=k, colour=colour, image=image)
    assert [f.complete for f in frames] == [True] * 12, "one picture each"
    shown(panel, features="pixels")
    shown(panel, features="counted")
    assert sum(seen) == 100
    assert sum(attacked) == 40
    assert projected == ["pca", "pca"]


def test_the_scatter_is_drawn_once(make: Make, drawn: list) -> None:
    panel = make()
    for image in (3, 9, 3):
        shown(panel, image=image)
    shown(panel, k=10)
    assert len({id(scene) for scene, *_ in drawn}) == 1
    pictures = [picture(shown(panel, image=i)) for i in (3, 9, 3)]
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[0] == pictures[2]).all(), "nothing of another point stays behind"


def test_only_the_newest_values_are_shown(
    model: nn.Module, train: Split, test: Split, frames: list
) -> None:
    begun, gate = threading.Event(), threading.Event()

    def slow(x: Tensor) -> Tensor:
        begun.set()
        assert gate.wait(WAIT)
        return pixels(x)

    panel = EmbeddingPanel(
        model, train, test, {"slow": slow, "pixels": pixels}, attack=PGD, points=100,
        projection="pca",
    )  # fmt: skip
    assert begun.wait(WAIT)
    panel.submit(features="pixels", image=1)
    panel.submit(image=2)
    gate.set()
    shown(panel)
    assert {(f.params["features"], f.params["image"]) for f in frames} == {("pixels", 2)}
    places = [spot_of(panel, i) for i in range(40)]
    marks = []
    for spot in places:
        panel.view.spot = spot
        marks.append((len(frames), panel.params["image"]))
    last = panel.params["image"]
    shown(panel)
    assert frames[-1].params["image"] == last
    order = [image for _, image in marks]
    for count, image in marks:  # no frame after a post shows what was posted before it
        later = order[order.index(image) :]
        assert all(f.params["image"] in later for f in frames[count:])


def test_an_attack_goes_on_where_it_was_cut(model: nn.Module, test: Split) -> None:
    attack = replace(PGD, keep="strongest")  # as many steps for every image
    whole, cut = (pieces_module.Attacked(attack, model, test) for _ in range(2))
    steps = len(list(whole.search(1)))
    taken = 0
    while not cut.done(1):
        search = cut.search(1)
        taken += next(search, "end") is None
        search.close()
    assert taken == steps == 4
    assert torch.equal(cut.x, whole.x)
    assert torch.equal(cut.known, torch.arange(40) >= PIECE)
    result = attack(model, test[PIECE:])
    assert torch.equal(cut.x[PIECE:], result.x[0])
    assert torch.equal(cut.x[:PIECE], test.x[:PIECE])


def test_a_failed_attack_is_told_and_begins_anew(make: Make) -> None:
    broken = [True]

    def loss(output: Tensor, y: Tensor) -> Tensor:
        if broken[0]:
            raise KeyError("planted")
        return nn.functional.cross_entropy(output, y, reduction="none")

    panel = make(attack=Attack(Pixels(0.3), steps=2, loss=loss))
    assert "KeyError: " in panel.message.value
    assert 'role="alert"' in panel.message.value
    broken[0] = False
    shown(panel, image=1)
    assert panel.frame.complete


# the rest -----------------------------------------------------------------------------------------


class Alt(HTMLParser):
    """The images of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))


def test_the_page_and_the_paper_carry_picture_and_words(make: Make) -> None:
    panel = make()
    for image in (0, 1):
        shown(panel, image=image)
        (found,) = Alt(panel.view.value).images
        assert found["alt"] == panel.frame.alt
        assert str(found["src"]).startswith("data:image/png;base64,")
        assert f"Test image {image} shows" in panel.frame.alt
    bundle = panel._repr_mimebundle_()
    assert bundle["text/plain"] == panel.frame.alt
    assert panel.frame.png.startswith(PNG)
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_the_panel_looks_at_its_own_copy(
    model: nn.Module, train: Split, test: Split, frames: list
) -> None:
    mine = advnb.zoo.load("fonts-cnn-normal")
    with torch.no_grad():
        want = model(test.x).argmax(1)
    panel = EmbeddingPanel(
        mine, train, test, {"own": mine.features}, attack=PGD, points=100, projection="pca"
    )
    with torch.no_grad():
        for weight in mine.parameters():
            weight.zero_()
    shown(panel)
    away = brute(model.features, train, test).sort(1).values
    for image in (0, 20, 39):
        shown(panel, image=image)
        ((guess, _),) = test[image].named(want[image : image + 1])
        assert f"classified as {guess};" in panel.frame.alt
        assert f"{away[image, :5].mean():#.3g}" in panel.message.value
    assert mine.training is False


def test_images_from_nowhere_in_colour_of_many_classes() -> None:
    stream = torch.Generator().manual_seed(0)
    train, test = (
        Split(torch.rand(n, 3, 9, 6, generator=stream), torch.arange(n) % 12) for n in (30, 25)
    )
    flat = nn.Sequential(nn.Flatten(), nn.Linear(162, 12))
    panel = shown(EmbeddingPanel(flat, train, test, points=100, projection="pca", colour="outcome"))
    assert "30 training points (small, pale) and 25 test points of images" in panel.frame.alt
    assert "in pixels features" in panel.frame.alt
    shown(panel, colour="class", image=24, k=30 if 30 in module.OFFERED else 10)
    assert "Test image 24 shows 0," in panel.frame.alt


def test_no_more_points_than_were_asked_for(make: Make) -> None:
    panel = make(points=20, k=20)
    assert "20 training points (small, pale) and 20 test points" in panel.frame.alt
    assert "5 of 20" not in panel.frame.alt
    with refused("image.*got 20", ValueError):
        make(points=20, image=20)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"features": {}}, r"features must name functions, .* got \{\}"),
        ({"features": {"a": 3}}, "features must name functions, .*'a': 3"),
        ({"features": len}, "features must name functions, .*built-in"),
        ({"attack": "pgd"}, "attack must be an Attack, .* got 'pgd'"),
        ({"points": 0}, "points must be a whole number >= 1; got 0"),
        ({"k": 0}, "k must be a whole number >= 1; got 0"),
        ({"k": 61}, "k must be at most the 60 training images there are; got 61"),
        ({"colour": "size"}, "colour must be one of class, distance, outcome; got 'size'"),
        ({"projection": "lda"}, "projection must be one of umap, tsne, pca; got 'lda'"),
        ({"image": 40}, "image must be a whole number between 0 and 39; got 40"),
        ({"train": None}, "a Split is needed; got NoneType"),
        ({"train": Split(torch.rand(5, 1, 8, 8), torch.arange(5))}, "one size; got .1, 8, 8. and"),
        ({"model": len}, "the model must be a torch.nn.Module; got builtin"),
    ],
)
def test_bad_input_is_told_in_one_line(
    model: nn.Module, train: Split, test: Split, given: dict[str, Any], match: str
) -> None:
    with refused(match):
        EmbeddingPanel(**{"model": model, "train": train, "test": test, "points": 100} | given)


def test_bad_values_change_nothing(make: Make) -> None:
    panel = make()
    before = panel.params
    for bad, match in (({"k": 7}, "'k': 7"), ({"colour": 3}, "'colour': 3"), ({"eps": 1}, "'eps'")):
        with refused(match):
            panel.submit(**bad)
    assert panel.params == before


def test_features_that_are_none_are_told(make: Make) -> None:
    panel = EmbeddingPanel(
        advnb.models.CNN(0), advnb.load("fonts").train(20), advnb.load("fonts").test(20),
        {"bad": lambda x: x.flatten(1) / 0, "pixels": pixels}, attack=PGD, projection="pca",
    )  # fmt: skip
    assert panel.settle(WAIT)
    assert "ValueError: features must answer with finite floats" in panel.message.value
    assert 'role="alert"' in panel.message.value
    shown(panel, features="pixels")
    assert panel.frame.complete
