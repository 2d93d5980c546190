"""How little it takes to fool a model: against all iterates, closed forms, brute force, foolbox."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advnb
from advnb import Attack, AttackResult, OnManifold, Pixels, Split, zoo
from advnb.minimal import CarliniWagner
from advnb.perturbations import norms
from advnb.search import AttackWarning
from advnb.stats import generator
from advnb.tones import ScaleShift
from advnb.transport import Transport

from .conftest import refused

RIGHT = 20
QUICK: dict[str, Any] = {"searches": 4, "steps": 25}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return zoo.load("fonts-cnn-normal")


@pytest.fixture(scope="module")
def letters(fonts: advnb.Dataset, model: nn.Module) -> Split:
    """Test images: RIGHT that the model gets right, and then 5 that it gets wrong."""
    split = fonts.test(150)
    with torch.no_grad():
        right = model(split.x).argmax(1) == split.y
    return split[torch.cat([right.nonzero()[:RIGHT, 0], (~right).nonzero()[:5, 0]])]


def fooled(model: nn.Module, x: Tensor, split: Split) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != split.y


def in_double(model: nn.Module, split: Split) -> tuple[nn.Module, Split]:
    """In double precision: a batch's size changes the last digits, and a sign may hang on them."""
    assert split.z is not None
    given = {"z": split.z.double(), "font": split.font, "dataset": split.dataset}
    return copy.deepcopy(model).double(), Split(split.x.double(), split.y, **given)


# --- the smallest of an attack's iterates


class Followed:
    """A set that keeps every code whose image is asked for."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.norm, self.codes = inner, inner.norm, []

    def region(self, split: Split) -> Any:
        return self.inner.region(split)

    def decode(self, code: Tensor, split: Split) -> Tensor:
        self.codes.append(code.detach().clone())
        return self.inner.decode(code, split)


@pytest.mark.parametrize("optimizer", ["adam", "sign"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["pixels", "codes"])
def test_smallest_of_all_iterates(
    kind: str, norm: str, optimizer: str, model: nn.Module, letters: Split, fonts: advnb.Dataset
) -> None:
    model, letters = in_double(model, letters)
    pixels = Pixels(0.03 if norm == "linf" else 0.3, norm)
    inner = pixels if kind == "pixels" else OnManifold(fonts.manifold, 0.3, norm)
    set_ = Followed(inner)
    settings = {"steps": 12, "lr": 0.003 if norm == "linf" else 0.03, "optimizer": optimizer}
    attack = Attack(set_, **settings, keep="smallest", seed=2)
    result = attack(model, letters)
    origin = inner.region(letters).origin
    assert torch.equal(set_.codes.pop(0), origin[:8])  # whether it is a set at all
    if kind == "codes":
        assert torch.equal(set_.codes.pop(), origin)  # whether the letters themselves were right
    assert len(set_.codes) == 13
    sizes = torch.stack([norms(code - origin, norm) for code in set_.codes])
    hits = torch.stack([fooled(model, inner.decode(code, letters), letters) for code in set_.codes])
    assert torch.equal(result.success[0], hits.any(0))
    best = torch.where(hits, sizes, math.inf).argmin(0)
    best[~hits.any(0)] = 12  # the newest
    for i, step in enumerate(best):
        assert torch.equal(result.found[0, i], set_.codes[step][i])
    assert torch.equal(result.first_success_step[0] >= 0, hits.any(0))
    assert (result.first_success_step[0] <= best)[hits.any(0)].all()
    # the same images are fooled, at the same step, by another image
    first = Attack(inner, **settings, seed=2)(model, letters)
    assert torch.equal(first.success, result.success)
    assert torch.equal(first.first_success_step, result.first_success_step)
    size = norms(first.found[0] - origin, norm)
    smaller = (
        norms(result.found[0] - origin, norm) <= size + 1e-12
    )  # both may lie on the ball's edge
    assert smaller[hits.any(0)].all()
    assert 5 < hits.any(0).sum() < 25 or kind == "codes"


def test_states_hold_the_smallest_so_far(model: nn.Module, letters: Split) -> None:
    attack = Attack(Pixels(0.1), steps=12, lr=0.01, keep="smallest", seed=2, restarts=2)
    size = torch.full((25,), math.inf)
    states = [*attack.iterate(model, letters)]
    assert [(s.restart, s.step) for s in states] == [(r, k) for r in range(2) for k in range(13)]
    for state in states:
        now = norms(state.x - letters.x, "linf")
        if state.step == 0:
            size = torch.full((25,), math.inf)
        assert torch.equal(fooled(model, state.x, letters), state.success)
        assert (now <= size)[state.success].all()
        size = torch.where(state.success, now, math.inf)
    result = attack(model, letters)
    assert torch.equal(result.x[1], states[-1].x)
    assert torch.equal(result.x[0], states[12].x)


def test_smallest_whatever_the_batches(model: nn.Module, letters: Split) -> None:
    model, letters = in_double(model, letters)
    one, other = (
        Attack(Pixels(0.1), steps=8, lr=0.01, keep="smallest", batch_size=size)(model, letters)
        for size in (7, 25)
    )
    assert torch.equal(one.success, other.success)
    assert torch.allclose(one.x, other.x, atol=1e-5)


def test_smallest_in_double(model: nn.Module, letters: Split) -> None:
    model, letters = in_double(model, letters)
    result = Attack(Pixels(0.1), steps=3, lr=0.02, keep="smallest")(model, letters)
    assert result.x.dtype == torch.float64
    assert torch.equal(result.success[0], fooled(model, result.x[0], letters))


# --- Carlini and Wagner's attack


@pytest.fixture(scope="module")
def found(model: nn.Module, letters: Split) -> AttackResult:
    return CarliniWagner(searches=9, steps=200)(model, letters)


def test_successes_are_images_that_fool(
    found: AttackResult, model: nn.Module, letters: Split
) -> None:
    (x,) = found.x
    assert torch.equal(fooled(model, x, letters), found.success[0])
    assert found.success.all()
    assert x.min() >= 0
    assert x.max() <= 1
    assert found.correct.tolist() == [True] * RIGHT + [False] * 5
    length = norms(found.delta[0], "l2")
    assert length.isfinite().all()
    assert (length[:RIGHT] > 0).all()
    assert length[:RIGHT].median() > 0.1
    assert length[RIGHT:].max() < 0.05  # nothing is needed: (nearly) nothing is changed
    assert found.mean_distance() == pytest.approx(length[:RIGHT].mean().item(), rel=1e-5)
    assert (found.first_success_step[0, RIGHT:] == 0).all()


def test_no_shorter_way_back(found: AttackResult, model: nn.Module, letters: Split) -> None:
    """Nearly all of a change is needed: the images are at the edge of their class."""
    less = letters.x + 0.9 * found.delta[0]
    assert fooled(model, less, letters)[:RIGHT].float().mean() < 0.2


def test_as_small_as_foolbox_s(found: AttackResult, model: nn.Module, letters: Split) -> None:
    """From the same number of gradients, on images that were right."""
    import foolbox

    theirs = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=9, steps=200, stepsize=0.05)
    split = letters[:RIGHT]
    own = copy.deepcopy(model)  # it leaves gradients in the weights
    wrapped = foolbox.PyTorchModel(own, bounds=(0, 1), device="cpu")
    x, _, _ = theirs(wrapped, split.x, split.y, epsilons=None)
    real = fooled(model, x, split)  # it counts images that it has made black as fooled
    assert real.float().mean() > 0.8
    ours = norms(found.delta[0, :RIGHT], "l2")
    assert ours[real].median() <= 1.05 * norms(x - split.x, "l2")[real].median()


def test_batches_decide_nothing(model: nn.Module, letters: Split) -> None:
    runs = [CarliniWagner(**QUICK, batch_size=size)(model, letters[:12]) for size in (5, 12)]
    assert torch.equal(runs[0].success, runs[1].success)
    sizes = [norms(run.delta[0], "l2") for run in runs]
    assert torch.allclose(*sizes, rtol=0.02, atol=1e-3)  # sums in another order, 100 steps long
    alone = CarliniWagner(**QUICK)(model, letters[3:4])
    assert norms(alone.delta[0], "l2").item() == pytest.approx(sizes[1][3].item(), rel=0.02)


def test_seeds(model: nn.Module, letters: Split) -> None:
    def run(seed: int, start: str) -> Tensor:
        few = {"searches": 2, "steps": 10}
        return CarliniWagner(**few, seed=seed, starts=(start,))(model, letters[:8]).x

    for start in ("zero", "noise", "ball"):
        assert torch.equal(run(0, start), run(0, start))
    assert torch.equal(run(0, "zero"), run(1, "zero"))
    assert not torch.equal(run(0, "noise"), run(1, "noise"))


def test_starts_are_restarts(model: nn.Module, letters: Split) -> None:
    both = CarliniWagner(**QUICK, starts=("zero", "noise"))(model, letters[:8])
    one = CarliniWagner(**QUICK)(model, letters[:8])
    assert both.x.shape == (2, *letters[:8].x.shape)
    assert torch.equal(both.x[0], one.x[0])
    assert not torch.equal(both.x[0], both.x[1])


def test_the_model_is_left_alone(model: nn.Module, letters: Split) -> None:
    model.train()
    before = copy.deepcopy(model.state_dict())
    try:
        with pytest.warns(advnb.AttackWarning, match="train mode"):
            CarliniWagner(searches=1, steps=2)(model, letters[:4])
        assert model.training
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    finally:
        model.eval()


class Plane(nn.Module):
    """Two classes on both sides of a plane."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        w = torch.randn(pixels, generator=generator(1))
        self.w = nn.Parameter(w / w.norm())

    def forward(self, x: Tensor) -> Tensor:
        side = (x.flatten(1) - 0.5) @ self.w
        return torch.stack([-5 * side, 5 * side], 1)


@pytest.mark.parametrize(
    "scale",
    [0.02, 0.2],
)
def test_distance_to_a_plane(scale: float) -> None:
    """|margin| / |w|, where no pixel comes to the end of its range."""
    plane = Plane(36).eval()
    shift = scale * (1 + torch.rand(40, 1, generator=generator(2)))
    shift[::2] *= -1
    noise = 0.1 * torch.rand(40, 36, generator=generator(3))
    noise -= (noise @ plane.w.detach())[:, None] * plane.w.detach()
    x = (0.5 + noise + shift * plane.w.detach()).view(40, 1, 6, 6)
    split = Split(x, (shift[:, 0] > 0).long())
    result = CarliniWagner(searches=9, steps=100)(plane, split)
    assert result.correct.all()
    assert result.success.all()
    ratio = norms(result.delta[0], "l2") / shift[:, 0].abs()
    assert ratio.min() > 0.999
    assert 1 <= ratio.median() + 1e-3 <= 1.05
    along = (result.delta[0].flatten(1) @ plane.w.detach()).abs() / norms(result.delta[0], "l2")
    assert along.median() > 0.95


def test_codes_stay_in_bounds(fonts: advnb.Dataset, model: nn.Module, letters: Split) -> None:
    set_ = OnManifold(fonts.manifold, 0.3, "l2")
    result = CarliniWagner(**QUICK, set=set_)(model, letters)
    low, high = fonts.manifold.bounds
    assert (result.code >= low).all()
    assert (result.code <= high).all()
    assert result.change.isfinite().all()
    assert torch.equal(fooled(model, result.x[0], letters), result.success[0])
    assert result.success[0, :RIGHT].float().mean() > 0.5
    exact = fonts.manifold.decode(result.code[0], letters)
    assert torch.allclose(result.x[0], exact, atol=1e-6)


def test_printed_form(fonts: advnb.Dataset, model: nn.Module, letters: Split) -> None:
    set_ = OnManifold(fonts.manifold, 0.3, "l2")
    with refused("set must be one of norm l2"):
        CarliniWagner.printed(Pixels(0.3))
    attack = CarliniWagner.printed(set_, seed=4)
    assert (attack.set, attack.norm, attack.seed) == (set_, "l2", 4)
    assert (attack.searches, attack.steps, attack.starts) == (1, 120, ("ball",))
    assert (attack.constant, attack.confidence, attack.lr, attack.power) == (1.0, 1.5, 0.005, 1)
    result = attack(model, letters[:8])
    assert torch.equal(fooled(model, result.x[0], letters[:8]), result.success[0])


# --- the L-infinity attack

FEW: dict[str, Any] = {"norm": "linf", "searches": 14, "steps": 14}
MORE: dict[str, Any] = {"norm": "linf", "searches": 24, "steps": 32}


@pytest.fixture(scope="module")
def smallest(model: nn.Module, letters: Split) -> AttackResult:
    return CarliniWagner(**MORE)(model, letters)


def least(gap: Tensor, w: Tensor, x: Tensor) -> float:
    """The smallest t for which some delta, |delta| <= t and x + delta in [0, 1], has w @ delta
    >= gap: what t allows grows with t along straight lines that end where a pixel does."""
    room = torch.where(w > 0, 1 - x, x).double()
    gain, order = 0.0, room.argsort()
    slope, at = w.abs().double().sum().item(), 0.0
    for i in order:
        end = room[i].item()
        if gain + slope * (end - at) >= gap:
            break
        gain, at = gain + slope * (end - at), end
        slope -= w[i].abs().item()
    else:
        return math.inf
    return at + (gap.item() - gain) / slope


class Linear(nn.Module):
    def __init__(self, pixels: int, classes: int, seed: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(classes, pixels, generator=generator(seed)))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w.T


@pytest.mark.parametrize("classes", [2, 4])
def test_linf_closed_form(classes: int) -> None:
    """margin / |w_i - w_j|_1 to the nearest class, and more where [0, 1] ends before. Of several
    classes, the one that the margin leads to need not be the nearest."""
    model = Linear(16, classes, seed=0).eval()
    x = torch.rand(60, 1, 4, 4, generator=generator(1))
    x[20:] = x[20:].mul(3).sub(1).clamp(0, 1)  # many pixels cannot move one way
    x[50:] = x[50:].round()
    with torch.no_grad():
        output = model(x)
    y, rows = output.argmax(1), x.flatten(1)
    exact, free = torch.full((60,), math.inf).double(), torch.full((60,), math.inf)
    for i in range(60):
        for j in set(range(classes)) - {int(y[i])}:
            w, gap = (model.w[j] - model.w[y[i]]).detach(), output[i, y[i]] - output[i, j]
            exact[i] = min(exact[i], least(gap, w, rows[i]))
            free[i] = min(free[i], gap / w.abs().sum())
    assert (exact > 1.05 * free).sum() > 25  # the range binds
    assert (exact < 1.0001 * free).sum() > 4
    result = CarliniWagner(**MORE, starts=("noise",))(model, Split(x, y))
    assert torch.equal(result.success[0], exact < math.inf)
    ratio = (result.distances[0] / exact)[exact < math.inf]
    assert ratio.min() > 1 - 1e-5
    assert ratio.quantile(1.0 if classes == 2 else 0.9) < 1.005


class Bent(nn.Module):
    """A small network of two pixels, whose classes are islands."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        stream = generator(seed)
        self.w = nn.Parameter(8 * torch.randn(2, 12, generator=stream))
        self.b = nn.Parameter(4 * torch.randn(12, generator=stream))
        self.v = nn.Parameter(torch.randn(12, 3, generator=stream))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh((x.flatten(1) - 0.5) @ self.w + self.b) @ self.v


@pytest.mark.parametrize("seed", [0, 1])
def test_linf_brute_force(seed: int) -> None:
    """Two pixels: all images of a grid are looked at."""
    model, side = Bent(seed).eval(), torch.linspace(0, 1, 401)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        labels = model(grid).argmax(1)
    picked = torch.randperm(len(grid), generator=generator(seed, 2))[:60]
    x, y = grid[picked], labels[picked]
    exact = [(grid[labels != b] - a).abs().amax(1).min() for a, b in zip(x, y)]
    result = CarliniWagner(**MORE)(model, Split(x.view(60, 1, 1, 2), y))
    over = result.distances.amin(0) - torch.stack(exact)
    step = 1 / 400
    assert over.min() > -step  # no image of the grid lies nearer
    assert (over < 0.001).float().mean() >= 0.95


def test_linf_successes_fool(smallest: AttackResult, model: nn.Module, letters: Split) -> None:
    assert smallest.x.shape == (2, *letters.x.shape)
    for x, success in zip(smallest.x, smallest.success):
        assert torch.equal(fooled(model, x, letters), success)
    assert smallest.success.all()
    assert smallest.x.min() >= 0
    assert smallest.x.max() <= 1
    exact = (smallest.x.double() - letters.x.double()).flatten(2).abs().amax(2)
    assert torch.equal(smallest.distances, exact)
    assert (smallest.distances[:, :RIGHT] > 0).all()
    assert (smallest.distances[:, RIGHT:] == 0).all()  # wrong as they are
    assert (smallest.first_success_step[:, RIGHT:] == 0).all()
    assert (smallest.first_success_step[:, :RIGHT] > 0).all()
    mean = smallest.distances[:, :RIGHT].mean().item()
    assert smallest.mean_distance() == pytest.approx(mean)


def test_linf_no_smaller_box_fools(
    smallest: AttackResult, model: nn.Module, letters: Split
) -> None:
    """An attack that knows how far it may go does not do with 3 % less."""
    for i, size in enumerate(smallest.distances.amin(0)[:RIGHT:2].tolist()):
        eps, split = 0.97 * size, letters[2 * i : 2 * i + 1]
        attack = Attack(Pixels(eps), steps=40, lr=eps / 10, optimizer="sign", start="uniform")
        assert not attack(model, split).success.any()


@pytest.mark.parametrize("eps", [0.01, 0.03])
def test_linf_fools_what_pgd_does(
    eps: float, smallest: AttackResult, model: nn.Module, letters: Split
) -> None:
    pgd = zoo.pgd(eps, lr=eps / 10)(model, letters)
    theirs, ours = pgd.success.any(0), smallest.distances.amin(0) <= eps
    assert not (theirs & ~ours).any()
    assert smallest.success_rate("images", within=eps).value >= pgd.success_rate("images").value
    assert 0 < pgd.success_rate("images").value < 1


def test_linf_as_small_as_foolbox_s(
    smallest: AttackResult, model: nn.Module, letters: Split
) -> None:
    import foolbox

    split, own = letters[:RIGHT], copy.deepcopy(model)
    wrapped = foolbox.PyTorchModel(own, bounds=(0, 1), device="cpu")
    x, _, _ = foolbox.attacks.LInfFMNAttack(steps=300)(wrapped, split.x, split.y, epsilons=None)
    real = fooled(model, x, split)
    assert real.float().mean() > 0.8
    size = norms(x - split.x, "linf")[real]
    assert smallest.distances.amin(0)[:RIGHT][real].median() <= 1.05 * size.median()


class Counted(nn.Module):
    """A model that is never fooled, and counts how often it is differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.differentiated = 0

    def forward(self, x: Tensor) -> Tensor:
        self.differentiated += x.requires_grad
        side = x.flatten(1).sum(1)
        return torch.stack([side, -1 - side], 1)


def test_at_most_two_thousand_gradients() -> None:
    split = Split(torch.rand(1, 1, 3, 3), torch.tensor([0]))
    model = Counted().eval()
    result = CarliniWagner("linf", starts=("gray",))(model, split)
    assert 1900 < model.differentiated <= 2000
    assert not result.success.any()
    assert (result.distances == math.inf).all()
    assert result.success_rate("images", within=1e300).value == 0
    assert math.isnan(result.mean_distance())
    assert (result.first_success_step == -1).all()


def test_linf_takes_both_starts_by_default(model: nn.Module, letters: Split) -> None:
    assert CarliniWagner("linf").starts == ("noise", "gray")
    assert CarliniWagner().starts == ("zero",)
    split = letters[:4]
    both = CarliniWagner(**FEW)(model, split)
    one = CarliniWagner(**FEW, starts=("noise",))(model, split)
    assert torch.equal(both.x[0], one.x[0])
    assert not torch.equal(both.x[0], both.x[1])
    for start in ("ball", "uniform", "zero"):
        one = CarliniWagner(**FEW, starts=(start,))(model, split)
        assert one.success.all()
        assert (one.distances <= 1.3 * both.distances.amin(0)).all()
    again, other = (CarliniWagner(**FEW, seed=seed)(model, split) for seed in (0, 1))
    assert torch.equal(both.x, again.x)
    assert not torch.equal(both.x[0], other.x[0])


def test_linf_batches_decide_nothing(model: nn.Module, letters: Split) -> None:
    runs = [CarliniWagner(**FEW, batch_size=size)(model, letters[:12]) for size in (5, 12)]
    assert torch.equal(runs[0].success, runs[1].success)
    assert torch.allclose(runs[0].distances, runs[1].distances, rtol=0.02, atol=1e-3)


def test_linf_in_double(model: nn.Module, letters: Split) -> None:
    exact, split = in_double(model, letters[:6])
    result = CarliniWagner(**FEW)(exact, split)
    assert result.x.dtype == torch.float64
    assert torch.equal(result.success[0], fooled(exact, result.x[0], split))
    single = CarliniWagner(**FEW)(model, letters[:6])
    assert torch.allclose(result.distances, single.distances, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("eta", [0.05, 0.3])
def test_linf_on_codes(eta: float, fonts: advnb.Dataset, model: nn.Module, letters: Split) -> None:
    """The set's radius bounds every change; a code beyond its range may only come closer."""
    set_ = OnManifold(fonts.manifold, eta)
    result = CarliniWagner(**FEW, set=set_)(model, letters)
    low, high = fonts.manifold.bounds
    assert (result.code >= low).all()
    assert (result.code <= high).all()
    change = result.code.double() - letters.z.double()
    assert change.abs().max() <= eta
    assert torch.equal(fooled(model, result.x[0], letters), result.success[0])
    size = change.abs().amax(2)
    assert torch.equal(result.distances[result.success], size[result.success])
    attack = Attack(set_, restarts=3, lr=eta / 10, optimizer="sign", start="uniform")
    theirs = attack(model, letters).success.any(0)
    missed = theirs & ~result.success.any(0)
    assert theirs.sum() > 5
    assert missed.sum() <= 1


# --- success within a norm


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_success_within(norm: str, found: AttackResult, smallest: AttackResult) -> None:
    result = {"l2": found, "linf": smallest}[norm]
    size = result.distances[:, :RIGHT]
    assert norms(result.delta[0], norm) == pytest.approx(result.distances[0], abs=1e-6)
    assert result.success_rate(within=0).value == 0
    assert result.success_rate(within=1e9).value == result.success_rate().value == 1
    for eps in size.flatten().tolist()[::5]:
        assert result.success_rate(within=eps).value == pytest.approx((size <= eps).double().mean())
        either = (size <= eps).any(0).double().mean().item()
        assert result.success_rate("images", within=eps).value == pytest.approx(either)
        assert result.success_rate(within=eps).value > result.success_rate(within=eps - 1e-6).value


@pytest.mark.parametrize("eps", [0.1, 0.3, 8 / 255])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_radius_bounds_what_is_within_it(
    norm: str, eps: float, model: nn.Module, letters: Split
) -> None:
    """Not up to rounding: the edge itself counts, as most changes of a sign attack lie there."""
    result = Attack(Pixels(eps, norm), steps=5, lr=eps, optimizer="sign")(model, letters)
    assert result.success_rate(within=eps) == result.success_rate()
    assert (result.distances[~result.success] == math.inf).all()


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf, "0.3", True, 10**400])
def test_bad_within(wrong: Any, smallest: AttackResult) -> None:
    with refused("^within must be a number >= 0"):
        smallest.success_rate(within=wrong)


# --- what is told


class Changed(nn.Module):
    """Another's outputs, changed."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.model(x))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_vanishing_gradients_are_told_once(norm: Any, model: nn.Module, letters: Split) -> None:
    attack = CarliniWagner(norm, searches=2, steps=3)
    masked = Changed(model, lambda out: out.round() + 0 * out).eval()
    with pytest.warns(AttackWarning, match="gradient vanishes for 100% ") as told:
        attack(masked, letters)
    assert len(told) == 1
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack(model, letters)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_sets_that_cannot_be_searched(norm: Any, model: nn.Module, letters: Split) -> None:
    class Torn(Pixels):
        def decode(self, code: Tensor, split: Split) -> Tensor:
            return code.detach()

    with refused(r"cut off from the code: remove detach\(\)"):
        CarliniWagner(norm, set=Torn(1.0, norm))(model, letters)
    with refused(r"cut off from the image: remove detach\(\)"):
        CarliniWagner(norm)(Changed(model, Tensor.detach).eval(), letters)


# --- what is refused


def test_a_code_without_ends(fonts: advnb.Dataset, model: nn.Module, letters: Split) -> None:
    ends = torch.full((6,), math.inf)
    endless = SimpleNamespace(
        bounds=(-ends, ends), encode=fonts.manifold.encode, decode=fonts.manifold.decode
    )
    with refused("needs a range with ends: bounds must be finite"):
        CarliniWagner(set=OnManifold(endless, 0.3, "l2"))(model, letters)


@pytest.mark.parametrize(
    "wrong",
    [
        {"norm": "L1"}, {"norm": "L2"}, {"norm": None}, {"set": Pixels(0.3)}, {"set": 0.3},
        {"set": "l2"}, {"set": Pixels},
        {"searches": 0}, {"searches": 1.5}, {"steps": 0}, {"steps": "9"},
        {"steps": True}, {"constant": 0}, {"constant": math.inf}, {"constant": "1"}, {"lr": 0},
        {"lr": -1}, {"lr": math.nan}, {"confidence": -1}, {"confidence": math.nan},
        {"norm": []}, {"starts": ()}, {"starts": "zero"}, {"starts": ("zero", "x\ny" * 99)},
        {"starts": (1,)},
    ],
    ids=str,
)  # fmt: skip
def test_bad_settings(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with refused(f"^{name} must be "):
        CarliniWagner(**wrong)


def test_set_of_another_norm() -> None:
    with refused("^set must be one of norm linf"):
        CarliniWagner("linf", set=Pixels(0.3, "l2"))


@pytest.mark.parametrize(("norm", "wrong"), [("linf", ScaleShift(0.3)), ("l2", Transport())])
def test_sets_without_a_smallest_change(norm: Any, wrong: Any) -> None:
    with refused(f"^a smallest change of {type(wrong).__name__} is not defined"):
        CarliniWagner(norm, set=wrong)


@pytest.mark.parametrize("wrong", [{"power": 0}, {"power": "2"}, {"starts": 3}], ids=str)
def test_more_bad_settings(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with refused(f"^{name} must be "):
        CarliniWagner(**wrong)


@pytest.mark.parametrize("size", [0, 2.5, "9"])
def test_bad_batch_size(size: object, model: nn.Module, letters: Split) -> None:
    with refused("^batch_size must be "):
        CarliniWagner(batch_size=size)(model, letters)


def test_bad_images(model: nn.Module, letters: Split) -> None:
    with refused("model|shape|images"):
        CarliniWagner(**QUICK)(model, Split(torch.rand(2, 3, 5, 5), torch.tensor([0, 1])))
    with refused("model"):
        CarliniWagner(**QUICK)(None, letters)
