"""The latent and the step panel without a browser: what they show, against glyphs moved by SciPy,
finite differences and attacks of our own."""

from __future__ import annotations

import copy
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import advnb
from advnb import Attack, OnManifold, Pixels, Split, vaegan
from advnb.fonts import ATLAS, LATENTS, KnownManifold
from advnb.learned import LearnedManifold
from advnb.live import LatentPanel, StepPanel, close_all
from advnb.live import latent as latent_module
from advnb.live import steps as steps_module
from advnb.live.latent import ARROWS, strengths
from advnb.live.panel import Panel
from advnb.live.runner import Frame

from .conftest import refused
from .test_live import PNG, WAIT, all_ended, press, shown, workers
from .test_manifolds import in_double, moved

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
def letters(fonts: advnb.Dataset) -> Split:
    return fonts.test(20)


@pytest.fixture(scope="module")
def learned(fonts: advnb.Dataset) -> LearnedManifold:
    """Ten networks that have learned next to nothing."""
    settings = vaegan.Settings(width=4, steps=5)
    return vaegan.train(fonts.train(1000), settings, progress=False)


@pytest.fixture
def panel(model: nn.Module, letters: Split) -> LatentPanel:
    return shown(LatentPanel(model, letters, image=3))


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What panels work on from now on."""
    seen: list[dict[str, Any]] = []
    post = advnb.live.runner.Runner.post

    def noted(self: Any, params: dict[str, Any]) -> None:
        seen.append(params)
        post(self, params)

    monkeypatch.setattr(advnb.live.runner.Runner, "post", noted)
    return seen


class Gate:
    """Decoding waits here, from the second code on, for one `open` a time."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.turns, self.waits = threading.Semaphore(0), threading.Semaphore(0)
        decode = KnownManifold.decode

        def waiting(manifold: KnownManifold, z: Tensor, split: Split) -> Tensor:
            self.waits.release()
            assert self.turns.acquire(timeout=WAIT)
            return decode(manifold, z, split)

        patch.setattr(KnownManifold, "decode", waiting)

    def open(self, turns: int = 10_000) -> None:
        self.turns.release(turns)

    def reached(self) -> None:
        """Wait until somebody waits."""
        assert self.waits.acquire(timeout=WAIT)


@pytest.fixture
def gate(
    panel: LatentPanel, posts: list, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Gate]]:
    """Closes the gate; open at the end of the test, whatever happens."""
    made = []

    def close() -> Gate:
        made.append(Gate(monkeypatch))
        return made[-1]

    yield close
    for gate in made:
        gate.open()


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


# what the panel ought to show ---------------------------------------------------------------------


def glyph(split: Split, image: int) -> Tensor:
    atlas = np.load(ATLAS)["glyphs"]
    return torch.from_numpy(atlas[split.font[image], split.y[image]] / 255.0)[None]


def look(model: nn.Module, split: Split, image: int, code: Any) -> tuple[np.ndarray, np.ndarray]:
    """A code's image and logits in double precision, by SciPy's sampler."""
    x = moved(glyph(split, image), torch.as_tensor(code).double())
    with torch.no_grad():
        output = copy.deepcopy(model).double().eval()(torch.from_numpy(x)[None])
    return x, output[0].numpy()


def cross_entropy(model: nn.Module, split: Split, image: int, code: Any) -> float:
    _, output = look(model, split, image, code)
    return float(np.logaddexp.reduce(output) - output[split.y[image]])


def code_of(panel: LatentPanel) -> list[float]:
    return [panel.params[name] for name in LATENTS]


def assert_tells(panel: LatentPanel, model: nn.Module, split: Split) -> None:
    """The picture, its bars and its words are those of the sliders' code."""
    frame, p = panel.frame, panel.params
    image, eta = p["image"], p["eta"]
    x, output = look(model, split, image, frame.code)
    chances = np.exp(output - np.logaddexp.reduce(output))
    far = np.abs(np.array(frame.code) - split.z[image].numpy()).max()
    inside = "inside" if far <= eta + 1e-6 else "outside"
    assert frame.complete
    assert frame.png.startswith(PNG)
    assert np.allclose(frame.code, code_of(panel), atol=1e-6)
    assert (
        np.abs(panel._artist.images[0].get_array()[..., 0] - split.x[image, 0].numpy()).max() < 1e-6
    )
    assert np.abs(panel._artist.images[1].get_array()[..., 0] - x[0]).max() < 2e-4
    heights = [bar.get_height() for bar in panel._artist.bars]
    assert np.abs(np.array(heights) - chances).max() < 5e-3
    names = split.dataset.classes
    assert frame.alt.startswith(f"An image of {names[split.y[image]]}, its code changed")
    assert f"by {far:.2f} at most, {inside} eta {eta:g};" in frame.alt
    told = re.search(r"classified as (\w) with probability (\d+)%", frame.alt)
    assert told[1] == names[output.argmax()]
    assert abs(int(told[2]) / 100 - chances.max()) <= 0.011


# the latent panel ---------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [0, 3, 19])
def test_the_first_picture_is_the_image_itself(
    model: nn.Module, letters: Split, image: int
) -> None:
    panel = shown(LatentPanel(model, letters, image=image))
    assert panel.names == LATENTS
    assert panel.params["image"] == image
    assert torch.allclose(torch.tensor(panel.frame.code), letters.z[image], atol=1e-6)
    assert panel.frame.status == "largest change 0.00: inside eta = 0.3"
    drawn = [picture.get_array() for picture in panel._artist.images]
    assert np.abs(drawn[0] - drawn[1]).max() < 1e-4
    assert np.abs(drawn[2] - 0.5).max() < 1e-4
    assert_tells(panel, model, letters)


@pytest.mark.parametrize(
    "change", [{"rotation": 1.2}, {"scale": 0.8, "t_x": -0.1, "rotation": -0.4}, {"image": 7},
               {"image": 5, "t_y": 0.1}, {"t_y": 0.1, "image": 5}, {"eta": 0.05, "shear_x": 0.2}]
)  # fmt: skip
def test_a_submitted_code_is_decoded(
    panel: LatentPanel, model: nn.Module, letters: Split, change: dict[str, float]
) -> None:
    shown(panel, **change)
    image = change.get("image", 3)
    own = dict(zip(LATENTS, letters.z[image].tolist()))
    expected = {"image": 3, "eta": 0.3} | own | change
    assert panel.params == pytest.approx(expected, abs=1e-6)
    assert panel.frame.params == panel.params
    assert_tells(panel, model, letters)


def test_codes_stay_inside_the_bounds(
    panel: LatentPanel, model: nn.Module, letters: Split, fonts: advnb.Dataset
) -> None:
    for far, edge in zip((-9, 9), fonts.manifold.bounds):
        shown(panel, **dict.fromkeys(LATENTS, far))
        assert panel.frame.code == pytest.approx(tuple(edge.tolist()), abs=1e-6)
        assert_tells(panel, model, letters)


@pytest.mark.parametrize("image", [3, 8, 11])
def test_slopes_are_finite_differences(letters: Split, image: int) -> None:
    model = advnb.zoo.load(
        "fonts-cnn-adversarial"
    )  # of a normal one's own images they are next to 0
    panel = shown(LatentPanel(model, letters, image=image), rotation=0.6)
    code = np.array(panel.frame.code)
    expected = [
        (cross_entropy(model, letters, image, code + step)
         - cross_entropy(model, letters, image, code - step)) / 2e-6
        for step in 1e-6 * np.eye(6)
    ]  # fmt: skip
    most = max(map(abs, expected))
    assert most > 0.01
    assert panel.frame.slopes == pytest.approx(expected, abs=2e-3 * most)


def test_arrows_point_where_the_loss_grows(panel: LatentPanel, fonts: advnb.Dataset) -> None:
    low, high = fonts.manifold.bounds
    seen = set()
    for turn in (-1.0, -0.3, 0.0, 0.4, 1.2):
        shown(panel, rotation=turn)
        rises = np.array(panel.frame.slopes) * (high - low).numpy()
        for name, rise in zip(LATENTS, rises / np.abs(rises).max()):
            arrow = panel.arrows[name].value
            seen.add(arrow)
            ahead, back = arrow.count("▶"), arrow.count("◀")
            assert ahead - back == round(3 * rise), f"{name} {turn}"
            assert min(ahead, back) == 0
        assert max(len(panel.arrows[name].value) for name in LATENTS) == 3
    assert len(seen) >= 4
    assert len(set(ARROWS.values())) == 7


@pytest.mark.parametrize("seed", range(5))
def test_strengths_by_hand(seed: int) -> None:
    slopes, widths = np.random.default_rng(seed).normal(size=(2, 7))
    widths = np.abs(widths) + 0.1
    got = strengths(slopes.tolist(), widths.tolist())
    first = int(np.argmax(np.abs(slopes * widths)))
    assert abs(got[first]) == 1
    for k in range(7):
        share = slopes[k] * widths[k] / abs(slopes[first] * widths[first])
        assert got[k] == pytest.approx(share)


def test_strengths_of_nothing() -> None:
    assert strengths([0.0, 0.0], [1.0, 2.0]) == [0, 0]


def test_another_image_brings_its_own_code(
    panel: LatentPanel, model: nn.Module, letters: Split, posts: list
) -> None:
    shown(panel, rotation=1.0)
    posts.clear()
    panel.controls["image"].value = 6  # as a browser does it
    shown(panel)
    assert torch.allclose(torch.tensor(code_of(panel)), letters.z[6], atol=1e-6)
    assert [post["image"] for post in posts] == [6]
    assert_tells(panel, model, letters)


def test_an_attack_ends_within_eta_and_the_sliders_follow(
    panel: LatentPanel, model: nn.Module, letters: Split, fonts: advnb.Dataset, posts: list
) -> None:
    for eta in (0.3, 0.1):
        shown(panel, eta=eta, rotation=1.5)  # it begins at the image's own code all the same
        posts.clear()
        press(panel, "Attack")
        shown(panel)
        assert len(posts) == 1, "what the sliders do then is no work"
        code, own = torch.tensor(panel.frame.code), letters.z[3]
        low, high = fonts.manifold.bounds
        assert (code - own).abs().max() <= eta + 1e-6
        assert ((low <= code) & (code <= high)).all()
        before, after = (cross_entropy(model, letters, 3, z) for z in (own, code))
        assert after > before
        assert panel.frame.status.startswith("step 40 of 40: ")
        assert_tells(panel, model, letters)
        search = Attack(
            OnManifold(fonts.manifold, eta), steps=40, lr=eta / 10, start="zero", keep="strongest"
        )
        result = search(model, letters[3])
        assert torch.allclose(result.found[0, 0], code, atol=1e-6)
        done = "fooled" if result.success.item() else "not fooled"
        assert panel.frame.status.endswith(f": {done}")


def test_a_control_that_moves_after_an_attack_goes_on_from_there(
    panel: LatentPanel, model: nn.Module, letters: Split
) -> None:
    press(panel, "Attack")
    shown(panel)
    code = code_of(panel)
    panel.controls["rotation"].value = 0.25
    shown(panel)
    assert panel.frame.params == panel.params
    assert code_of(panel) == [*code[:5], 0.25]
    assert_tells(panel, model, letters)


def test_a_control_that_goes_back_after_an_attack(
    panel: LatentPanel, model: nn.Module, letters: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first it may be a late report of the walk; then it cannot be any longer."""
    monkeypatch.setattr(latent_module, "LATE", 0.3)
    own = code_of(panel)
    press(panel, "Attack")
    shown(panel)
    assert abs(code_of(panel)[0] - own[0]) > 2 * panel.controls["t_x"].step  # it has gone away
    monkeypatch.setattr(latent_module, "LATE", 1.0)
    panel._given["t_x"] = [(time.monotonic(), v) for v in (own[0], code_of(panel)[0])]
    panel.controls["t_x"].value = own[0]
    until(lambda: panel._posted["t_x"] == pytest.approx(own[0], abs=1e-6))
    shown(panel)
    assert code_of(panel)[0] == pytest.approx(own[0], abs=1e-6)
    assert_tells(panel, model, letters)


def test_sliders_follow_the_walk(panel: LatentPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_module, "REFRESH", -1.0)  # a frame a step
    frames = [
        frame for frame in panel.frames({**panel.params, "attack": True}) if frame is not None
    ]
    assert len(frames) == 41
    assert [frame.complete for frame in frames] == [False] * 40 + [True]
    for step, frame in enumerate(frames):
        assert frame.status.startswith(f"step {step} of 40: ")
        panel._show(frame)
        assert code_of(panel) == pytest.approx(frame.code, abs=2e-6)
    assert frames[0].code == pytest.approx(panel._codes[3].tolist(), abs=1e-6)


def test_the_newest_values_end_an_attack(
    panel: LatentPanel, model: nn.Module, letters: Split, gate: Callable[[], Gate]
) -> None:
    own = code_of(panel)
    door = gate()
    press(panel, "Attack")
    door.reached()
    panel.submit(rotation=0.9, eta=0.2)
    door.open()
    shown(panel)
    assert (
        panel.frame.params
        == panel.params
        == pytest.approx({"image": 3, "eta": 0.2} | dict(zip(LATENTS, [*own[:5], 0.9])), abs=1e-6)
    )
    assert_tells(panel, model, letters)


def test_a_control_that_moves_while_the_sliders_follow(panel: LatentPanel) -> None:
    moves = []

    def move(_: Any) -> None:  # called while the walk moves t_x
        if not moves:
            moves.append(threading.Thread(target=setattr, args=(eta, "value", 0.5)))
            moves[0].start()
            moves[0].join(1)

    eta = panel.controls["eta"]
    panel.controls["t_x"].observe(move, "value")
    press(panel, "Attack")
    assert panel.settle(WAIT)
    moves[0].join(WAIT)
    shown(panel)
    assert panel.frame.params == panel.params
    assert panel.frame.params["eta"] == 0.5


@pytest.mark.parametrize(
    "wrong", [{"bogus": 1}, {"rotation": "a"}, {"eta": np.float32("nan")}, {"image": 1.5}]
)
def test_what_is_refused_changes_nothing(
    panel: LatentPanel, gate: Callable[[], Gate], wrong: dict[str, Any]
) -> None:
    before = panel.params
    with refused("bogus|must be"):
        panel.submit(t_x=0.15, **wrong)
    assert panel.params == before
    door = gate()
    press(panel, "Attack")
    door.reached()
    with refused("bogus|must be"):
        panel.submit(t_x=0.15, **wrong)
    door.open()
    assert shown(panel).frame.status.startswith("step 40 of 40: ")  # nor does it end a walk
    assert code_of(panel) == pytest.approx(panel.frame.code, abs=2e-6)
    assert not any(panel.controls[name].disabled for name in LATENTS)


def test_submitted_values_are_not_those_of_the_walk(
    panel: LatentPanel, gate: Callable[[], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_module, "REFRESH", -1.0)
    me, constrain, calls = threading.current_thread(), panel.constrain, []

    def meanwhile() -> None:  # between the last value and the post: another frame
        constrain()
        calls.append(threading.current_thread() is me)
        if sum(calls) == 2:
            before, end = panel.frame, time.monotonic() + 1
            door.open(2)  # a step and its picture
            while panel.frame is before and time.monotonic() < end:
                time.sleep(0.002)
            time.sleep(0.1)

    door = gate()
    press(panel, "Attack")
    door.reached()
    monkeypatch.setattr(panel, "constrain", meanwhile)
    panel.submit(rotation=0.9)
    door.open()
    shown(panel)
    assert panel.frame.params["rotation"] == 0.9


def test_stop_leaves_the_sliders_where_the_walk_was(
    panel: LatentPanel, model: nn.Module, letters: Split, monkeypatch: pytest.MonkeyPatch,
    gate: Callable[[], Gate], posts: list,
) -> None:  # fmt: skip
    monkeypatch.setattr(latent_module, "REFRESH", -1.0)
    door = gate()
    press(panel, "Attack")
    door.open(9)
    until(lambda: "attack" in panel.frame.params and panel._posted == panel.params)
    for _ in range(10):
        door.reached()
    press(panel, "Stop")
    frame = panel.frame
    door.open()
    assert panel.settle(WAIT)
    assert "Stopped. step " in panel.message.value
    assert len(posts) == 1
    assert panel.frame is frame
    assert code_of(panel) == pytest.approx(frame.code, abs=2e-6)
    assert not frame.complete
    press(panel, "Own code")
    assert torch.allclose(torch.tensor(code_of(shown(panel))), letters.z[3], atol=1e-6)
    assert_tells(panel, model, letters)


def test_home_and_reset(panel: LatentPanel, model: nn.Module, letters: Split) -> None:
    first = panel.params
    shown(panel, image=8, eta=0.7, rotation=1.0, scale=0.9)
    press(panel, "Own code")
    own = dict(zip(LATENTS, letters.z[8].tolist()))
    expected = {"image": 8, "eta": 0.7} | own
    assert shown(panel).params == pytest.approx(expected, abs=1e-6)
    assert_tells(panel, model, letters)
    press(panel, "Reset")
    assert shown(panel).params == first
    assert_tells(panel, model, letters)


def test_eta_draws_its_box(panel: LatentPanel, letters: Split, fonts: advnb.Dataset) -> None:
    low, high = (edge.double().numpy() for edge in fonts.manifold.bounds)
    own = letters.z[3].double().numpy()
    turn = float(own[5]) + 0.2
    for eta, told in ((0.1, "outside"), (0.21, "inside"), (1.0, "inside")):
        shown(panel, eta=eta, rotation=turn)
        assert panel.frame.status == f"largest change 0.20: {told} eta = {eta:g}"
        for k, band in enumerate(panel._artist.bands):
            ends = np.array([max(own[k] - eta, low[k]), min(own[k] + eta, high[k])])
            start = band.get_x()
            drawn = np.array([start, start + band.get_width()]) * (high[k] - low[k]) + low[k]
            assert drawn == pytest.approx(ends, abs=1e-5)


def test_a_learned_manifold_has_ten_sliders(
    model: nn.Module, letters: Split, learned: LearnedManifold
) -> None:
    panel = shown(LatentPanel(model, letters, learned, image=4))
    names = [f"z{k}" for k in range(1, 11)]
    assert list(panel.controls) == ["image", "eta", *names]
    low, high = learned.bounds
    own = torch.minimum(torch.maximum(learned.encode(letters[4]), low), high)
    assert panel.frame.code == pytest.approx(own[0].tolist(), abs=1e-6)
    middle = (low + high) / 2
    code = torch.where(torch.arange(10) == 6, high, middle)
    shown(panel, **dict(zip(names, code.tolist())))
    with torch.no_grad():
        x = learned.decode(torch.minimum(torch.maximum(code, low), high)[None], letters[4])
    drawn = panel._artist.images[1].get_array()[..., 0]
    assert np.abs(drawn - x[0, 0].numpy()).max() < 1e-4
    ((guess, _),) = advnb.models.predictions(model, letters[4].with_x(x))
    assert f"classified as {guess} with" in panel.frame.alt
    press(panel, "Attack")
    origin, code = learned.encode(letters[4])[0], torch.tensor(shown(panel).frame.code)
    assert (code - origin).abs().max() <= 0.3 + 1e-6
    inside = torch.minimum(torch.maximum(code, low), high)
    assert [panel.params[name] for name in names] == pytest.approx(inside.tolist(), abs=1e-6)


def test_images_with_no_known_manifold(
    model: nn.Module, letters: Split, learned: LearnedManifold
) -> None:
    plain = Split(letters.x, letters.y)
    one = {"regular": Attack(Pixels(0.1), steps=1)}
    for make in (lambda: LatentPanel(model, plain), lambda: StepPanel(model, plain, one)):
        with refused("no known manifold: give a LearnedManifold"):
            make()
    assert not workers()
    assert shown(LatentPanel(model, plain, learned)).frame.complete
    assert "An image of 7," in shown(LatentPanel(model, plain[letters.y == 7], learned)).frame.alt


def test_a_split_of_one_image(model: nn.Module, letters: Split) -> None:
    panel = shown(LatentPanel(model, letters[3]), rotation=0.5)
    assert panel.controls["image"].disabled
    assert_tells(panel, model, letters[3])
    panel = shown(StepPanel(model, letters[3], {"a": Attack(Pixels(0.1), steps=2)}))
    assert panel.controls["image"].disabled
    assert panel.frame.complete


def test_the_second_of_one_image(model: nn.Module, letters: Split) -> None:
    panel = shown(LatentPanel(model, letters[3]))
    shown(panel, image=1)
    assert panel.frame.complete


def test_a_position_that_is_a_float(model: nn.Module, letters: Split) -> None:
    assert shown(LatentPanel(model, letters, image=3.0)).params["image"] == 3


def test_in_double_precision(model: nn.Module, letters: Split) -> None:
    double = copy.deepcopy(model).double()
    panel = shown(LatentPanel(double, in_double(letters), image=3))
    assert panel.frame.complete


def test_panels_leave_no_trace(letters: Split) -> None:
    model = advnb.zoo.load("fonts-cnn-normal").train()
    before = copy.deepcopy(model.state_dict())
    z, x = letters.z.clone(), letters.x.clone()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    panel = shown(LatentPanel(model, letters, image=2), rotation=0.4)
    press(panel, "Attack")
    assert shown(panel).frame.complete
    attacks = {"on": Attack(OnManifold(letters.dataset.manifold, 0.3), steps=3)}
    assert shown(StepPanel(model, letters, attacks)).frame.complete
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(letters.z, z)
    assert torch.equal(letters.x, x)


def test_the_panel_works_on_a_copy_of_the_model(model: nn.Module, letters: Split) -> None:
    mine = copy.deepcopy(model)
    panel = shown(LatentPanel(mine, letters))
    with torch.no_grad():
        for weight in mine.parameters():
            weight.zero_()
    assert_tells(shown(panel, rotation=0.3), model, letters)


# the step panel -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attacks(fonts: advnb.Dataset) -> dict[str, Attack]:
    return {
        "regular": Attack(Pixels(0.3), steps=6, lr=0.02, restarts=2, seed=3),
        "on-manifold": Attack(OnManifold(fonts.manifold, 0.3), steps=3, lr=0.05),
    }


def walk(model: nn.Module, one: Split, attack: Attack) -> list[tuple[Tensor, float]]:
    """What the first restart keeps after each step: the strongest so far."""
    strongest = Attack(
        attack.set, steps=attack.steps, lr=attack.lr, seed=attack.seed, keep="strongest"
    )
    return [(state.x, state.loss.item()) for state in strongest.iterate(model, one)]


def words(one: Split, x: Tensor, loss: float, step: int) -> str:
    distance = one.dataset.manifold.distance(x, one).item()
    change = float(np.sqrt(((x - one.x).double().numpy() ** 2).sum()))
    return (
        f"step {step}: loss {loss:.2f}, |change| {change:.3f}, "
        f"distance to the manifold {distance:.3f}"
    )


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


@pytest.mark.parametrize(("name", "image"), [("regular", 3), ("on-manifold", 3), ("regular", 8)])
def test_every_step_tells_its_numbers(
    model: nn.Module, letters: Split, attacks: dict[str, Attack], name: str, image: int
) -> None:
    panel = shown(StepPanel(model, letters, attacks, image=image), attack=name)
    one, steps = letters[image], walk(model, letters[image], attacks[name])
    assert len(steps) == attacks[name].steps + 1
    assert panel.params["step"] == attacks[name].steps
    for step, (x, loss) in enumerate(steps):
        shown(panel, step=step)
        assert panel.frame.complete
        assert panel.frame.params == panel.params
        assert panel.frame.png.startswith(PNG)
        expected = words(one, x, loss, step)
        assert re.sub(r"[\d.]+", "", panel.frame.status) == re.sub(r"[\d.]+", "", expected)
        assert numbers(panel.frame.status) == pytest.approx(numbers(expected), abs=2e-3)
        ((guess, _),) = advnb.models.predictions(model, one.with_x(x))
        label = letters.dataset.classes[letters.y[image]]
        start = (
            f"An image of {label} after step {step} of the {name} attack, classified as {guess};"
        )
        assert panel.frame.alt.startswith(start)
        assert panel.frame.alt.endswith(f"; {panel.frame.status}.")
        drawn = panel._artist.images[1].get_array()[..., 0]
        assert np.abs(drawn - x[0, 0].numpy()).max() < 1e-5
        near = one.dataset.manifold.project(x, one)[0, 0].numpy()
        assert np.abs(panel._artist.images[3].get_array()[..., 0] - near).max() < 1e-3
    found = panel._seen[(image, name)]
    assert found.loss == pytest.approx([loss for _, loss in steps], abs=1e-5)
    many = one[torch.zeros(len(steps), dtype=torch.int64)]
    away = one.dataset.manifold.distance(torch.cat([x for x, _ in steps]), many)
    assert found.distances() == pytest.approx(away.tolist(), abs=1e-3)


def test_what_was_searched_is_kept(
    model: nn.Module, letters: Split, attacks: dict[str, Attack], monkeypatch: pytest.MonkeyPatch
) -> None:
    searches, projections = [], []
    iterate, project = Attack.iterate, KnownManifold.project

    def searched(self: Attack, model: nn.Module, split: Split) -> Iterator[Any]:
        searches.append(self)
        return iterate(self, model, split)

    def projected(self: KnownManifold, x: Tensor, split: Split) -> Tensor:
        projections.append(len(x))
        return project(self, x, split)

    monkeypatch.setattr(Attack, "iterate", searched)
    monkeypatch.setattr(KnownManifold, "project", projected)
    panel = shown(StepPanel(model, letters, attacks))
    assert (len(searches), sum(projections)) == (1, 7)
    told = {step: shown(panel, step=step).frame.alt for step in (6, 0, 4, 2)}
    assert len(set(told.values())) == 4
    shown(panel, image=1)
    assert (len(searches), sum(projections)) == (2, 14)
    shown(panel, attack="on-manifold")
    assert (len(searches), sum(projections)) == (3, 18)
    for step, alt in told.items():
        assert shown(panel, image=0, attack="regular", step=step).frame.alt == alt
    assert len(searches) == 3


def test_frames_of_a_running_search_say_what_is_not_known_yet(
    model: nn.Module, letters: Split, attacks: dict[str, Attack], monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = shown(StepPanel(model, letters, attacks))
    monkeypatch.setattr(steps_module, "REFRESH", -1.0)
    frames: list[Frame] = [f for f in panel.frames({**panel.params, "image": 2}) if f is not None]
    assert [frame.complete for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert len(frames) == 7 + 1 + 1  # the steps, the nearest points of seven, the whole
    for step, frame in enumerate(frames[:7]):
        assert frame.status.startswith(f"step {step}: ")
        assert frame.status.endswith("distance to the manifold not known yet")
    assert numbers(frames[-1].status)[0] == 6


def test_a_shorter_attack_brings_the_step_into_range(
    model: nn.Module, letters: Split, attacks: dict[str, Attack]
) -> None:
    panel = shown(StepPanel(model, letters, attacks))
    assert panel.params["step"] == 6
    panel.controls["attack"].value = "on-manifold"  # as a browser does it
    assert shown(panel).params["step"] == 3
    assert panel.frame.status.startswith("step 3: ")
    for step in (4, 99):
        assert shown(panel, step=step).params["step"] == 3
    assert shown(panel, attack="regular", step=5).params["step"] == 5
    press(panel, "Reset")
    assert shown(panel).params == {"image": 0, "attack": "regular", "step": 6}
    assert panel.frame.status.startswith("step 6: ")


def test_an_attack_of_no_steps(model: nn.Module, letters: Split) -> None:
    still = {"none": Attack(Pixels(0.1), steps=0, start="zero")}
    panel = shown(StepPanel(model, letters, still))
    assert panel.params["step"] == 0
    assert "|change| 0.000, distance to the manifold 0.000" in shown(panel, step=1).frame.status


def test_steps_towards_a_learned_manifold(
    model: nn.Module, letters: Split, learned: LearnedManifold
) -> None:
    attack = Attack(OnManifold(learned, 0.3), steps=2, lr=0.1)
    panel = shown(StepPanel(model, letters, {"learned": attack}, learned, image=5))
    one, steps = letters[5], walk(model, letters[5], attack)
    x = torch.cat([x for x, _ in steps])
    away = learned.distance(x, one[torch.zeros(3, dtype=torch.int64)])
    assert panel._seen[(5, "learned")].distances() == pytest.approx(away.tolist(), abs=1e-3)
    assert away.max() < 0.5 < (x[-1] - one.x).norm()


@pytest.mark.parametrize("wrong", [{}, None, {"regular": Pixels(0.3)}, {"regular": "pgd"}])
def test_attacks_that_are_none(model: nn.Module, letters: Split, wrong: Any) -> None:
    with refused("attacks must name Attacks"):
        StepPanel(model, letters, wrong)
    assert not workers()


@pytest.mark.parametrize("wrong", [[Attack(Pixels(0.3))], Attack(Pixels(0.3))])
def test_attacks_without_names(model: nn.Module, letters: Split, wrong: Any) -> None:
    with refused("attacks must name Attacks"):
        StepPanel(model, letters, wrong)


@pytest.mark.parametrize("kind", [LatentPanel, StepPanel])
def test_a_manifold_that_is_none(model: nn.Module, letters: Split, kind: type[Panel]) -> None:
    attacks = ({"regular": Attack(Pixels(0.1), steps=1)},) if kind is StepPanel else ()
    with refused("manifold must be"):
        kind(model, letters, *attacks, "fonts")
