"""The search against closed forms, plain loops and another toolkit; its bounds and its warnings."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import advnb
from advnb import Attack, AttackWarning, CarliniWagner, OnManifold, Pixels, Split
from advnb.perturbations import STARTS, Manifold, Norm, Region, Start
from advnb.stats import generator

from .conftest import refused


def linear(classes: int = 2, side: int = 6, seed: int = 1) -> nn.Sequential:
    """Flatten and one linear layer: with two classes every attack has a closed form."""
    layer = nn.Linear(side * side, classes)
    for p in layer.parameters():
        nn.init.normal_(p, generator=generator(seed))
    return nn.Sequential(nn.Flatten(), layer).eval()


def some(n: int = 20, side: int = 6, classes: int = 2, low: float = 0, high: float = 1) -> Split:
    x = torch.rand(n, 1, side, side, generator=generator(n, side))
    return Split(low + (high - low) * x, torch.arange(n) % classes)


def ascent(model: nn.Sequential, split: Split) -> Tensor:
    """w_wrong - w_true of each image, [N, 1, H, W]: the direction the loss grows in."""
    w = model[1].weight.detach()
    return (w[1 - split.y] - w[split.y]).view_as(split.x)


def plain(**settings: object) -> Attack:
    defaults = {"steps": 20, "lr": 0.03, "optimizer": "sign", "keep": "strongest"}
    return Attack(Pixels(0.15), **{**defaults, **settings})


# --- the optimum


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("optimizer", ["sign", "adam"])
@pytest.mark.parametrize("start", STARTS)
def test_linf_optimum_of_a_linear_model(loss: str, optimizer: str, start: str) -> None:
    model, split = linear(), some()
    attack = plain(loss=loss, optimizer=optimizer, start=start, steps=60 if loss == "ce" else 40)
    best = (split.x + 0.15 * ascent(model, split).sign()).clamp(0, 1)
    result = attack(model, split)
    assert torch.allclose(result.x[0], best, atol=1e-6)
    assert torch.equal(result.success[0], model(best).argmax(1) != split.y)


@pytest.mark.parametrize("start", STARTS)
def test_l2_optimum_of_a_linear_model(start: str) -> None:
    model, split = linear(), some(low=0.4, high=0.6)
    attack = plain(start=start, loss="margin", steps=60, lr=0.2)
    attack = replace(attack, set=Pixels(0.5, "l2"))
    w = ascent(model, split)
    best = split.x + 0.5 * w / w.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert (best.min(), best.max()) > (0, 0)
    assert best.max() < 1  # away from the edge of the box
    found = attack(model, split).x[0]
    assert torch.allclose(found, best, atol=1e-3)  # an angle of 3e-4 is all float32 can lose
    reached, most = losses_of(model, found, split.y)[0], losses_of(model, best, split.y)[0]
    assert torch.allclose(reached, most, rtol=1e-5)


def test_margin_is_positive_where_the_model_is_fooled() -> None:
    output = torch.randn(500, 5, generator=generator(0))
    y = torch.arange(500) % 5
    others = torch.stack([torch.cat((o[:k], o[k + 1 :])) for o, k in zip(output, y)])
    expected = others.amax(1) - output[torch.arange(500), y]
    got = advnb.search.margin(output, y)
    assert torch.equal(got, expected)
    assert torch.equal(got > 0, output.argmax(1) != y)


# --- plain loops


def bounded(x: Tensor, origin: Tensor, eps: float) -> Tensor:
    """Five rounds of both constraints, as in the published code."""
    for _ in range(5):
        x = x.clamp(0, 1)
        x = origin + (x - origin).clamp(-eps, eps)
    return x


def losses_of(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    output = model(x)
    return cross_entropy(output, y, reduction="none"), output.argmax(1) != y


@pytest.mark.parametrize("keep", ["first", "strongest"])
@pytest.mark.parametrize("optimizer", ["adam", "sign"])
def test_against_a_plain_loop(
    keep: str, optimizer: str, trained: nn.Module, fonts: advnb.Dataset
) -> None:
    """Each image on its own, in double precision, with torch's own Adam."""
    model, eps = copy.deepcopy(trained).double(), 0.08
    split = fonts.test(24)
    split = split.with_x(split.x.double())
    lr = 0.005 if optimizer == "adam" else 0.01
    attack = Attack(Pixels(eps), steps=12, lr=lr, optimizer=optimizer, keep=keep, seed=4)
    starts = next(iter(attack.iterate(model, split))).x
    result = attack(model, split)
    assert len(set(result.first_success_step[0].tolist())) > 3  # -1, 0 and some in between
    for i in range(len(split)):
        x, y = split.x[i : i + 1], split.y[i : i + 1]
        code = starts[i : i + 1].clone().requires_grad_()
        adam = torch.optim.Adam([code], lr=lr, maximize=True)
        first, kept, best, fooled = -1, code.detach().clone(), -math.inf, False
        for step in range(13):
            adam.zero_grad()
            loss, flip = losses_of(model, code, y)
            loss.sum().backward()
            newest = first < 0
            if newest or (keep == "strongest" and loss.item() > best):
                kept, best, fooled = code.detach().clone(), loss.item(), bool(flip)
            if flip and first < 0:
                first = step
            if optimizer == "adam":
                adam.step()
            else:
                code.data += lr * code.grad.sign()
            code.data = bounded(code.data, x, eps)
        assert result.first_success_step[0, i].item() == first
        assert result.success[0, i].item() == fooled
        assert torch.allclose(result.x[0, i], kept[0], atol=1e-9)


def test_the_old_adam_hardly_moves_where_gradients_are_tiny(
    trained: nn.Module, fonts: advnb.Dataset
) -> None:
    """PyTorch's Adam with the constant that the old one amounts to at each step."""
    model, split = copy.deepcopy(trained).double(), fonts.test(6)
    split = split.with_x(split.x.double())

    def tiny(output: Tensor, y: Tensor) -> Tensor:
        return 1e-7 * cross_entropy(output, y, reduction="none")

    moved = {}
    for optimizer in ("adam-0.4", "adam"):
        attack = Attack(Pixels(0.3), steps=9, optimizer=optimizer, loss=tiny, keep="strongest")
        states = [state.x for state in attack.iterate(model, split)]
        code, moved[optimizer] = states[0].clone().requires_grad_(), states[1] - states[0]
        adam = torch.optim.Adam([code], lr=0.005, maximize=True)
        for t in range(1, 10):
            adam.zero_grad()
            tiny(model(code), split.y).sum().backward()
            if optimizer == "adam-0.4":
                adam.param_groups[0]["eps"] = 1e-8 / math.sqrt(1 - 0.999**t)
            adam.step()
            code.data = bounded(code.data, split.x, 0.3)
            still = (model(states[t]).argmax(1) == split.y) & (model(code).argmax(1) == split.y)
            assert still.any()
            assert torch.allclose(states[t][still], code[still], atol=1e-9)
    assert moved["adam-0.4"].abs().median() < 0.5 * moved["adam"].abs().median()


def test_foolbox_fools_the_same_number(trained: nn.Module, fonts: advnb.Dataset) -> None:
    import foolbox

    split = fonts.test(500)
    eps, steps, lr = 0.03, 20, 0.005
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=lr, steps=steps, random_start=False)
    own = copy.deepcopy(trained)  # it leaves gradients in the weights
    wrapped = foolbox.PyTorchModel(own, bounds=(0, 1), device="cpu")
    _, _, fooled = theirs(wrapped, split.x, split.y, epsilons=eps)
    ours = Attack(Pixels(eps), steps=steps, lr=lr, optimizer="sign", start="zero")(trained, split)
    rate, other = ours.success_rate().value, fooled[ours.correct].float().mean().item()
    assert 0.2 < rate < 0.95  # neither hopeless nor certain
    assert rate == pytest.approx(other, abs=0.02)


class Ladder(nn.Module):
    """One pixel; class 1 wherever the pixel is less than `low` or more than `high`."""

    def __init__(self, low: float, high: float = 2) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        pixel = x.flatten(1)
        inside = ((pixel > self.low) & (pixel < self.high)).float()
        return torch.cat((pixel, pixel.detach() + 2 - 4 * inside), 1)


@pytest.mark.parametrize(
    ("high", "losses", "keep", "kept", "first", "success"),
    [
        (2.0, [5, 4, 3, 1, 2, 0], "strongest", 4, 3, True),  # only what follows the flip competes
        (2.0, [0, 1, 2, 3, 4, 5], "strongest", 5, 3, True),
        (2.0, [5, 4, 3, 1, 1, 1], "strongest", 3, 3, True),
        (0.35, [5, 4, 3, 1, 2, 0], "strongest", 4, 3, False),  # stronger, and right again
        (0.35, [5, 4, 3, 2, 1, 0], "strongest", 3, 3, True),
        (0.25, [5, 4, 3, 1, 2, 0], "strongest", 5, -1, False),  # no flip: the newest
        (2.0, [5, 4, 3, 1, 2, 0], "first", 3, 3, True),
        (0.25, [5, 4, 3, 1, 2, 0], "first", 5, -1, False),
    ],
)
def test_what_is_kept_by_hand(
    high: float, losses: list[float], keep: str, kept: int, first: int, success: bool
) -> None:
    """A pixel that climbs by 0.1 a step, with a loss that is whatever the case says."""

    def loss(output: Tensor, y: Tensor) -> Tensor:
        pixel = output[:, 0]
        values = torch.tensor(losses, dtype=torch.float32)
        return pixel - pixel.detach() + values[(10 * pixel.detach()).round().long()]

    split = Split(torch.zeros(1, 1, 1, 1), torch.tensor([1]))
    attack = Attack(
        Pixels(0.9), steps=5, lr=0.1, optimizer="sign", start="zero", loss=loss, keep=keep
    )
    result = attack(Ladder(0.25, high).eval(), split)
    assert result.x.item() == pytest.approx(kept / 10)
    assert result.first_success_step.item() == first
    assert result.success.item() is success


# --- what a result says


@pytest.fixture(scope="module")
def looked(trained: nn.Module, fonts: advnb.Dataset) -> tuple:
    """A model, a split, an attack that fools some images, and its result from 3 starts."""
    split = fonts.test(150)
    attack = Attack(Pixels(0.2), steps=12, lr=0.0015, restarts=3, batch_size=64, seed=9)
    return trained, split, attack, attack(trained, split)


def test_shapes(looked: tuple) -> None:
    _, split, _, result = looked
    assert result.x.shape == result.delta.shape == (3, 150, 1, 28, 28)
    assert result.success.shape == result.first_success_step.shape == (3, 150)
    assert result.correct.shape == (150,)
    assert (result.success.dtype, result.correct.dtype) == (torch.bool, torch.bool)
    assert result.first_success_step.dtype == torch.int64
    assert torch.equal(result.delta, result.x - split.x)
    assert result.code is result.change is None
    assert not result.x.requires_grad
    assert not result.delta.requires_grad
    assert "150 images x 3 restarts" in repr(result)


@pytest.mark.parametrize("keep", ["first", "strongest"])
def test_success_is_the_truth(keep: str, looked: tuple) -> None:
    model, split, attack, _ = looked
    result = replace(attack, keep=keep)(model, split)
    with torch.no_grad():
        fooled = torch.stack([model(x).argmax(1) != split.y for x in result.x])
        correct = model(split.x).argmax(1) == split.y
    assert torch.equal(result.success, fooled)
    assert torch.equal(result.correct, correct)
    assert ((result.first_success_step >= 0) >= result.success).all()
    assert result.first_success_step.max() <= attack.steps
    if keep == "first":
        assert torch.equal(result.first_success_step >= 0, result.success)


def test_the_kept_image_is_the_first_that_fools(looked: tuple) -> None:
    model, split, attack, result = looked
    states = list(attack.iterate(model, split))
    for restart in range(3):
        steps = [state for state in states if state.restart == restart]
        assert [state.step for state in steps] == list(range(len(steps)))
        flips = torch.stack([state.success for state in steps])
        first = torch.where(flips.any(0), flips.int().argmax(0), -1)
        assert torch.equal(first, result.first_success_step[restart])
        for i in range(len(split)):
            at = first[i] if first[i] >= 0 else -1
            assert torch.equal(result.x[restart, i], steps[at].x[i])


def test_success_rates_by_hand(looked: tuple) -> None:
    _, split, _, result = looked
    pairs = [
        bool(result.success[r, i]) for i in range(len(split)) if result.correct[i] for r in range(3)
    ]
    images = [any(pairs[i : i + 3]) for i in range(0, len(pairs), 3)]
    assert 0 < sum(pairs) < len(pairs)
    assert sum(images) / len(images) > sum(pairs) / len(pairs)
    for over, hits in (("pairs", pairs), ("images", images)):
        rate = result.success_rate(over)
        assert (rate.n, rate.value) == (len(hits), pytest.approx(sum(hits) / len(hits)))
        assert rate.low < rate.value < rate.high
    with refused("over must be"):
        result.success_rate("all")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_mean_distance_by_hand(norm: str, looked: tuple) -> None:
    model, split, attack, _ = looked
    result = replace(attack, set=Pixels(0.05 if norm == "linf" else 0.5, norm))(model, split)
    sizes = []
    for r, i in np.ndindex(3, len(split)):
        if result.success[r, i] and result.correct[i]:
            change = result.delta[r, i].flatten()
            sizes.append(
                float(change.abs().max() if norm == "linf" else change.square().sum() ** 0.5)
            )
    assert result.mean_distance() == pytest.approx(sum(sizes) / len(sizes), rel=1e-5)


def test_success_by_step_is_the_rate_of_shorter_attacks(looked: tuple) -> None:
    model, split, attack, _ = looked
    by_step = attack(model, split).success_by_step()
    assert len(by_step) == attack.steps + 1
    for steps in (0, 1, attack.steps):
        shorter = replace(attack, steps=steps)(model, split).success_rate()
        assert by_step[steps] == pytest.approx(shorter.value, abs=1e-6)


def test_nothing_fooled_and_nothing_right(trained: nn.Module, fonts: advnb.Dataset) -> None:
    split = fonts.test(40)
    with torch.no_grad():
        right = trained(split.x).argmax(1) == split.y
    none = Attack(Pixels(1e-6), steps=1)(trained, split[right])
    assert none.success_rate().value == 0
    assert math.isnan(none.mean_distance())
    assert (none.first_success_step == -1).all()
    wrong = Attack(Pixels(1e-6), steps=1)(trained, split[~right])
    assert wrong.success_rate().n == 0
    assert math.isnan(wrong.success_rate().value)
    assert wrong.success.all()  # whether or not x was right
    assert math.isnan(wrong.mean_distance())


# --- reproducible


@pytest.mark.parametrize("optimizer", ["adam", "sign"])
@pytest.mark.parametrize("keep", ["first", "strongest"])
def test_the_batch_size_decides_nothing(optimizer: str, keep: str, looked: tuple) -> None:
    model, split, attack, _ = looked
    model = copy.deepcopy(model).double()  # in which rounding does not decide either
    split = split.with_x(split.x.double())
    attack = replace(attack, optimizer=optimizer, keep=keep, restarts=2)
    results = [replace(attack, batch_size=size)(model, split) for size in (7, 64, 1000)]
    for other in results[1:]:
        assert torch.equal(other.success, results[0].success)
        assert torch.equal(other.first_success_step, results[0].first_success_step)
        assert torch.allclose(other.x, results[0].x, atol=1e-7)


def test_the_same_seed_the_same_bits(looked: tuple) -> None:
    model, split, attack, result = looked
    torch.manual_seed(77)
    again, other = attack(model, split), replace(attack, seed=10)(model, split)
    assert torch.equal(again.x, result.x)
    assert torch.equal(again.first_success_step, result.first_success_step)
    assert not torch.equal(other.x, result.x)


def test_restarts_differ(looked: tuple) -> None:
    model, split, attack, result = looked
    a, b, c = result.x
    assert not (a == b).flatten(1).all(1).any()
    assert not (b == c).flatten(1).all(1).any()
    one = replace(attack, restarts=1)(model, split)
    assert torch.equal(one.x[0], result.x[0])  # the first is what a single start would be


def test_states_are_snapshots_in_the_splits_order(looked: tuple) -> None:
    model, split, attack, _ = looked
    for keep in ("first", "strongest"):
        attack = replace(attack, keep=keep, restarts=1)
        during = []
        states = []
        for state in attack.iterate(model, split):
            states.append(state)
            during.append((state.x.clone(), state.loss.clone(), state.success.clone()))
            state.x.zero_()  # a reader's scribbles reach nothing
        for state, (x, loss, success) in zip(states, during):
            assert torch.equal(state.x, x)
            assert torch.equal(state.loss, loss)
            assert torch.equal(state.success, success)
            with torch.no_grad():
                now, fooled = losses_of(model, state.x, split.y)
            assert torch.equal(fooled, success)
            assert torch.allclose(now, loss, atol=1e-4)
        last = attack(model, split)
        assert torch.equal(states[-1].x, last.x[0])
        assert torch.equal(states[-1].success, last.success[0])


def test_no_trace_in_gradients(looked: tuple) -> None:
    model, split, attack, _ = looked
    attack(model, split[:5])
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not split.x.requires_grad


def test_inside_no_grad_and_inference(looked: tuple) -> None:
    model, split, attack, result = looked
    with torch.no_grad():
        assert torch.equal(attack(model, split).x, result.x)


def test_without_gradients() -> None:
    split = Split(torch.rand(3, 1, 6, 6), torch.arange(3) % 2)
    with torch.inference_mode(), refused("call it outside of torch.inference_mode"):
        Attack(Pixels(0.1))(linear(), split)


def test_half_precision_is_told_where_it_does_not_do() -> None:
    split = Split(torch.rand(3, 1, 6, 6).half(), torch.arange(3) % 2)
    with refused("float16 is too coarse for the attack's steps: take float32"):
        Attack(Pixels(0.1, "l2"), steps=3)(linear().half(), split)


# --- starts and exact bounds

EXACT = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@settings(max_examples=300)
@given(
    eps=st.one_of(
        st.floats(-4, 0.3).map(lambda power: 10**power),
        st.sampled_from([0.3, 0.1, 8 / 255, 0.5, 1.0]),
    ),
    norm=st.sampled_from(["linf", "l2"]),
    start=st.sampled_from(STARTS),
    optimizer=st.sampled_from(["adam", "sign"]),
    dtype=st.sampled_from(list(EXACT)),
    seed=st.integers(0, 10_000),
)
@pytest.mark.filterwarnings("ignore::advnb.AttackWarning")
def test_bounds_are_exact(
    eps: float, norm: str, start: str, optimizer: str, dtype: str, seed: int
) -> None:
    x = torch.rand(6, 1, 6, 6, generator=generator(seed))
    x[0], x[1], x[2] = x[0].round(), 0, 1  # pixels on the edges
    split = Split(x.to(EXACT[dtype]), torch.arange(6) % 2)
    model = linear(seed=seed).to(EXACT[dtype])
    eps = min(eps, 1.0) if norm == "linf" else eps
    attack = Attack(
        Pixels(eps, norm), steps=3, lr=eps / 2, optimizer=optimizer, start=start, keep="strongest"
    )
    for state in attack.iterate(model, split):
        assert state.x.dtype == EXACT[dtype]
        found = state.x.double()
        change = (found - split.x.double()).flatten(1)
        size = change.abs().amax() if norm == "linf" else change.norm(dim=1).amax()
        assert size.item() <= (eps if dtype == "float64" else min(eps, float(np.float32(eps))))
        assert found.min() >= 0
        assert found.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_where_a_search_starts(norm: str) -> None:
    """Away from the edges of the box, each start has the distribution that it is named after."""
    n, eps = 400, 0.1
    split = Split(torch.full((n, 1, 10, 10), 0.5), torch.zeros(n, dtype=torch.int64))
    region = Pixels(eps, norm).region(split)

    def size(kind: str, over: str = norm) -> Tensor:
        change = (region.start(kind, generator(5)) - split.x).flatten(1)
        return change.abs().amax(1) if over == "linf" else change.norm(dim=1)

    assert size("zero").max() == 0
    assert size("gray").max() == 0  # the middle of the range is where these images are
    ball = size("ball") / eps  # norm uniform in (0, 1)
    assert ball.mean().item() == pytest.approx(0.5, abs=0.05)
    assert ball.std().item() == pytest.approx(12**-0.5, abs=0.03)
    uniform = size("uniform") / eps  # nearly all of a ball of 100 dimensions is at its edge
    assert uniform.mean().item() == pytest.approx(100 / 101, abs=0.01)
    if norm == "linf":
        assert size("uniform", "l2").mean().item() == pytest.approx(10 * eps / 3**0.5, rel=0.02)
    wide = (
        Pixels(1.0 if norm == "linf" else 5.0, norm).region(split).start("noise", generator(5))
        - split.x
    )
    assert wide.std().item() == pytest.approx(0.2, abs=0.01)


def test_gray_is_the_middle_as_near_as_it_gets() -> None:
    x = torch.tensor([0.0, 0.45, 1.0]).view(3, 1, 1, 1)
    region = Pixels(0.3).region(Split(x, torch.zeros(3, dtype=torch.int64)))
    start = region.start("gray", generator(0)).flatten()
    assert torch.allclose(start, torch.tensor([0.3, 0.5, 0.7]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", STARTS)
def test_a_range_of_no_width(norm: Norm, start: Start) -> None:
    """Its coordinate stays; one that lies elsewhere only comes nearer, as far as eps allows."""
    origin, low, high = torch.rand(6, 4, generator=generator(1)), torch.zeros(4), torch.ones(4)
    origin[:3, 1] = low[1] = high[1] = 0.5
    region, stream = Region.around(origin, 0.1, norm, low, high), generator(2)
    code = region.start(start, stream)
    for _ in range(4):
        moved = code + 0.05 * region.ascend(torch.randn(6, 4, generator=stream))
        code = region.project_(moved)
        assert code.isfinite().all()
        assert (code[:3, 1] == 0.5).all()
        assert ((code - 0.5).abs() <= (origin - 0.5).abs())[3:, 1].all()
        assert region.size(code.double()).max() <= 0.1


class Pinned:
    """A manifold on which the numbers of one image's code are free, or have one value."""

    def __init__(self, manifold: Manifold, code: Tensor, free: Tensor) -> None:
        self.manifold = manifold
        low, high = (torch.where(free, edge, code) for edge in manifold.bounds)
        self.bounds = low, high

    def __getattr__(self, name: str) -> object:
        return getattr(self.manifold, name)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("free", [[False] * 6, [True] * 4 + [False, True]])
@pytest.mark.filterwarnings("ignore::advnb.AttackWarning")
def test_attacks_on_codes_that_cannot_move(
    free: list[bool], norm: Norm, trained: nn.Module, fonts: advnb.Dataset
) -> None:
    split = fonts.test(40)
    one = split[advnb.models.logits(trained, split).argmax(1) == split.y][0]
    manifold = Pinned(fonts.manifold, one.z[0], torch.tensor(free))
    on = OnManifold(manifold, 0.3, norm)
    attacks: list[Attack | CarliniWagner] = [
        Attack(on, steps=4, lr=0.1, optimizer=optimizer, start=start, keep="strongest")
        for optimizer in ("adam", "sign")
        for start in STARTS
    ]
    for attack in [*attacks, CarliniWagner(norm, set=on, searches=2, steps=3)]:
        result = attack(trained, one)
        assert result.change.isfinite().all()
        assert (result.change[..., ~torch.tensor(free)] == 0).all()
        assert any(free) or not result.success.any()


# --- options


def test_no_steps_evaluate_the_start(looked: tuple) -> None:
    model, split, attack, _ = looked
    attack = replace(attack, steps=0, restarts=1)
    (state,) = attack.iterate(model, split)
    result = attack(model, split)
    assert torch.equal(result.x[0], state.x)
    assert set(result.first_success_step.flatten().tolist()) <= {-1, 0}
    still = replace(attack, start="zero")(model, split)
    assert torch.equal(still.x[0], split.x)
    assert torch.equal(still.success[0], ~still.correct)


def test_a_loss_of_ones_own(looked: tuple) -> None:
    model, split, attack, result = looked

    def own(output: Tensor, y: Tensor) -> Tensor:
        assert output.shape == (len(y), 10)
        return cross_entropy(output, y, reduction="none")

    assert torch.equal(replace(attack, loss=own)(model, split).x, result.x)
    down = replace(attack, loss=lambda o, y: -own(o, y), keep="strongest")(model, split)
    assert down.success_rate().value < 0.1


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"steps": -1}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0}, "lr"),
        ({"lr": -0.1}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"lr": math.inf}, "lr"),
        ({"lr": "fast"}, "lr"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"start": "random"}, "start"),
        ({"keep": "last"}, "keep"),
        ({"loss": "hinge"}, "loss"),
        ({"loss": None}, "loss"),
    ],
)
def test_bad_settings(settings: dict, match: str) -> None:
    with refused(match):
        Attack(Pixels(0.1), **settings)


@pytest.mark.parametrize("eps", [0, -0.1, math.nan, math.inf, "0.3", None, True, 1e7])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bad_radius(eps: object, norm: str) -> None:
    with refused("eps must be a positive number"):
        Pixels(eps, norm)


def test_bad_norm_and_set() -> None:
    for norm in ("l1", "Linf", 2, None):
        with refused("norm must be"):
            Pixels(0.1, norm)
    with refused("perturbation set"):
        Attack(0.3)


class Outputs(nn.Module):
    """A model whose output is `change`d."""

    def __init__(self, model: nn.Module, change: object) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x: Tensor) -> object:
        return self.change(self.model(x))


ODD = {
    "NaN": (lambda o: o * math.nan, "NaN"),
    "infinite": (lambda o: o / 0, "infinity"),
    "tuple": (lambda o: (o, o), "tuple"),
    "one number": (lambda o: o[:, 0], "logits"),
    "three axes": (lambda o: o[..., None], "logits"),
    "one image": (lambda o: o[:1], "logits"),
    "few classes": (lambda o: o[:, :3], "out of range"),
}


@pytest.mark.parametrize("kind", ODD)
def test_models_that_cannot_be_attacked(kind: str) -> None:
    change, match = ODD[kind]
    model, split = Outputs(linear(5), change).eval(), some(classes=5)
    with refused(match):
        plain()(model, split)
    with refused(match):
        next(iter(plain().iterate(model, split)))


def test_nan_that_comes_later() -> None:
    class Late(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            pixels = 5 * x.flatten(1)[:, :2]
            return pixels.where(pixels.amin(1, keepdim=True) < 4.5, math.nan)

    x = torch.full((4, 1, 2, 2), 0.5)
    split = Split(x, torch.tensor([0, 1, 0, 1]))
    attack = Attack(
        Pixels(0.5), lr=0.1, optimizer="sign", keep="strongest",
        loss=lambda output, y: output.sum(1),
    )  # fmt: skip
    with refused("NaN"):
        attack(Late().eval(), split)


def test_images_that_do_not_fit(trained: nn.Module) -> None:
    for shape, size in (((2, 1, 20, 20), "1x20x20"), ((2, 3, 28, 28), "3x28x28")):
        with refused(f"cannot read .* images of {size}"):
            plain()(trained, Split(torch.rand(shape), torch.arange(2)))
    with refused("cannot read torch.float64"):
        plain()(trained, Split(torch.rand(2, 1, 28, 28).double(), torch.arange(2)))
    with refused("label 10 is out of range for a model of 10 classes"):
        plain()(trained, Split(torch.rand(2, 1, 28, 28), torch.tensor([1, 10])))


# --- the attack's doubts


def test_a_healthy_model_raises_no_doubt(looked: tuple) -> None:
    model, split, attack, _ = looked
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack(model, split)


def test_doubts_about_vanishing_gradients(looked: tuple) -> None:
    model, split, attack, _ = looked
    with pytest.warns(AttackWarning, match="gradient vanishes"):
        attack(Outputs(model, lambda o: o * 1e4).eval(), split)


def test_doubts_about_probabilities(looked: tuple) -> None:
    model, split, attack, _ = looked
    with pytest.warns(AttackWarning, match="probabilities already"):
        attack(Outputs(model, lambda o: o.softmax(1)).eval(), split)


def test_doubts_about_train_mode(looked: tuple) -> None:
    model, split, attack, result = looked
    model = copy.deepcopy(model).train()
    with pytest.warns(AttackWarning, match="train mode"):
        again = attack(model, split)
    assert model.training
    assert torch.equal(again.x, result.x)


def test_doubts_about_neighbours(looked: tuple) -> None:
    model, split, attack, _ = looked
    among = Outputs(model, lambda o: o - o.mean(0)).eval()
    with pytest.warns(AttackWarning, match="depends on the others of its batch"):
        attack(among, split)


def test_doubts_about_images_that_are_none(looked: tuple) -> None:
    class Wide(Pixels):
        def decode(self, code: Tensor, split: Split) -> Tensor:
            return 2 * code - 1

    model, split, attack, _ = looked
    with pytest.warns(AttackWarning, match=r"leave \[0, 1\]"):
        replace(attack, set=Wide(0.1))(model, split)


def test_doubts_about_a_stochastic_model(looked: tuple) -> None:
    model, split, attack, _ = looked
    noisy = Outputs(model, lambda o: o + 0.1 * torch.randn_like(o)).eval()
    with pytest.warns(AttackWarning, match="stochastic"):
        attack(noisy, split)
