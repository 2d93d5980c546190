"""Live panels without a browser: the newest values win, and pictures tell the attack's numbers."""

from __future__ import annotations

import base64
import gc
import io
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import advnb
from advnb import curves, plots
from advnb.attacks import Attack
from advnb.live import AttackPanel, BlindspotPanel, CurvePanel, close_all
from advnb.live import blindspot as blindspot_module
from advnb.live import panel as panel_module
from advnb.live.panel import Panel
from advnb.live.pointer import PointedImage
from advnb.live.runner import Frame, Runner

from .conftest import ROOT, real, refused
from .test_data import arrays

WAIT = 120  # seconds until a test gives up; nothing here is about speed
PNG = b"\x89PNG"

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "advnb panel"]


def all_ended() -> bool:
    for thread in workers():
        thread.join(WAIT)
    return not workers()


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    yield
    close_all()
    assert all_ended()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a slow job waits for; open at the end of the test, whatever happens."""
    event = threading.Event()
    yield event
    event.set()


# the runner ---------------------------------------------------------------------------------------


class Shown(list):
    """What a runner shows: frames and exceptions, in order."""

    def __init__(self) -> None:
        self.first = threading.Event()

    def __call__(self, item: Frame | Exception) -> None:
        self.append(item)
        self.first.set()

    @property
    def numbers(self) -> list[int]:
        return [frame.params["n"] for frame in self]


def picture(params: dict[str, Any], complete: bool = True) -> Frame:
    return Frame(params, b"", "", "", complete)


@pytest.fixture
def running() -> Iterator[Callable[[Callable], tuple[Runner, Shown]]]:
    """Makes runners, and closes them."""
    made = []

    def make(job: Callable) -> tuple[Runner, Shown]:
        shown = Shown()
        made.append(Runner(job, shown))
        return made[-1], shown

    yield make
    for runner in made:
        runner.close()


def three(params: dict[str, Any]) -> Iterator[Frame | None]:
    for part in range(3):
        yield None
        yield picture(params, part == 2)


def test_the_newest_post_wins_and_no_older_frame_follows_it(running: Callable) -> None:
    runner, shown = running(three)
    marks = []
    for n in range(300):
        runner.post({"n": n})
        marks.append(len(shown))  # whatever is shown from here on is not older than n
    assert runner.settle(WAIT)
    assert shown.numbers[-3:] == [299] * 3
    assert shown[-1].complete
    for n, mark in enumerate(marks):
        assert min(shown.numbers[mark:]) >= n


def test_a_post_does_not_wait_for_a_slow_job(running: Callable, gate: threading.Event) -> None:
    def slow(params: dict[str, Any]) -> Iterator[Frame | None]:
        yield picture(params, False)
        assert gate.wait(WAIT)
        yield picture(params)

    runner, shown = running(slow)
    runner.post({"n": 0})
    assert shown.first.wait(WAIT)
    for n in range(1, 50):
        runner.post({"n": n})
    assert shown.numbers == [0], "the job is still waiting, and the posts have returned"
    gate.set()
    assert runner.settle(WAIT)
    assert shown.numbers == [0, 49, 49]


def test_settle_tells_whether_the_job_is_done(running: Callable, gate: threading.Event) -> None:
    def slow(params: dict[str, Any]) -> Iterator[Frame | None]:
        assert gate.wait(WAIT)
        yield picture(params)

    runner, shown = running(slow)
    assert runner.settle(0), "nothing was posted"
    runner.post({"n": 0})
    assert not runner.settle(0.05)
    assert shown == []
    gate.set()
    assert runner.settle(WAIT)
    assert shown.numbers == [0]


def test_stop_gives_up_the_job_and_keeps_what_is_shown(
    running: Callable, gate: threading.Event
) -> None:
    given_up = threading.Event()

    def slow(params: dict[str, Any]) -> Iterator[Frame | None]:
        try:
            yield picture(params, False)
            assert gate.wait(WAIT)
            yield picture(params)
        finally:
            given_up.set()

    runner, shown = running(slow)
    assert not runner.stop(), "there was nothing to stop"
    runner.post({"n": 0})
    assert shown.first.wait(WAIT)
    assert runner.stop()
    assert runner.settle(0), "a stopped runner is settled"
    assert not runner.stop()
    gate.set()
    assert given_up.wait(WAIT)
    assert shown.numbers == [0], "the rest of the stopped job is never shown"
    runner.post({"n": 1})
    assert runner.settle(WAIT)
    assert shown.numbers == [0, 1, 1]


def test_close_ends_the_thread_and_a_later_post_starts_another(running: Callable) -> None:
    runner, shown = running(three)
    assert not workers(), "no thread before the first post"
    for n in range(3):
        runner.post({"n": n})
        assert len(workers()) == 1
        assert runner.settle(WAIT)
        runner.close()
        assert all_ended()
    assert shown.numbers == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_post_right_after_close_is_worked_on_once(
    running: Callable, gate: threading.Event
) -> None:
    def slow(params: dict[str, Any]) -> Iterator[Frame | None]:
        yield picture(params, False)
        assert gate.wait(WAIT)
        yield picture(params)

    runner, shown = running(slow)
    runner.post({"n": 0})
    assert shown.first.wait(WAIT)
    runner.close()  # the old thread is still in its job
    runner.post({"n": 1})
    gate.set()
    assert runner.settle(WAIT)
    runner.close()
    assert all_ended()
    assert shown.numbers == [0, 1, 1]


def test_an_error_is_shown_and_the_runner_goes_on(running: Callable) -> None:
    def job(params: dict[str, Any]) -> Iterator[Frame | None]:
        yield picture(params, False)
        if params["n"] == 0:
            raise KeyError("planted")
        yield picture(params)

    runner, shown = running(job)
    runner.post({"n": 0})
    assert runner.settle(WAIT)
    assert [type(item) for item in shown] == [Frame, KeyError]
    runner.post({"n": 1})
    assert runner.settle(WAIT)
    assert shown[-1].params == {"n": 1}
    assert shown[-1].complete


# the blind-spot panel -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def robust() -> nn.Module:
    return advnb.zoo.load("fonts-cnn-adversarial")


@pytest.fixture(scope="module")
def letters(fonts: advnb.Dataset) -> advnb.Split:
    return fonts.test(20)


@pytest.fixture
def panel(robust: nn.Module, letters: advnb.Split) -> BlindspotPanel:
    return shown(BlindspotPanel(robust, letters, alpha=0.9, steps=5))


def shown(panel: Panel, **params: Any) -> Any:
    """The panel, once its picture is that of its parameters (of these, if there are any)."""
    if params:
        panel.submit(**params)
    assert panel.settle(WAIT)
    assert panel.frame is not None, panel.message.value
    return panel


def walk(widget: widgets.Widget) -> Iterator[widgets.Widget]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


def press(panel: Panel, text: str) -> None:
    (found,) = (w for w in walk(panel) if isinstance(w, widgets.Button) and w.description == text)
    found.click()


def expected(model: nn.Module, split: advnb.Split, panel: BlindspotPanel) -> list[str]:
    """The three rates that the panel must tell, from an attack of our own."""
    p = panel.params
    images = split[:12].with_x(advnb.scale_shift(split[:12].x, p["alpha"], p["beta"]))

    def success(eps: float) -> str:
        lr = max(0.01, 2.5 * eps / p["steps"])
        attack = Attack(
            advnb.Pixels(eps), steps=p["steps"], lr=lr, optimizer="sign", start="uniform"
        )
        return str(attack(model, images).success_rate("images"))

    return [
        f"accuracy: {advnb.accuracy(model, images)}",
        f"success at {p['eps']:.3g}: {success(p['eps'])}",
        f"at α x {p['eps']:.3g}: {success(p['alpha'] * p['eps'])}",
    ]


def assert_tells(panel: BlindspotPanel, model: nn.Module, split: advnb.Split) -> None:
    assert panel.frame is not None
    assert panel.frame.complete, panel.message.value
    assert panel.frame.params == panel.params
    assert panel.frame.png.startswith(PNG)
    for text in expected(model, split, panel):
        assert text in panel.frame.alt


@pytest.mark.parametrize(
    ("alpha", "beta", "eps", "steps"),
    [(1, 0, 0.1, 5), (0.9, 0, 0.1, 5), (0.8, -0.1, 0.1, 5), (0.7, 0.15, 0.2, 1)],
)
def test_the_picture_tells_the_numbers_of_an_attack_of_our_own(
    panel: BlindspotPanel,
    robust: nn.Module,
    letters: advnb.Split,
    alpha: float,
    beta: float,
    eps: float,
    steps: int,
) -> None:
    shown(panel, alpha=alpha, beta=beta, eps=eps, steps=steps)
    assert [panel.params[k] for k in ("alpha", "beta", "eps", "steps")] == [alpha, beta, eps, steps]
    assert f"alpha {alpha:g} and shifted by beta {beta:g}," in panel.frame.alt
    assert f"step {steps} of {steps}, 12 images" in panel.message.value
    assert_tells(panel, robust, letters)


def test_the_first_frame_precedes_the_attack_and_only_the_last_is_complete(
    panel: BlindspotPanel,
    robust: nn.Module,
    letters: advnb.Split,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blindspot_module, "REFRESH", -1.0)  # a frame a step
    frames = [frame for frame in panel.frames(panel.params) if frame is not None]
    assert "before the attack" in frames[0].alt
    assert "n = " in frames[0].alt
    assert [frame.complete for frame in frames] == [False] * (len(frames) - 1) + [True]
    images = letters[:12].with_x(advnb.scale_shift(letters[:12].x, 0.9, 0))
    attack = Attack(advnb.Pixels(0.1), steps=5, lr=0.05, optimizer="sign", start="uniform")
    correct = advnb.models.logits(robust, images).argmax(1) == images.y
    for state in attack.iterate(robust, images):
        rate = advnb.stats.rate(state.success[correct])
        for frame in frames:
            if f"step {state.step} of 5" in frame.status:
                assert f"success at 0.1: {rate};" in frame.alt, f"step {state.step}"


def test_submit_refuses_an_unknown_control(panel: BlindspotPanel) -> None:
    before = panel.params
    with refused("gamma.*alpha, beta, eps, steps, model, data"):
        panel.submit(alpha=0.7, gamma=1)
    assert panel.params == before


@pytest.mark.parametrize("steps", [2.5, True, np.float32(5.7), "5", float("inf")])
def test_submit_refuses_half_a_step(panel: BlindspotPanel, steps: float) -> None:
    before = panel.params
    with refused("steps must be a whole number"):
        panel.submit(steps=steps)
    assert panel.params == before


@pytest.mark.parametrize("name", ["alpha", "beta", "eps"])
@pytest.mark.parametrize("value", [float("nan"), np.float32("nan"), "nan", "0.9", None, True])
def test_submit_refuses_what_is_no_number(panel: BlindspotPanel, name: str, value: Any) -> None:
    before = panel.params
    with refused(f"^{name} must be a finite number; got "):
        panel.submit(**{name: value})
    assert panel.params == before
    shown(panel, alpha=0.8)


def test_submit_takes_numbers_of_other_libraries(panel: BlindspotPanel) -> None:
    panel.submit(steps=np.float32(3), alpha=np.float64(0.75))
    assert (panel.params["steps"], panel.params["alpha"]) == (3, 0.75)


def test_submit_refuses_a_choice_that_compares_with_none(panel: BlindspotPanel) -> None:
    before = panel.params
    with refused("cannot be set: .*model is one of"):
        panel.submit(alpha=0.7, model=np.zeros(2))
    assert panel.params == before
    shown(panel, alpha=0.8)


def test_the_printed_numbers_are_of_such_a_model_and_radius() -> None:
    """Of any other there are none."""
    mnist, fashion = real("mnist").test(8), real("fashion").test(8)
    panel = shown(BlindspotPanel(advnb.zoo.load("mnist-cnn-adversarial"), mnist, steps=1))
    table, mine = advnb.blindspots.PRINTED, panel.params
    for changed, split, kind in (
        ({}, mnist, ("adversarial", "mnist")), ({"eps": 0.2}, mnist, None),
        ({"model": "mnist-small-certified", "eps": 0.1}, mnist, ("certified", "mnist")),
        ({"model": "mnist-small-certified"}, mnist, None),
        ({"model": "fashion-wrm", "eps": 0.1}, fashion, ("wrm", "fashion")),
        ({"model": "mnist-cnn-normal"}, mnist, None),
        ({"model": "mnist-small-certified", "eps": 0.1}, fashion, None),
        ({"model": "fashion-wrm", "eps": 0.1}, mnist, None),
    ):  # fmt: skip
        expected = list(table[kind]) if kind else []
        assert panel._paper(mine | changed, split) == expected
    names = [child.description for child in panel._pairs.children[1:]]
    assert names == [f"({a:g}, {b:g})" for a, b in advnb.blindspots.columns(mnist)]
    shown(panel, data="fashion")
    names = [child.description for child in panel._pairs.children[1:]]
    assert names == [f"({a:g}, {b:g})" for a, b in advnb.blindspots.columns(fashion)]


def test_a_closed_panel_is_freed(robust: nn.Module, letters: advnb.Split) -> None:
    panel = shown(BlindspotPanel(robust, letters, steps=2))
    model, before = weakref.ref(panel._cast["as given", "model"]), len(workers())
    panel.close()
    assert before == 1
    assert all_ended()
    del panel
    gc.collect()
    assert model() is None


def test_a_control_that_moves_starts_the_attack_anew(
    panel: BlindspotPanel, robust: nn.Module, letters: advnb.Split
) -> None:
    panel.controls["alpha"].value = 0.8
    panel.controls["beta"].value = 0.1
    shown(panel)
    assert_tells(panel, robust, letters)
    frame = panel.frame
    shown(panel, alpha=0.8)  # submitted again: worked on again
    assert panel.frame is not frame
    assert panel.frame.alt == frame.alt


@pytest.mark.parametrize("alpha", [1.0, 0.99, 0.9, 0.75, 0.5])
def test_beta_stays_where_pixels_are_valid(panel: BlindspotPanel, alpha: float) -> None:
    low, high = advnb.valid_shift(alpha)
    for beta in (-0.25, 0.25):
        panel.submit(alpha=0.5, beta=beta)
        panel.submit(alpha=alpha)
        assert panel.params["beta"] == pytest.approx(min(max(beta, low), high), abs=1e-6)
        panel.submit(beta=beta)
        assert panel.params["beta"] == pytest.approx(min(max(beta, low), high), abs=1e-6)
    assert panel.controls["beta"].disabled == (alpha == 1)
    assert shown(panel).frame.complete, "no valid (alpha, beta) is an error"


def test_the_order_of_what_is_submitted_does_not_matter(panel: BlindspotPanel) -> None:
    panel.submit(alpha=1.0)
    panel.submit(beta=0.2, alpha=0.5)
    assert (panel.params["alpha"], panel.params["beta"]) == (0.5, 0.2)


@pytest.mark.parametrize(
    ("alpha", "beta", "black", "white"),
    [(1, 0, "0", "1"), (0.9, 0.05, "0.1", "1"), (0.8, 0, "0.1", "0.9"), (0.7, -0.15, "0", "0.7")],
)
def test_words_tell_what_black_and_white_become(
    panel: BlindspotPanel, alpha: float, beta: float, black: str, white: str
) -> None:
    panel.submit(alpha=alpha, beta=beta)
    assert f"Black becomes <b>{black}</b>, white <b>{white}</b>" in panel.words.value
    assert f"contrast {alpha:.0%}" in panel.words.value


def test_models_and_data_are_picked_by_name(panel: BlindspotPanel) -> None:
    assert set(advnb.zoo.names()) < set(panel.controls["model"].options)
    names = {value for _, value in panel.controls["data"].options}
    assert names == {"as given", *advnb.data.here()}  # and nothing that is to be downloaded
    assert names >= {"fonts", "fonts-easy", "fonts-moderate"}
    shown(panel, model="fonts-cnn-normal", data="fonts-easy", beta=0.05)
    easy = advnb.load("fonts-easy").test(12)
    assert_tells(panel, advnb.zoo.load("fonts-cnn-normal"), easy)


def test_the_printed_columns_are_buttons(panel: BlindspotPanel, letters: advnb.Split) -> None:
    for alpha, beta in advnb.blindspots.columns(letters):
        press(panel, f"({alpha:g}, {beta:g})")
        assert (panel.params["alpha"], panel.params["beta"]) == (alpha, beta)
    assert shown(panel).frame.params == panel.params


def test_stop_keeps_the_picture_and_reset_goes_back(
    panel: BlindspotPanel, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, iterate, waiting = panel.params, Attack.iterate, threading.Event()

    def slow(self: Attack, *args: Any) -> Iterator[Any]:
        for state in iterate(self, *args):
            yield state
            waiting.set()
            assert gate.wait(WAIT)

    monkeypatch.setattr(Attack, "iterate", slow)
    panel.submit(alpha=0.7)
    assert waiting.wait(WAIT)
    picture = panel.view.value
    press(panel, "Stop")
    assert panel.settle(WAIT)
    assert "Stopped" in panel.message.value
    assert "before the attack" in panel.frame.alt
    gate.set()
    press(panel, "Stop")  # nothing runs: nothing happens
    assert panel.view.value == picture
    press(panel, "Reset")
    assert panel.params == first
    assert shown(panel).frame.params == first
    assert panel.frame.complete


def test_save_writes_the_picture_under_its_parameters(
    panel: BlindspotPanel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shown(panel, alpha=0.8, beta=0.1, eps=0.05)
    press(panel, "Save picture")
    (path,) = tmp_path.iterdir()
    assert path.read_bytes() == panel.frame.png
    assert path.suffix == ".png"
    for part in ("alpha-0.8", "beta-0.1", "eps-0.05"):
        assert part in path.name
    assert path.name in panel.message.value


def test_a_picture_that_cannot_be_saved_is_told_in_the_panel(
    panel: BlindspotPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(blindspot_module, "write", full)
    shown(panel)
    press(panel, "Save picture")
    assert 'role="alert"' in panel.message.value
    assert "Not saved: No space left on device" in panel.message.value


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("<b>planted</b>")


def test_an_error_is_shown_and_the_panel_goes_on(letters: advnb.Split) -> None:
    panel = BlindspotPanel(Raises(), letters, steps=3)
    assert panel.settle(WAIT)
    assert panel.frame is None
    assert 'role="alert"' in panel.message.value
    assert "planted" in panel.message.value
    assert "<b>" not in panel.message.value, "an error's text is no HTML"
    shown(panel, model="fonts-cnn-adversarial")
    assert panel.frame.complete
    assert 'role="status"' in panel.message.value


def test_data_that_has_gone_is_an_error_in_the_panel(
    unkept: Path, letters: advnb.Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advnb.downloads, "reachable", lambda addresses: False)
    unkept.mkdir()
    (unkept / "mnist.npz").touch()
    panel = shown(BlindspotPanel(advnb.zoo.load("fonts-cnn-normal"), letters, steps=3))
    (unkept / "mnist.npz").unlink()
    panel.submit(data="mnist")
    assert panel.settle(WAIT)
    assert "MNIST is not on this machine" in panel.message.value
    assert panel.frame is None
    assert panel.view.value == ""  # the last picture was of other images
    press(panel, "Reset")
    assert shown(panel).frame.params == panel.params
    assert "not on this machine" not in panel.message.value


class Alt(HTMLParser):
    """The tags of a page, and the alt text of its one picture."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text = dict(attributes).get("alt")


def test_alt_text_is_escaped(robust: nn.Module, fonts: advnb.Dataset) -> None:
    hostile = replace(fonts, classes=tuple(f'"><script>{c}&amp;' for c in fonts.classes))
    panel = shown(AttackPanel(robust, hostile.test(3), steps=2))
    page = Alt(panel.view.value)
    assert page.tags == ["img"]
    assert page.text == panel.frame.alt
    assert "<script>A&amp;" in panel.frame.alt


def test_the_panel_works_on_a_copy_of_the_model(robust: nn.Module, letters: advnb.Split) -> None:
    model = advnb.zoo.load("fonts-cnn-adversarial").train()
    panel = shown(BlindspotPanel(model, letters, alpha=0.9, steps=3))
    assert all(module.training for module in model.modules())
    assert all(weight.grad is None for weight in model.parameters())
    with torch.no_grad():
        for weight in model.parameters():  # a training step, say
            weight.zero_()
    shown(panel, beta=0.05)
    assert_tells(panel, robust, letters)


def test_random_numbers_of_the_kernel_are_left_alone(panel: BlindspotPanel) -> None:
    torch.manual_seed(3)
    alone = torch.stack([torch.rand(2) for _ in range(200)])
    state = torch.get_rng_state()
    torch.manual_seed(3)
    panel.submit(alpha=0.8, steps=20)
    beside = []
    for _ in range(200):
        beside.append(torch.rand(2))
        panel.settle(0.001)
    shown(panel)
    assert torch.equal(alone, torch.stack(beside))
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_and_gradients_of_the_kernel_are_left_alone(
    robust: nn.Module, letters: advnb.Split
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        shown(BlindspotPanel(robust, letters, steps=2))
        assert torch.get_num_threads() == 3
        assert torch.is_grad_enabled()
    finally:
        torch.set_num_threads(before)


def test_a_page_without_a_kernel_has_the_complete_picture(
    robust: nn.Module, letters: advnb.Split
) -> None:
    panel = BlindspotPanel(robust, letters, alpha=0.9, steps=10)
    bundle = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert panel.frame.complete
    assert base64.b64decode(bundle["image/png"]) == panel.frame.png
    assert panel.frame.png.startswith(PNG)
    assert bundle["text/plain"] == panel.frame.alt
    assert "after step 10 of 10" in bundle["text/plain"]


def test_radius_and_size_come_from_data_and_profile(
    robust: nn.Module, letters: advnb.Split
) -> None:
    panel = shown(BlindspotPanel(robust, letters, steps=1))
    assert panel.params["eps"] == 0.1
    assert "12 images" in panel.message.value, "the smoke profile's"
    panel = shown(BlindspotPanel(robust, letters, eps=0.05, images=3, steps=1))
    assert panel.params["eps"] == 0.05
    assert "3 images" in panel.message.value
    plain = advnb.Split(letters.x, letters.y)  # images from nowhere in particular
    assert shown(BlindspotPanel(robust, plain, steps=1)).frame.complete


def test_a_set_of_fewer_images_than_are_wanted(
    robust: nn.Module, letters: advnb.Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "mnist.npz", **arrays((28, 28), n=20))
    monkeypatch.setenv("ADVNB_DATA", str(tmp_path))
    panel = shown(BlindspotPanel(robust, letters, images=15, steps=1))
    assert "15 images" in panel.message.value
    assert shown(panel, data="mnist").frame.complete
    assert "10 images" in panel.message.value, "all there are"


# the blind-spot panel's map -----------------------------------------------------------------------


GRID: dict[str, Any] = {"alphas": [0.5, 0.76, 1.0], "shifts": [-1, 0, 1]}


@pytest.fixture
def mapped(
    robust: nn.Module, letters: advnb.Split, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> BlindspotPanel:
    """A panel with a map of 3 x 3, and nothing found by earlier ones."""
    monkeypatch.setenv("ADVNB_CACHE", str(tmp_path / "cache"))
    return shown(BlindspotPanel(robust, letters, eps=0.05, steps=2, **GRID))


def chart(panel: BlindspotPanel) -> PointedImage:
    (found,) = (widget for widget in walk(panel) if isinstance(widget, PointedImage))
    return found


def alt(panel: BlindspotPanel) -> str:
    page = Alt(chart(panel).value)
    assert page.tags == ["img"]
    return page.text or ""


def land(panel: BlindspotPanel) -> advnb.blindspots.Landscape:
    found = panel._map._land
    assert found is not None
    return found


def click(panel: BlindspotPanel, alpha: float, shift: float) -> None:
    """Click where a pair stands in the picture."""
    figure = panel._map._artist.figure
    x, y = figure.axes[0].transData.transform((alpha, shift))
    width, height = figure.canvas.get_width_height()
    view = chart(panel)
    view.click = [x / width, 1 - y / height, view.click[2] + 1]


def test_no_map_is_drawn_or_searched_before_somebody_asks(mapped: BlindspotPanel) -> None:
    assert chart(mapped).layout.display == "none"
    click_nowhere = [0.5, 0.5, 1]
    chart(mapped).click = click_nowhere
    shown(mapped, alpha=0.8)
    assert chart(mapped).value == ""
    assert mapped._map._land is None
    assert mapped._map.below(mapped.frame.png) == mapped.frame.png


def test_the_map_has_the_numbers_of_the_panel(mapped: BlindspotPanel) -> None:
    press(mapped, "Map")
    assert shown(mapped).frame.complete
    assert chart(mapped).layout.display == ""
    assert mapped.frame.params == mapped.params
    assert "9 of 9 pairs of the map" in mapped.message.value
    table = land(mapped).table()
    assert table.alpha.unique().tolist() == [0.5, 0.76, 1.0]
    assert table["shift"].unique().tolist() == [-1, 0, 1]
    for row in table.itertuples():
        shown(mapped, alpha=row.alpha, beta=row.beta)
        assert f"accuracy: {row.accuracy}; success at 0.05: {row.success};" in mapped.frame.alt
    assert "within ε = 0.05 of 12 images. " in alt(mapped)
    right = table.accuracy[table.alpha == 1].iloc[0].value
    blind = sum(
        row.accuracy.value >= 0.99 * right and row.success.value >= 0.5
        for row in table.itertuples()
    )
    assert f"{blind} keep 99 % of that accuracy" in alt(mapped)


def test_sliders_move_the_ring_and_a_click_moves_the_sliders(
    mapped: BlindspotPanel, robust: nn.Module, letters: advnb.Split
) -> None:
    press(mapped, "Map")
    before = chart(shown(mapped)).value
    shown(mapped, alpha=0.6, beta=-0.1)
    assert "A ring at alpha 0.6, relative shift -0.50." in alt(mapped)
    assert chart(mapped).value != before
    for alpha, shift, beta in ((0.5, 1, 0.25), (0.76, -1, -0.12), (1, 1, 0), (0.5, 0, 0)):
        click(mapped, alpha, shift)
        assert (mapped.params["alpha"], mapped.params["beta"]) == (alpha, beta)
        shown(mapped)
        assert_tells(mapped, robust, letters)
        assert f"A ring at alpha {alpha:g}, relative shift {shift if alpha < 1 else 0:.2f}." in alt(
            mapped
        )
    first = mapped.frame
    chart(mapped).click = [0.01, 0.5, 99]  # beside the axes
    assert shown(mapped).frame is first


def test_the_ring_moves_with_the_first_frame(mapped: BlindspotPanel) -> None:
    press(mapped, "Map")
    shown(mapped)
    mapped._map.asked = None
    first = next(mapped.frames(mapped.params | {"alpha": 0.7, "beta": 0.15}))
    assert "before the attack" in first.alt
    assert "A ring at alpha 0.7, relative shift 1.00." in first.map_alt
    assert first.map.startswith(PNG)


def test_stop_keeps_what_is_done_and_map_goes_on(
    mapped: BlindspotPanel, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, waiting = advnb.blindspots.Landscape.search, threading.Event()

    def slow(self: advnb.blindspots.Landscape) -> Iterator[None]:
        for _ in search(self):
            yield
            if self.known.sum() == 5 and not gate.is_set():
                waiting.set()
                assert gate.wait(WAIT)

    monkeypatch.setattr(advnb.blindspots.Landscape, "search", slow)
    press(mapped, "Map")
    assert waiting.wait(WAIT)
    press(mapped, "Stop")
    assert mapped.settle(WAIT)
    assert "Stopped" in mapped.message.value
    gate.set()
    shown(mapped, alpha=0.9)
    assert land(mapped).known.sum() == 5, "what was stopped stays stopped"
    assert ", 5 of 9 pairs. " in alt(mapped)
    stopped = land(mapped)
    begun, iterate = [], Attack.iterate

    def noted(self: Attack, *args: Any) -> Iterator[Any]:
        begun.append(self)
        yield from iterate(self, *args)

    monkeypatch.setattr(Attack, "iterate", noted)
    press(mapped, "Map")
    assert shown(mapped).frame.complete
    assert land(mapped) is stopped
    assert land(mapped).known.all()
    assert len(begun) in (5, 6), "two for the picture, and what was not known"


def test_newer_parameters_cut_into_the_search_and_it_goes_on(
    mapped: BlindspotPanel, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, waiting = advnb.blindspots.Landscape.search, threading.Event()

    def slow(self: advnb.blindspots.Landscape) -> Iterator[None]:
        for _ in search(self):
            waiting.set()
            assert gate.wait(WAIT)
            yield

    monkeypatch.setattr(advnb.blindspots.Landscape, "search", slow)
    press(mapped, "Map")
    assert waiting.wait(WAIT)
    mapped.submit(alpha=0.8)
    gate.set()
    shown(mapped)
    assert mapped.frame.params["alpha"] == 0.8
    assert mapped.frame.complete
    assert land(mapped).known.all(), "nobody has stopped it"


def test_a_second_map_is_there_at_once_and_others_wait_for_the_button(
    mapped: BlindspotPanel,
    robust: nn.Module,
    letters: advnb.Split,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    press(mapped, "Map")
    first = land(shown(mapped)).table().to_dict()
    shown(mapped, eps=0.1)
    assert not land(mapped).known.any(), "another radius, another map: nobody asked for it"
    assert ", 0 of 9 pairs. " in alt(mapped)
    again = shown(BlindspotPanel(robust, letters, eps=0.05, steps=2, **GRID))
    monkeypatch.setattr(advnb.blindspots.Landscape, "_search", lambda self: iter(()))  # nothing
    press(again, "Map")
    assert land(shown(again)).table().to_dict() == first


def test_an_error_of_the_map_is_shown_and_the_next_press_goes_on(
    mapped: BlindspotPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: advnb.blindspots.Landscape) -> Iterator[None]:
        raise RuntimeError("planted")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(advnb.blindspots.Landscape, "_search", fails)
        press(mapped, "Map")
        assert mapped.settle(WAIT)
        assert 'role="alert"' in mapped.message.value
        assert "planted" in mapped.message.value
    press(mapped, "Map")
    assert shown(mapped).frame.complete
    assert land(mapped).known.all()


def test_an_error_takes_the_map_of_other_values_off_the_page(
    mapped: BlindspotPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(name: str) -> advnb.Dataset:
        raise ConnectionError("planted")

    press(mapped, "Map")
    assert alt(shown(mapped))
    monkeypatch.setattr(blindspot_module, "load", gone)
    mapped.submit(data="fonts-easy")
    assert mapped.settle(WAIT)
    assert mapped.frame is None
    assert chart(mapped).value == mapped.view.value == ""
    assert mapped._map.below(b"png") == b"png"
    press(mapped, "Reset")
    assert "9 of 9 pairs" in shown(mapped).message.value
    assert "within ε = 0.05 of 12 images. " in alt(mapped)


def test_a_map_that_reaches_beyond_the_slider_is_refused(
    robust: nn.Module, letters: advnb.Split
) -> None:
    with refused(r"alphas must be 0\.5 or more, as the slider is; got 0\.3"):
        BlindspotPanel(robust, letters, alphas=[0.3, 1.0])


def test_a_page_without_a_kernel_has_the_map_as_well(
    mapped: BlindspotPanel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mapped.map()
    bundle = mapped._repr_mimebundle_()
    both, picture = (
        Image.open(io.BytesIO(png))
        for png in (base64.b64decode(bundle["image/png"]), mapped.frame.png)
    )
    assert both.width == picture.width
    assert both.height > 1.5 * picture.height
    assert both.crop((0, 0, *picture.size)).tobytes() == picture.tobytes()
    assert bundle["text/plain"] == f"{mapped.frame.alt} {alt(mapped)}"
    monkeypatch.chdir(tmp_path)
    press(mapped, "Save picture")
    (path,) = tmp_path.glob("*.png")
    assert path.read_bytes() == base64.b64decode(bundle["image/png"])


# the attack panel ---------------------------------------------------------------------------------


def assert_becomes(panel: AttackPanel, model: nn.Module, split: advnb.Split) -> None:
    """The picture is complete, and tells what an attack of our own finds."""
    p, frame = panel.params, panel.frame
    one = split[p["image"]]
    attack = Attack(
        advnb.Pixels(p["eps"], p["norm"]), steps=p["steps"], lr=2.5 * p["eps"] / p["steps"],
        optimizer="sign", start="zero", loss=p["loss"],
    )  # fmt: skip
    result = attack(model, one)
    before, after = advnb.models.predictions(model, one), one.with_x(result.x[0])
    assert frame.complete
    assert frame.params == p
    assert frame.png.startswith(PNG)
    assert f"classified as {before[0][0]};" in frame.alt
    ends = advnb.models.predictions(model, after)
    told = "is still classified as" if ends == before else "becomes"
    assert f"it {told} {ends[0][0]}." in frame.alt
    assert frame.status.startswith("fooled" if result.success.all() else "not fooled")


def test_every_control_of_the_attack_panel_submits(robust: nn.Module, letters: advnb.Split) -> None:
    panel = shown(AttackPanel(robust, letters, eps=0.1, steps=6))
    assert_becomes(panel, robust, letters)
    changes = {"image": 4, "eps": 0.3, "steps": 9, "norm": "l2", "loss": "margin"}
    assert changes.keys() == panel.controls.keys()
    for name, value in changes.items():
        shown(panel, **{name: value})
        assert panel.params[name] == value
        assert_becomes(panel, robust, letters)
    press(panel, "Reset")
    assert panel.params == {"image": 0, "eps": 0.1, "steps": 6, "norm": "linf", "loss": "ce"}
    assert_becomes(shown(panel), robust, letters)


class Masked(nn.Module):
    """Logits so large that the cross-entropy has no gradient left."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.model(x)


@pytest.mark.filterwarnings("ignore::advnb.AttackWarning")
def test_the_margin_breaks_what_cross_entropy_cannot(letters: advnb.Split) -> None:
    masked = Masked(advnb.zoo.load("fonts-cnn-normal")).eval()
    right = letters[advnb.models.logits(masked, letters).argmax(1) == letters.y]
    panel = shown(AttackPanel(masked, right, eps=0.2, steps=10))
    assert panel.frame.status.startswith("not fooled after 10 steps")
    assert shown(panel, loss="margin").frame.status.startswith("fooled")
    assert_becomes(panel, masked, right)


@pytest.mark.parametrize("change", [{"norm": "l2", "eps": 3.0}, {"eps": 3.0, "norm": "l2"}])
def test_the_norm_decides_how_large_eps_may_be(
    robust: nn.Module, letters: advnb.Split, change: dict[str, Any]
) -> None:
    panel = shown(AttackPanel(robust, letters, steps=3))
    assert shown(panel, eps=3.0).params["eps"] == 0.5
    assert shown(panel, **change).params["eps"] == 3.0
    assert_becomes(panel, robust, letters)
    assert shown(panel, norm="linf").params["eps"] == 0.5
    assert_becomes(panel, robust, letters)


def test_within_a_radius_of_0_there_is_nothing_to_search(
    robust: nn.Module, letters: advnb.Split
) -> None:
    panel = shown(AttackPanel(robust, letters, steps=3), eps=0.0)
    assert "eps is 0" in panel.message.value
    assert panel.frame.complete


def test_an_unknown_control_to_show_is_refused(robust: nn.Module, letters: advnb.Split) -> None:
    with refused("no control is called 'epsilon'"):
        AttackPanel(robust, letters, show=["image", "epsilon"])
    panel = shown(AttackPanel(robust, letters, steps=2, show=["image"]))
    on_page = [widget for widget in walk(panel) if widget in panel.controls.values()]
    assert on_page == [panel.controls["image"]]
    assert_becomes(shown(panel, eps=0.2), robust, letters)


# all panels together ------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [5, 14])
def test_a_model_of_more_or_fewer_outputs_than_named_classes(
    letters: advnb.Split, outputs: int
) -> None:
    few = letters[letters.y < 5]
    model = advnb.models.CNN(classes=outputs).eval()
    panel = shown(AttackPanel(model, few, steps=2))
    assert "fooled" in panel.message.value or "wrong before the attack" in panel.message.value


@pytest.mark.parametrize("name", advnb.downloads.KNOWN)
def test_short_captions_still_tell_the_classes_apart(name: str) -> None:
    classes = advnb.downloads.KNOWN[name].classes
    texts = {advnb.plots.caption(guess, True)["text"] for guess in classes}
    assert len(texts) == len(set(classes)) == len(classes)
    assert max(map(len, texts)) <= 11


def test_python_ends_cleanly_while_a_panel_works() -> None:
    code = """if True:
        import advnb
        model, data = advnb.zoo.load("fonts-cnn-adversarial"), advnb.load("fonts")
        panel = advnb.live.AttackPanel(model, data.test(50), steps=100)
    """
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_close_all_ends_every_thread_and_a_moved_control_wakes_its_panel(
    panel: BlindspotPanel, robust: nn.Module, letters: advnb.Split
) -> None:
    other = shown(AttackPanel(robust, letters, steps=2))
    assert len(workers()) == 2
    close_all()
    assert all_ended()
    assert panel.view.value, "the picture stays"
    panel.controls["alpha"].value = 0.8
    shown(panel)
    assert len(workers()) == 1
    assert_tells(panel, robust, letters)
    panel.close()
    other.close()
    assert all_ended()


def test_a_cell_that_runs_again_replaces_its_panel(
    robust: nn.Module, letters: advnb.Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel_module, "_cell", lambda: ("one", "run 1"))
    first = shown(AttackPanel(robust, letters, steps=2))
    (old,) = workers()
    monkeypatch.setattr(panel_module, "_cell", lambda: ("another", "run 2"))
    beside = shown(AttackPanel(robust, letters, steps=2))
    same_run = shown(AttackPanel(robust, letters, steps=2))
    assert beside.comm is not None, "two panels of one run stay side by side"
    same_run.close()
    monkeypatch.setattr(panel_module, "_cell", lambda: ("one", "run 3"))
    second = shown(BlindspotPanel(robust, letters, steps=2))
    assert first.comm is None, "closed: gone from the page"
    assert beside.comm is not None
    assert second.comm is not None
    old.join(WAIT)
    assert not old.is_alive()
    assert len(workers()) == 2


@pytest.fixture
def grid() -> pd.DataFrame:
    """Two strategies, two measures and two sizes, of three seeds."""
    rows = [
        ("fonts", "CNN", recipe, attack, n, value + 0.1 * (recipe == "on-true"), 3)
        for recipe in ("normal", "on-true")
        for attack, n, value in (("error", 250, 0.7), ("error", 1000, 0.5), ("on-true", 250, 0.9))
    ]
    names = ["data", "model", "recipe", "attack", "n", "value", "seeds"]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(low=table.value - 0.02, high=table.value + 0.02)


def test_curves_are_told_at_a_size(grid: pd.DataFrame) -> None:
    panel = CurvePanel(grid, own=grid[grid.n == 250].assign(seeds=1), paper=curves.printed())
    assert panel.settle(20)
    assert panel.frame is not None
    assert panel.params == {"strategy": "all", "measure": "error", "against": "n", "n": 250}
    told = "test error at 250 training images: normal 0.700 [0.680, 0.720], on-true 0.800"
    assert panel.frame.status.startswith(told)
    before = panel.frame.png
    panel.submit(strategy="on-true", n=1000)
    assert panel.settle(20)
    assert panel.frame.status == "test error at 1,000 training images: on-true 0.600 [0.580, 0.620]"
    assert panel.frame.png != before
    panel.submit(measure="on-true")
    assert panel.settle(20)
    assert panel.frame.status.endswith("at 1,000 training images: not measured")
    panel.submit(against="error", measure="on-true", strategy="all")
    assert panel.settle(20)
    assert panel.frame.alt.startswith("on-manifold success (known) against test error, all.")
    with pytest.raises(ValueError, match="measure is one of"):
        panel.submit(measure="speed")
    panel.close()


def test_measures_without_a_place_come_last(grid: pd.DataFrame) -> None:
    other = grid[grid.attack == "on-true"].assign(attack="regular-l2")
    panel = CurvePanel(pd.concat([other, grid]))
    measures = [value for _, value in panel.controls["measure"].options]
    assert measures == ["error", "on-true", "regular-l2"]
    panel.close()
    panel = CurvePanel(other)
    assert panel.settle(20)
    assert panel.frame is not None
    assert panel.frame.status.startswith("regular-l2 at 250 training images: normal 0.900")
    panel.close()


def test_curves_of_nothing(grid: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="the table is empty"):
        CurvePanel(grid[:0])


def test_where_the_points_of_a_curve_lie(grid: pd.DataFrame) -> None:
    (axes,) = plots.generalization(grid, "error", paper=curves.printed()).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["normal"].get_xydata().tolist() == [[250, 0.7], [1000, 0.5]]
    assert axes.get_xscale() == "log"
    diamonds = [line for line in axes.lines if line.get_marker() == "D"]
    assert any([250, 0.729515] in np.round(d.get_xydata(), 6).tolist() for d in diamonds)
    (axes,) = plots.generalization(grid, "on-true", against="error").axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["on-true"].get_xydata().tolist() == [[pytest.approx(0.8), pytest.approx(1.0)]]


def test_what_the_axes_of_the_curves_tell() -> None:
    shipped = curves.summary(advnb.sweeps.shipped("fonts"))
    main = shipped[shipped.recipe.isin(curves.FIGURE)]
    (axes,) = plots.generalization(main).axes
    assert axes.get_yscale() == "log"
    told = [label.get_text() for label in axes.get_yticklabels()]
    assert told == ["0.05", "0.1", "0.2", "0.5"], "where errors lie, and no further"
    assert axes.get_ylim()[0] > 0.03
    (axes,) = plots.generalization(main, "on-true").axes
    assert axes.get_yscale() == "linear"
    (axes,) = plots.generalization(main, "regular", against="error").axes
    assert {text.get_text() for text in axes.texts} == {"N = 250", "N = 10,000"}
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}
    steep = lines["regular"]
    assert [text.xy[1] for text in axes.texts] == [max(steep), min(steep)], "not on a flat line"
    assert min(lines["normal"]) > 0.95


@pytest.mark.parametrize("eps", [8 / 255, 0.3, 0.1, 0.005, 0.123])
def test_a_page_that_rounds_to_steps_keeps_the_radius(letters: advnb.Split, eps: float) -> None:
    model = advnb.zoo.load("fonts-cnn-normal")
    control = BlindspotPanel(model, letters, eps=eps, steps=1).controls["eps"]
    steps = (control.value - control.min) / control.step
    assert steps == pytest.approx(round(steps), abs=1e-3)
    assert control.value == eps


def test_other_data_bring_their_radius(letters: advnb.Split) -> None:
    model = advnb.zoo.load("fonts-cnn-normal")
    panel = shown(BlindspotPanel(model, letters, eps=0.2, steps=1))
    panel.submit(data="fonts")
    assert shown(panel).params["eps"] == 0.1
    panel.submit(data="as given", eps=0.3)
    assert shown(panel).params["eps"] == 0.3
    panel.submit(data="fonts")
    press(panel, "Reset")
    assert shown(panel).params["eps"] == 0.2


def test_before_the_attack_there_is_no_success(letters: advnb.Split) -> None:
    panel = shown(BlindspotPanel(advnb.zoo.load("fonts-cnn-normal"), letters, steps=1))
    first = next(panel.frames(panel.params))
    assert first is not None
    assert "before the attack" in first.status
    assert "accuracy" in first.alt
    assert "success" not in first.alt


def test_an_image_that_was_wrong_is_not_fooled(letters: advnb.Split) -> None:
    model = advnb.zoo.load("fonts-cnn-normal")
    wrong = advnb.models.logits(model, letters).argmax(1) != letters.y
    panel = shown(AttackPanel(model, letters, image=int(wrong.nonzero()[0]), steps=2))
    assert "wrong before the attack" in panel.message.value


def test_stop_before_there_is_a_picture_says_so(letters: advnb.Split) -> None:
    panel = shown(BlindspotPanel(advnb.zoo.load("fonts-cnn-normal"), letters, steps=1))
    with panel.runner._working:  # the thread cannot begin
        panel.submit(alpha=0.9)
        press(panel, "Stop")
    assert "Stopped before there was a picture" in panel.message.value
