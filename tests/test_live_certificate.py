"""The certificate panel without a browser: it tells what certificates and an attack of our own say,
and the newest values win."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advnb
from advnb import Split, certify, stats
from advnb.attacks import Attack
from advnb.blindspots import scale_shift
from advnb.bounds import STANDINGS
from advnb.live import CertificatePanel, close_all
from advnb.live import certificate as module
from advnb.live.certificate import CertificateFigure

from .conftest import refused
from .test_live import PNG, WAIT, all_ended, press, shown

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(autouse=True)
def _tidy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "REFRESH", 1e9)  # no frames between the first and the last
    yield
    close_all()
    assert all_ended()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small random network; the images below have its own labels, but for one."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 16), nn.ReLU(),
        nn.Linear(16, 3),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def split(model: nn.Module) -> Split:
    x = torch.rand(18, 1, 6, 6, generator=stats.generator(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[3] = (y[3] + 1) % 3
    return Split(x, y)


@pytest.fixture
def panel(model: nn.Module, split: Split) -> CertificatePanel:
    return shown(CertificatePanel(model, split, eps=0.05, images=18))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the panel draws from now on."""
    seen: list[tuple[Any, ...]] = []
    draw = CertificateFigure.draw

    def noted(self: CertificateFigure, *what: Any) -> bytes:
        seen.append(what)
        return draw(self, *what)

    monkeypatch.setattr(CertificateFigure, "draw", noted)
    return seen


def masks(model: nn.Module, split: Split, params: dict[str, float]) -> dict[str, Tensor]:
    """Right, certified by intervals and by lines, and fooled, by calls of our own."""
    eps = params["eps"]
    images = split.with_x(scale_shift(split.x, params["alpha"], params["beta"]))
    attack = Attack(
        advnb.Pixels(eps), steps=40, lr=max(0.01, 2.5 * eps / 40), optimizer="sign", start="gray"
    )
    result = attack(model, images)
    return {
        "right": result.correct,
        "fooled": result.success[0] & result.correct,
        "ibp": certify.certified(model, images, eps, method="ibp"),
        "crown": certify.certified(model, images, eps, inner="ibp"),
    }


VALUES = [(1.0, 0.0, 0.05), (0.9, 0.05, 0.03), (0.8, -0.1, 0.02), (0.7, 0.15, 0.2)]


@pytest.mark.parametrize(("alpha", "beta", "eps"), VALUES)
def test_frames_tell_the_counts_of_our_own(
    panel: CertificatePanel,
    model: nn.Module,
    split: Split,
    drawn: list[tuple[Any, ...]],
    alpha: float,
    beta: float,
    eps: float,
) -> None:
    params = {"alpha": alpha, "beta": beta, "eps": eps}
    known = masks(model, split, params)
    right, fooled = known["right"], known["fooled"]
    frames = [frame for frame in panel.frames(params) if frame is not None]
    assert [frame.complete for frame in frames] == [False] * (len(frames) - 1) + [True]
    for frame, sure, lost in (
        (frames[0], known["ibp"], torch.zeros_like(fooled)),
        (frames[1], known["crown"], torch.zeros_like(fooled)),
        (frames[-1], known["crown"], fooled),
    ):
        kinds = [
            "wrong" if not r else "fooled" if f else "certified" if s else "open"
            for r, f, s in zip(right.tolist(), lost.tolist(), sure.tolist())
        ]
        assert ", ".join(f"{kinds.count(kind)} {kind}" for kind in STANDINGS) in frame.alt
        assert f"right: {stats.rate(right)};" in frame.alt
        assert f"withstand the attack: {stats.rate(right & ~lost)};" in frame.alt
        assert f"certified: {stats.rate(sure)}." in frame.alt
        assert f"alpha {alpha:g} and shifted by beta {beta:g}, within {eps:g}" in frame.alt
        assert frame.png.startswith(PNG)
    x, kinds_drawn, names, _ = drawn[-1]
    assert torch.equal(x, scale_shift(split.x, alpha, beta)[:16])
    assert kinds_drawn == kinds[:16]
    for name, kind, label in zip(names, kinds, split.y.tolist()):
        assert (name == str(label)) == (kind in ("certified", "open"))


def test_all_standings_occur(model: nn.Module, split: Split) -> None:
    seen: set[str] = set()
    for alpha, beta, eps in VALUES:
        known = masks(model, split, {"alpha": alpha, "beta": beta, "eps": eps})
        seen |= {"wrong"} if not known["right"].all() else set()
        seen |= {"fooled"} if known["fooled"].any() else set()
        seen |= {"certified"} if known["crown"].any() else set()
        seen |= {"open"} if (known["right"] & ~known["fooled"] & ~known["crown"]).any() else set()
    assert seen == set(STANDINGS)


def test_the_picture_shows_rates_and_what_is_open() -> None:
    figure = CertificateFigure()
    rates = {
        "right": stats.Rate(0.9, 0.8, 1.0, 20),
        "withstand the attack": stats.Rate(0.7, 0.6, 0.8, 20),
        "certified": stats.Rate(0.4, 0.3, 0.5, 20),
    }
    x = torch.rand(4, 3, 5, 7)
    kinds = ["certified", "open", "fooled", "wrong"]
    figure.draw(x, kinds, ["1", "2", "3", "a very long name of a class"], rates)
    assert [bar.get_width() for bar in figure.bars] == [0.9, 0.7, 0.4]
    assert figure.gap.get_x() == 0.4
    assert figure.gap.get_width() == pytest.approx(0.3)
    assert "30.0%" in figure.between.get_text()
    texts = [text.get_text() for text in figure.texts]
    assert texts[:3] == ["certified", "open", "fooled\n3"]
    assert texts[3].startswith("wrong\na")
    assert len({box.get_edgecolor() for box in figure.boxes}) == 4
    figure.draw(x, kinds, ["1"] * 4, rates | {"withstand the attack": rates["certified"]})
    assert figure.between.get_text() == ""
    assert figure.gap.get_width() == 0


def test_the_newest_values_win(
    panel: CertificatePanel, model: nn.Module, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, waiting, gate = panel.params, threading.Event(), threading.Event()
    iterate = Attack.iterate

    def slow(self: Attack, *args: Any) -> Iterator[Any]:
        for state in iterate(self, *args):
            yield state
            waiting.set()
            assert gate.wait(WAIT)

    monkeypatch.setattr(Attack, "iterate", slow)
    panel.submit(alpha=0.6)
    assert waiting.wait(WAIT)
    for alpha in (0.7, 0.8, 0.9):
        panel.submit(alpha=alpha, beta=0.05)
    gate.set()
    shown(panel)
    assert panel.frame.params == {"alpha": 0.9, "beta": 0.05, "eps": 0.05}
    assert panel.frame.complete
    known = masks(model, split, panel.params)
    assert f"certified: {stats.rate(known['crown'])}." in panel.frame.alt
    gate.clear()
    waiting.clear()
    panel.submit(alpha=0.7)
    assert waiting.wait(WAIT)
    press(panel, "Stop")
    assert panel.settle(WAIT)
    assert "Stopped" in panel.message.value
    gate.set()
    press(panel, "Reset")
    assert shown(panel).frame.params == first


@pytest.mark.parametrize("alpha", [1.0, 0.9, 0.5])
def test_beta_stays_where_pixels_are_valid(panel: CertificatePanel, alpha: float) -> None:
    low, high = advnb.valid_shift(alpha)
    for beta in (-0.25, 0.25):
        panel.submit(alpha=alpha, beta=beta)
        assert panel.params["beta"] == pytest.approx(min(max(beta, low), high), abs=1e-6)
    assert panel.controls["beta"].disabled == (alpha == 1)
    assert shown(panel).frame.complete, "no valid (alpha, beta) is an error"


@pytest.mark.parametrize(
    ("alpha", "beta", "black", "white", "moved"),
    [(1, 0, "0", "1", "0"), (0.9, 0.05, "0.1", "1", "0.1"), (0.8, -0.1, "0", "0.8", "0.2")],
)
def test_words_tell_how_far_pixels_move(
    panel: CertificatePanel, alpha: float, beta: float, black: str, white: str, moved: str
) -> None:
    panel.submit(alpha=alpha, beta=beta)
    for text in (f"Black becomes <b>{black}</b>", f"white <b>{white}</b>", f"than <b>{moved}</b>"):
        assert text in panel.words.value


def test_the_printed_columns_are_buttons(panel: CertificatePanel, split: Split) -> None:
    for alpha, beta in advnb.blindspots.columns(split, "certified"):
        press(panel, f"({alpha:g}, {beta:g})")
        assert (panel.params["alpha"], panel.params["beta"]) == (alpha, beta)


def test_an_error_is_shown_in_the_panel(
    panel: CertificatePanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("<b>planted</b>")

    monkeypatch.setattr(module, "certified", broken)
    panel.submit(alpha=0.8)
    assert panel.settle(WAIT)
    assert 'role="alert"' in panel.message.value
    assert "planted" in panel.message.value
    assert "<b>" not in panel.message.value, "an error's text is no HTML"
    monkeypatch.undo()
    assert shown(panel, alpha=0.9).frame.complete


def test_the_first_picture_stands_in_where_nothing_is_live(panel: CertificatePanel) -> None:
    bundle = panel._repr_mimebundle_()
    assert bundle["image/png"]
    assert "certified" in bundle["text/plain"]
    assert 'alt="' in panel.view.value


def test_bad_input(model: nn.Module, split: Split) -> None:
    with refused("beta may go from -0.05 to 0.05"):
        CertificatePanel(model, split, alpha=0.9, beta=0.1)
    with refused("images must be a whole number"):
        CertificatePanel(model, split, images=0)
    with refused("eps must be"):
        CertificatePanel(model, split, eps=0.9)
    with refused("alpha must be"):
        CertificatePanel(model, split, alpha=0.3)
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ELU(), nn.Linear(8, 3)).eval()
    with refused("ELU"):
        CertificatePanel(smooth, split)
    close_all()
