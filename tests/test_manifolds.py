"""Manifolds and the attacks on them: derivatives, projections and bounds, each against SciPy,
NumPy, scikit-learn, finite differences or a search at random."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.optimize import least_squares
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import advnb
from advnb import Affine, Attack, OnManifold, Pixels, Split, plots, recipes, zoo
from advnb.attribution import attribute
from advnb.fonts import RANGES, KnownManifold, slopes, transform
from advnb.manifolds import NeighbourManifold
from advnb.perturbations import IDENTITY, STARTS
from advnb.recipes import Part, Recipe
from advnb.stats import generator

from .conftest import refused

ETA = 0.3
UNIT = torch.tensor(IDENTITY, dtype=torch.float64)
WIDE = torch.tensor([1.5, 1.5, 0.7, 0.7, 0.4, 2.0], dtype=torch.float64)


def uniform(*shape: int, seed: int = 0, low: float = -1, high: float = 1) -> Tensor:
    """Float64, so that the same numbers can be had in either precision."""
    return low + (high - low) * torch.rand(shape, generator=generator(seed), dtype=torch.float64)


def sizes(change: Tensor, norm: str = "l2") -> Tensor:
    """The norm of each row in double precision."""
    flat = change.double().flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.square().sum(1).sqrt()


def noisy(split: Split, eps: float, seed: int = 4) -> Tensor:
    return (split.x + uniform(*split.x.shape, seed=seed) * eps).clamp(0, 1).float()


def near_codes(split: Split, seed: int = 3, eta: float = ETA) -> Tensor:
    """Codes within eta of the split's own, inside the bounds."""
    low, high = split.dataset.manifold.bounds
    return (split.z + eta * uniform(*split.z.shape, seed=seed).float()).clamp(low, high)


def in_double(split: Split) -> Split:
    return Split(
        split.x.double(), split.y, z=split.z.double(), font=split.font, dataset=split.dataset
    )


def moved(image: Tensor, z: Tensor) -> np.ndarray:
    """SciPy's bilinear sampler at the places that the six numbers say (FACTS), [C, H, W]."""
    t_x, t_y, a, b, s, r = z.tolist()
    c, q = math.cos(r), math.sin(r)
    height, width = image.shape[1:]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    u = s * (c - q * a) * x + s * (c * a - q) * y + t_x
    v = s * (c * b + q) * x + s * (c - q * b) * y + t_y
    places = [(v + 1) / 2 * (height - 1), (u + 1) / 2 * (width - 1)]
    channels = [
        map_coordinates(channel, places, order=1, mode="grid-constant", cval=0.0)
        for channel in image.double().numpy()
    ]
    return np.stack(channels)


# --- the derivatives of a moved image


SHAPES = [(1, 28, 28), (3, 20, 24), (3, 9, 30), (1, 31, 8), (2, 2, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_slopes_images_are_the_transformed_ones(shape: tuple[int, int, int]) -> None:
    x, z = uniform(12, *shape, low=0), UNIT + WIDE * uniform(12, 6, seed=1)
    image, change = slopes(x, z)
    assert image.shape == x.shape
    assert change.shape == (12, 6, *shape)
    assert (image - transform(x, z)).abs().max() <= 1e-12
    for one, source, row in zip(image, x, z):
        assert np.abs(one.numpy() - moved(source, row)).max() <= 1e-12
    image, change = slopes(x.float(), z.float())
    assert image.dtype == change.dtype == torch.float32
    assert (image - transform(x.float(), z.float())).abs().max() <= 2e-5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", range(6), ids=advnb.fonts.LATENTS)
def test_slopes_are_finite_differences(shape: tuple[int, int, int], direction: int) -> None:
    x, z = uniform(6, *shape, low=0), UNIT + WIDE * uniform(6, 6, seed=2)
    step = torch.zeros(6, dtype=torch.float64)
    step[direction] = 1e-7
    expected = (transform(x, z + step) - transform(x, z - step)) / 2e-7
    got = slopes(x, z)[1][:, direction]
    assert expected.norm() > 0.1
    assert (got - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("edge", [0, 1])
def test_slopes_at_the_bounds(name: str, edge: int, fonts: advnb.Dataset) -> None:
    split = fonts.test(20)
    glyphs = KnownManifold().glyphs(split.font, split.y, like=torch.zeros(1).double())
    z = KnownManifold(name).bounds[edge].double().expand(20, 6).contiguous()
    image, change = slopes(glyphs, z)
    assert (image - transform(glyphs, z)).abs().max() <= 1e-12
    inward = 1e-7 * (1 - 2 * edge)
    for k in range(6):
        nearer = z.clone()
        nearer[:, k] += inward
        expected = (transform(glyphs, nearer) - transform(glyphs, z)) / inward
        assert (change[:, k] - expected).norm() <= 1e-3 * expected.norm()


def test_letters_out_of_sight_are_black() -> None:
    x = uniform(5, 2, 9, 7, low=0.5)
    z = UNIT.repeat(5, 1)
    z[0, 0], z[1, 1], z[2, 0], z[3, 1], z[4, 1] = 2.6, -2.6, -1e6, 1e6, 5
    for kind in (torch.float32, torch.float64):
        image, change = slopes(x.to(kind), z.to(kind))
        assert image.abs().max() == 0
        assert change.abs().max() == 0


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), far=st.floats(0.05, 3))
def test_slopes_wherever_a_letter_is_moved(seed: int, far: float) -> None:
    x, z = uniform(2, 1, 6, 11, seed=seed, low=0), UNIT + far * WIDE * uniform(2, 6, seed=seed + 1)
    z = z.requires_grad_()
    image, change = slopes(x, z.detach())
    expected = transform(x, z)
    assert torch.allclose(image, expected, atol=1e-10)
    weight = uniform(*x.shape, seed=seed + 2)
    (gradient,) = torch.autograd.grad((expected * weight).sum(), z)
    got = torch.einsum("nkchw,nchw->nk", change, weight)
    assert torch.allclose(got, gradient, atol=1e-7, rtol=1e-7)


# --- the nearest image of a letter


def test_an_image_of_the_manifold_is_its_own_projection(fonts: advnb.Dataset) -> None:
    split = fonts.test(100)
    assert torch.equal(fonts.manifold.decode(fonts.manifold.encode(split), split), split.x)
    assert fonts.manifold.distance(split.x, split).max() <= 1e-5
    assert torch.allclose(fonts.manifold.nearest(split.x, split), split.z, atol=1e-5)


def test_moved_letters_are_met(fonts: advnb.Dataset) -> None:
    split = fonts.test(200)
    x = fonts.manifold.decode(near_codes(split), split)
    code = fonts.manifold.nearest(x, split)
    distance = sizes(fonts.manifold.decode(code, split) - x)
    assert (distance <= 0.05).float().mean() >= 0.95
    assert torch.allclose(fonts.manifold.distance(x, split).double(), distance, atol=1e-5)
    low, high = fonts.manifold.bounds
    assert ((code >= low) & (code <= high)).all()


@pytest.mark.parametrize("variant", RANGES)
def test_found_codes_are_inside_the_bounds(variant: str) -> None:
    data = advnb.load("fonts" if variant == "hard" else f"fonts-{variant}")
    split, manifold = data.test(40), data.manifold
    low, high = manifold.bounds
    outside = split.z + 0.4 * uniform(40, 6, seed=8).float()  # the letters themselves are not
    assert ((outside < low) | (outside > high)).any(1).sum() > 20
    for kind in (torch.float32, torch.float64):
        letters = manifold.glyphs(split.font, split.y, like=outside)
        code = manifold.nearest(transform(letters, outside).to(kind), split)
        assert code.dtype == kind
        assert ((code >= low.to(kind)) & (code <= high.to(kind))).all()


@pytest.fixture(scope="module")
def regular(fonts: advnb.Dataset, trained: nn.Module) -> tuple[Split, Tensor]:
    split = fonts.test(100)
    return split, Attack(Pixels(0.3), seed=2)(trained, split).x[0]


@pytest.mark.parametrize("eps", [0.02, 0.1, 0.3, "regular", "grey"])
@pytest.mark.parametrize("starts", [1, 4])
def test_no_projection_is_farther_than_the_original(
    eps: object, starts: int, regular: tuple[Split, Tensor]
) -> None:
    split, x = regular
    if eps == "grey":
        x = uniform(*split.x.shape, seed=6, low=0).float()
    elif eps != "regular":
        x = noisy(split, float(eps))
    distance = split.dataset.manifold.distance(x, split, starts=starts)
    assert (distance.double() - sizes(x - split.x)).max() <= 1e-5


def scipy_distance(x: Tensor, split: Split, i: int) -> float:
    """The distance that SciPy's trust-region search ends at, from the own code, in double."""
    manifold = split.dataset.manifold
    glyph = manifold.glyphs(split.font[i : i + 1], split.y[i : i + 1], like=x)
    low, high = (edge.double().numpy() for edge in manifold.bounds)
    begin = split.z[i].double().numpy().clip(low + 1e-6, high - 1e-6)  # it starts inside

    def residual(z: np.ndarray) -> np.ndarray:
        return (transform(glyph, torch.from_numpy(z)[None])[0] - x[i]).flatten().numpy()

    def jacobian(z: np.ndarray) -> np.ndarray:
        return slopes(glyph, torch.from_numpy(z)[None])[1][0].flatten(1).T.numpy()

    found = least_squares(residual, begin, jacobian, bounds=(low, high), method="trf")
    return math.sqrt(2 * found.cost)


@pytest.mark.parametrize("kind", ["regular", "noise", "moved and noise"])
def test_never_worse_than_scipy(kind: str, regular: tuple[Split, Tensor]) -> None:
    split, x = regular[0][:20], regular[1][:20]
    if kind == "noise":
        x = noisy(split, 0.3)
    elif kind != "regular":
        other = split.dataset.manifold.decode(near_codes(split), split)
        x = noisy(split.with_x(other.clamp(0, 1)), 0.1)
    x = x.double()
    ours = split.dataset.manifold.distance(x, split)
    theirs = torch.tensor([scipy_distance(x, split, i) for i in range(20)], dtype=torch.float64)
    assert theirs.min() > 0.01  # none is met exactly, where a ratio says nothing
    assert (ours / theirs).max() <= 1.01


@pytest.mark.parametrize("starts", [1, 4])
def test_an_image_is_projected_as_if_it_were_alone(starts: int, fonts: advnb.Dataset) -> None:
    split, manifold = in_double(fonts.test(20)), fonts.manifold
    for x in (noisy(split, 0.3).double(), manifold.decode(near_codes(split).double(), split)):
        together = manifold.distance(x, split, starts=starts)
        alone = [
            manifold.distance(x[i : i + 1], split[i : i + 1], starts=starts) for i in range(20)
        ]
        assert torch.allclose(together, torch.cat(alone), atol=1e-4)


def test_projection_is_reproducible_and_leaves_no_trace(fonts: advnb.Dataset) -> None:
    split, manifold = fonts.test(15), fonts.manifold
    x, z, before = noisy(split, 0.3), split.z.clone(), split.x.clone()
    kept = x.clone()
    code = manifold.nearest(x, split, seed=5)
    torch.manual_seed(99)
    assert torch.equal(manifold.nearest(x, split, seed=5), code)
    assert not torch.equal(manifold.nearest(x, split, seed=6), code)
    image = manifold.project(x, split, seed=5)
    assert torch.equal(image, manifold.decode(code, split))
    assert torch.equal(manifold.distance(x, split, seed=5), (x - image).flatten(1).norm(dim=1))
    assert not code.requires_grad
    assert code.device == image.device == x.device == split.y.device
    assert torch.equal(x, kept)
    assert torch.equal(split.z, z)
    assert torch.equal(split.x, before)


def test_projection_in_double(fonts: advnb.Dataset) -> None:
    split, manifold = fonts.test(30), fonts.manifold
    x = manifold.decode(near_codes(split).double(), split)
    assert manifold.project(x, split).dtype == torch.float64
    assert manifold.distance(x, split).dtype == torch.float64
    met = manifold.distance(x, split)
    assert met.median() <= 1e-5
    rough = manifold.distance(x.float(), split)
    assert (met - rough).abs().median() <= 1e-4


def test_projections_that_cannot_be(fonts: advnb.Dataset) -> None:
    split, manifold = fonts.test(5), fonts.manifold
    for look in (manifold.project, manifold.distance, manifold.nearest):
        with refused("load a 'fonts' data set"):
            look(split.x, Split(split.x, split.y))
        for x in (split.x[:4], split.x[:, 0], torch.rand(5, 1, 20, 20), torch.rand(5, 3, 28, 28)):
            with refused(r"x must be \[5, 1, 28, 28\]"):
                look(x, split)
        for starts in (0, -1, 2.5, "4", None, True):
            with refused("starts must be a whole number >= 1"):
                look(split.x, split, starts=starts)


@pytest.mark.parametrize("radius", [math.nan, math.inf, -0.1, "far", None])
def test_a_radius_that_cannot_be(radius: object, fonts: advnb.Dataset) -> None:
    split = fonts.test(2)
    with refused("radius must be"):
        fonts.manifold.nearest(noisy(split, 0.1), split, radius=radius)


# --- the attack on a known manifold


@pytest.fixture(scope="module")
def attacked(trained: nn.Module, fonts: advnb.Dataset) -> tuple:
    """A model, a split, an attack that fools some images, and its result from 2 starts."""
    split = fonts.test(120)
    attack = Attack(OnManifold(fonts.manifold, 0.15), steps=12, restarts=2, batch_size=50, seed=9)
    return trained, split, attack, attack(trained, split)


def check_box(code: Tensor, origin: Tensor, eta: float, norm: str, bounds: tuple) -> None:
    """Exactly inside, in double precision, in which nothing here is rounded."""
    low, high = (torch.as_tensor(edge).double() for edge in bounds)
    exact = code.double()
    most = eta if code.dtype == torch.float64 else min(eta, float(np.float32(eta)))
    assert sizes(exact - origin.double(), norm).max().item() <= most
    assert (exact >= low).all()
    assert (exact <= high).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("keep", ["first", "strongest"])
@pytest.mark.parametrize("start", STARTS)
def test_what_an_on_manifold_attack_says(
    norm: str, keep: str, start: str, attacked: tuple, fonts: advnb.Dataset
) -> None:
    model, split, attack, _ = attacked
    split, eta = split[:40], ETA
    y, font, z = split.y.clone(), split.font.clone(), split.z.clone()
    attack = replace(
        attack, set=OnManifold(fonts.manifold, eta, norm), keep=keep, start=start, steps=5, lr=0.05
    )
    result = attack(model, split)
    assert result.code.shape == result.change.shape == (2, 40, 6)
    for code, x, change, success in zip(result.code, result.x, result.change, result.success):
        check_box(code, split.z, eta, norm, fonts.manifold.bounds)
        assert torch.equal(change, code - split.z)
        assert torch.allclose(x, fonts.manifold.decode(code, split), atol=1e-6)
        for i in (3, 17):
            glyph = fonts.manifold.glyphs(split.font, split.y, like=z)[i]
            assert np.abs(x[i].numpy() - moved(glyph, code[i].double())).max() < 2e-4
        with torch.no_grad():
            assert torch.equal(success, model(x).argmax(1) != y)
    assert torch.equal(result.delta, result.x - split.x)
    assert torch.equal(split.y, y)
    assert torch.equal(split.font, font)
    assert torch.equal(split.z, z)
    assert not result.x.requires_grad
    hits = result.success & result.correct
    if hits.any():
        mean = sizes(result.change[hits], norm).mean().item()
        assert result.mean_distance() == pytest.approx(mean, rel=1e-5)


def test_on_manifold_images_are_letters_of_the_same_face(attacked: tuple) -> None:
    _, split, _, result = attacked
    assert (result.delta.abs().flatten(2).amax(2) > 0.3).any()  # far in pixels
    distance = split.dataset.manifold.distance(result.x[0], split)
    assert distance.median() <= 0.01
    assert (distance <= 0.05).float().mean() >= 0.95


def test_states_of_an_on_manifold_attack(attacked: tuple, fonts: advnb.Dataset) -> None:
    model, split, attack, result = attacked
    states = list(attack.iterate(model, split))
    for restart in range(2):
        steps = [state for state in states if state.restart == restart]
        assert [state.step for state in steps] == list(range(len(steps)))
        for state in steps:
            check_box(state.code, split.z, 0.15, "linf", fonts.manifold.bounds)
            with torch.no_grad():
                output = model(state.x)
            assert torch.equal(state.success, output.argmax(1) != split.y)
            expected = cross_entropy(output, split.y, reduction="none")
            assert torch.allclose(state.loss, expected, atol=1e-3)
        flips = torch.stack([state.success for state in steps])
        first = torch.where(flips.any(0), flips.int().argmax(0), -1)
        assert torch.equal(first, result.first_success_step[restart])
        assert torch.equal(steps[-1].code, result.code[restart])
        assert torch.equal(steps[-1].x, result.x[restart])


def test_restarts_and_seeds_of_an_on_manifold_attack(attacked: tuple) -> None:
    model, split, attack, result = attacked
    assert not (result.code[0] == result.code[1]).all(1).any()
    assert torch.equal(attack(model, split).code, result.code)
    assert torch.equal(replace(attack, restarts=1)(model, split).code[0], result.code[0])
    assert not torch.equal(replace(attack, seed=10)(model, split).code, result.code)
    assert 0 < result.success_rate().value < result.success_rate("images").value < 1


@pytest.mark.parametrize("keep", ["first", "strongest"])
def test_the_batch_size_decides_nothing(keep: str, attacked: tuple) -> None:
    model, split, attack, _ = attacked
    model, split = copy.deepcopy(model).double(), in_double(split)
    attack = replace(attack, keep=keep, restarts=1)
    results = [replace(attack, batch_size=size)(model, split) for size in (7, 50, 1000)]
    for other in results[1:]:
        assert torch.equal(other.success, results[0].success)
        assert torch.equal(other.first_success_step, results[0].first_success_step)
        assert torch.allclose(other.code, results[0].code, atol=1e-7)


def test_images_in_double_and_codes_in_single(attacked: tuple) -> None:
    model, split, attack, result = attacked
    exact = attack(copy.deepcopy(model).double(), split.with_x(split.x.double()))
    assert exact.x.dtype == torch.float64
    assert (exact.success == result.success).float().mean() > 0.95


def test_a_step_by_hand(attacked: tuple, fonts: advnb.Dataset) -> None:
    """One signed step from the own code, with the gradient by finite differences."""
    model, split, attack, _ = attacked
    model, split = copy.deepcopy(model).double(), in_double(split[:6])
    lr = 0.01
    attack = replace(
        attack, steps=1, lr=lr, optimizer="sign", start="zero", keep="strongest", restarts=1
    )

    def loss(z: Tensor) -> Tensor:
        with torch.no_grad():
            return cross_entropy(model(fonts.manifold.decode(z, split)), split.y, reduction="none")

    steps = 1e-6 * torch.eye(6, dtype=torch.float64)
    gradient = torch.stack([(loss(split.z + e) - loss(split.z - e)) / 2e-6 for e in steps], 1)
    low, high = (edge.double() for edge in fonts.manifold.bounds)
    expected = (split.z + lr * gradient.sign()).clamp(low, high)
    *_, last = attack.iterate(model, split)
    right = loss(split.z) <= loss(expected)
    assert right.any()
    clear = (gradient.abs().amin(1) > 1e-4) & ((last.code - split.z).abs().amax(1) > 0)
    assert clear.any()
    assert torch.allclose(last.code[clear], expected[clear], atol=1e-12)


def test_a_search_at_random_finds_no_more(attacked: tuple, fonts: advnb.Dataset) -> None:
    model, split, _, _ = attacked
    split, eta = split[:20], 0.12
    attack = Attack(OnManifold(fonts.manifold, eta), restarts=5)
    result = attack(model, split)
    low, high = fonts.manifold.bounds
    lucky = 0
    for i in range(20):
        many = split[[i] * 2000]
        code = (many.z + eta * uniform(2000, 6, seed=i).float()).clamp(low, high)
        with torch.no_grad():
            lucky += int((model(fonts.manifold.decode(code, many)).argmax(1) != many.y).any())
    found = int(result.success.any(0).sum())
    assert lucky <= found + 2
    for restart, i in result.success.nonzero().tolist():
        one, code = split[i], result.code[restart, i : i + 1]
        check_box(code, one.z, eta, "linf", fonts.manifold.bounds)
        with torch.no_grad():
            assert model(fonts.manifold.decode(code, one)).argmax(1) != one.y


def test_success_near_the_papers(fonts: advnb.Dataset) -> None:
    result = Attack(OnManifold(fonts.manifold, ETA), restarts=5)(
        zoo.load("fonts-cnn-normal"), fonts.test(400)
    )
    assert result.success_rate().value == pytest.approx(0.652, abs=0.1)


def mean_loss(model: nn.Module, split: Split) -> float:
    with torch.no_grad():
        return cross_entropy(model(split.x), split.y).item()


@pytest.mark.parametrize("kind", ["manifold", "affine", "both"])
def test_training_with_attacks_on_codes(kind: str, fonts: advnb.Dataset) -> None:
    split, model = fonts.train(200), advnb.models.CNN(seed=1)
    on, affine = OnManifold(fonts.manifold, ETA), Affine(ETA)
    recipe = recipes.adversarial(Attack(affine if kind == "affine" else on, steps=3, lr=0.05))
    if kind == "both":
        regular = Attack(Pixels(0.1), steps=3, lr=0.05, keep="strongest")
        recipe = Recipe((Part(0.5), Part(0.25, regular), Part(0.25, recipe.parts[1].attack)))
    seen: list[Tensor] = []
    hook = model.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].detach()) if module.training else None
    )
    before = mean_loss(model.eval(), split)
    advnb.fit(model, split, recipe, epochs=5, seed=7, progress=False)
    hook.remove()
    assert mean_loss(model, split) < before - 0.3
    rows = split[torch.randperm(200, generator=generator(7, 0, 0))[:100]]
    changed = (seen[0] - rows.x).abs().flatten(1).amax(1)
    assert changed[:50].max() == 0
    assert changed[50:].median() > 0.05
    if kind != "affine":
        part = slice(75 if kind == "both" else 50, 100)
        assert (fonts.manifold.distance(seen[0][part], rows[part]) <= 0.05).float().mean() >= 0.9


@pytest.mark.parametrize("make", [lambda eta, norm="linf": OnManifold(KnownManifold(), eta, norm),
                                  Affine], ids=["manifold", "affine"])  # fmt: skip
def test_bad_eta_and_norm(make: type) -> None:
    for eta in (0, -0.1, math.nan, math.inf, "0.3", None, True, 1e7):
        with refused("eta must be a positive number"):
            make(eta)
    for norm in ("l1", "Linf", 2, None):
        with refused("norm must be"):
            make(ETA, norm)
    assert make(ETA).scaled(0.5).eta == pytest.approx(ETA / 2)
    assert make(ETA, "l2").scaled(0.5).norm == "l2"


def test_what_is_no_manifold(fonts: advnb.Dataset) -> None:
    for manifold in (
        KnownManifold,
        0.3,
        None,
        "fonts",
        fonts,
        NeighbourManifold(fonts.train(5), 2),
    ):
        with refused("manifold must be a manifold"):
            OnManifold(manifold, ETA)


def test_an_attack_on_images_without_codes(trained: nn.Module, fonts: advnb.Dataset) -> None:
    split = fonts.test(5)
    with refused("load a 'fonts' data set"):
        Attack(OnManifold(fonts.manifold, ETA))(trained, Split(split.x, split.y))


# --- a manifold of one's own


@dataclass
class Line:
    """Images grey + z @ directions, [N, 1, 1, P]: the smallest manifold there is."""

    directions: Tensor
    low: Tensor
    high: Tensor

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        return self.low, self.high

    def encode(self, split: Split) -> Tensor:
        return split.z

    def decode(self, z: Tensor, split: Split) -> Tensor:
        return (0.5 + z @ self.directions)[:, None, None]

    def project(self, x: Tensor, split: Split) -> Tensor:
        return self.decode((x.flatten(1) - 0.5) @ torch.linalg.pinv(self.directions), split)

    def distance(self, x: Tensor, split: Split) -> Tensor:
        return sizes(x - self.project(x, split))


def own(seed: int, n: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Line, Split, nn.Module]:
    """A random manifold of four codes, with images on it, some of them at its bounds, and a
    linear model of two classes that can be fooled in one direction."""
    low, high = uniform(4, seed=seed, low=-2, high=-0.1), uniform(4, seed=seed + 1, low=0.1, high=2)
    directions = uniform(4, 9, seed=seed + 2) / 20
    low, high, directions = (t.to(dtype) for t in (low, high, directions))
    line = Line(directions, low, high)
    z = torch.maximum(torch.minimum((1.4 * uniform(n, 4, seed=seed + 3)).to(dtype), high), low)
    x = (0.5 + z @ directions)[:, None, None]
    layer = nn.Linear(9, 2)
    for number, p in enumerate(layer.parameters()):
        nn.init.normal_(p, generator=generator(seed, number))
    model = nn.Sequential(nn.Flatten(), layer).to(dtype).eval()
    return line, Split(x, torch.arange(n) % 2, z=z), model


def uphill(line: Line, split: Split, model: nn.Sequential) -> Tensor:
    """The direction that each code's loss grows in, [N, 4]."""
    w = model[1].weight.detach()
    return (w[1 - split.y] - w[split.y]) @ line.directions.T


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("optimizer", ["adam", "sign"])
def test_the_optimum_on_a_linear_manifold(start: str, optimizer: str) -> None:
    line, split, model = own(5)
    attack = Attack(
        OnManifold(line, ETA), steps=40, lr=0.03, optimizer=optimizer, start=start, loss="margin",
        keep="strongest",
    )  # fmt: skip
    best = split.z + ETA * uphill(line, split, model).sign()
    best = torch.maximum(torch.minimum(best, line.high), line.low)
    result = attack(model, split)
    with torch.no_grad():
        reached, most = (advnb.search.margin(model(line.decode(z, split)), split.y)
                         for z in (result.code[0], best))  # fmt: skip
    assert torch.allclose(reached, most, atol=1e-5)
    assert torch.equal(result.success[0], most > 0)
    assert line.distance(result.x[0], split).max() < 1e-5


def test_the_optimum_in_l2_on_a_linear_manifold() -> None:
    line, split, model = own(6)
    line.low, line.high = line.low - 5, line.high + 5  # nothing but the ball stops the search
    attack = Attack(
        OnManifold(line, ETA, "l2"), steps=40, lr=0.1, optimizer="sign", loss="margin",
        keep="strongest",
    )  # fmt: skip
    w = uphill(line, split, model)
    best = split.z + ETA * w / w.norm(dim=1, keepdim=True)
    assert torch.allclose(attack(model, split).code[0], best, atol=1e-3)


KINDS = {"float32": torch.float32, "float64": torch.float64}


@settings(max_examples=150)
@given(
    eta=st.one_of(st.floats(-4, 1).map(lambda p: 10**p), st.sampled_from([0.3, 0.1, 1.0])),
    norm=st.sampled_from(["linf", "l2"]),
    start=st.sampled_from(STARTS),
    optimizer=st.sampled_from(["adam", "sign"]),
    dtype=st.sampled_from(list(KINDS)),
    seed=st.integers(0, 10_000),
)
@pytest.mark.filterwarnings("ignore::advnb.AttackWarning")
def test_codes_never_leave_the_box(
    eta: float, norm: str, start: str, optimizer: str, dtype: str, seed: int
) -> None:
    line, split, model = own(seed, 4, KINDS[dtype])
    attack = Attack(
        OnManifold(line, eta, norm), steps=3, lr=eta / 2, optimizer=optimizer, start=start,
        keep="strongest",
    )  # fmt: skip
    for state in attack.iterate(model, split):
        assert state.code.dtype == KINDS[dtype]
        check_box(state.code, split.z, eta, norm, line.bounds)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.filterwarnings("ignore::advnb.AttackWarning")
def test_codes_beyond_the_bounds_move_no_farther_than_eta(norm: str) -> None:
    """As a learned encoder may give: the ball is what is promised, the bounds are nominal."""
    line, split, model = own(7)
    split = Split(split.x, split.y, z=split.z + torch.tensor([0.0, 0.0, 0.0, 3.0]))
    for start in STARTS:
        attack = Attack(OnManifold(line, ETA, norm), steps=5, lr=0.2, start=start, keep="strongest")
        for state in attack.iterate(model, split):
            assert sizes(state.code - split.z, norm).max().item() <= ETA + 1e-6
            assert (state.code[:, 3] <= split.z[:, 3]).all()


# --- moved images of any kind


SMALL = [(-0.15, 0.15), (-0.15, 0.15), (-0.2, 0.2), (-0.2, 0.2), (0.85, 1.15),
         (-math.pi / 10, math.pi / 10)]  # fmt: skip
NAMES = {"fonts": "hard", "fonts-moderate": "moderate", "fonts-easy": "easy"}


def colour(n: int = 12, shape: tuple[int, int, int] = (3, 20, 24)) -> Split:
    return Split(uniform(n, *shape, seed=1, low=0).float(), torch.arange(n) % 3)


def reader(shape: tuple[int, int, int], classes: int = 3) -> nn.Module:
    layer = nn.Linear(math.prod(shape), classes)
    for number, p in enumerate(layer.parameters()):
        nn.init.normal_(p, std=0.1, generator=generator(number))
    return nn.Sequential(nn.Flatten(), layer).eval()


@pytest.mark.parametrize("name", [*NAMES, "colour", "wide"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eta", [0.05, 0.3, 3.0])
def test_what_an_affine_attack_says(name: str, norm: str, eta: float) -> None:
    if name in NAMES:
        split, bounds = advnb.load(name).test(12), RANGES[NAMES[name]]
    else:
        split, bounds = colour(shape=(3, 20, 24) if name == "colour" else (1, 28, 28)), SMALL
    shape = tuple(split.x.shape[1:])
    edges = torch.tensor(bounds).T
    attack = Attack(Affine(eta, norm), steps=6, lr=eta / 3, restarts=2, keep="strongest")
    model = reader(shape, int(split.y.max()) + 1)
    result = attack(model, split)
    assert result.code.shape == (2, 12, 6)
    origin = torch.tensor(IDENTITY).expand(12, 6)
    for code, x, change, success in zip(result.code, result.x, result.change, result.success):
        check_box(code, origin, eta, norm, (edges[0], edges[1]))
        assert torch.equal(change, code - origin)
        assert torch.allclose(x, transform(split.x, code), atol=1e-6)
        assert np.abs(x[5].numpy() - moved(split.x[5], code[5].double())).max() < 2e-4
        with torch.no_grad():
            assert torch.equal(success, model(x).argmax(1) != split.y)
    if eta == 3.0 and norm == "linf":  # nothing but the ranges bounds this one
        assert (result.code == edges[0]).any()
        assert (result.code == edges[1]).any()


def test_affine_ranges_are_wider_for_fonts() -> None:
    hard, easy = (advnb.load(name).test(2) for name in ("fonts", "fonts-easy"))
    highs = [Affine(5.0).region(split).high[0] for split in (hard, easy, colour())]
    assert torch.allclose(highs[0], torch.tensor([0.2, 0.2, 0.5, 0.5, 1.15, math.pi / 2]))
    assert torch.allclose(highs[1], torch.tensor([0.1, 0.1, 0.2, 0.2, 1.1, math.pi / 6]))
    assert torch.allclose(highs[2], torch.tensor([high for _, high in SMALL]))


def test_affine_ranges_of_real_data(mnist: advnb.Dataset) -> None:
    region = Affine(5.0).region(mnist.test(3))
    assert torch.allclose(region.low[2], torch.tensor([low for low, _ in SMALL]))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 24)])
def test_the_identity_changes_nothing(shape: tuple[int, int, int]) -> None:
    split, same = colour(shape=shape), torch.tensor(IDENTITY).expand(12, 6)
    assert torch.allclose(Affine(ETA).decode(same, split), split.x, atol=1e-5)
    start = Affine(ETA).region(split).start("zero", generator(0))
    assert torch.equal(start, same)
    exact = split.with_x(split.x.double())
    assert torch.allclose(Affine(ETA).decode(UNIT.expand(12, 6), exact), exact.x, atol=1e-13)


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 8, 11)])
def test_gradient_of_a_moved_image(shape: tuple[int, int, int]) -> None:
    split = Split(uniform(2, *shape, low=0), torch.arange(2))
    code = (UNIT + 0.1 * uniform(2, 6, seed=3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: Affine(ETA).decode(z, split), code)


def test_moved_images_fool(fonts: advnb.Dataset, trained: nn.Module) -> None:
    split = fonts.test(60)
    result = Attack(Affine(ETA))(trained, split)
    less = Attack(Affine(0.03))(trained, split)
    assert result.success_rate().value > less.success_rate().value + 0.1
    assert torch.equal(Attack(Affine(ETA))(trained, split).code, result.code)


# --- the plane through nearby training images


def images(n: int, shape: tuple[int, int, int] = (1, 5, 6), seed: int = 0) -> Split:
    return Split(uniform(n, *shape, seed=seed, low=0).float(), torch.arange(n) % 3)


def plane(x: Tensor, original: Tensor, near: np.ndarray, centre: str) -> np.ndarray:
    """x [P] projected by NumPy's least squares; near [k, P]."""
    point, begin = x.double().flatten().numpy(), original.double().flatten().numpy()
    origin = begin if centre == "x" else near.mean(0)
    basis = (near - origin).T
    weights = np.linalg.lstsq(basis, point - origin, rcond=1e-8)[0]
    return origin + basis @ weights


def by_hand(x: Tensor, split: Split, train: Split, k: int, centre: str) -> np.ndarray:
    """Every image projected on the plane through its neighbours, [N, P]."""
    pixels = train.x.flatten(1).double().numpy()
    out = []
    for image, original in zip(x, split.x):
        away = ((pixels - image.double().flatten().numpy()) ** 2).sum(1)
        nearest = pixels[np.argsort(away, kind="stable")[:k]]
        out.append(plane(image, original, nearest, centre))
    return np.stack(out)


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("pca", [None, 3, 20])
def test_neighbours_are_scikit_learns(k: int, pca: int | None, fonts: advnb.Dataset) -> None:
    train, x = fonts.train(400), noisy(fonts.test(130), 0.1)
    near = NeighbourManifold(train, k, pca=pca).neighbours(x)
    assert near.shape == (130, k)
    assert all(len(set(row)) == k for row in near.tolist())
    keys, key = train.x.flatten(1).double().numpy(), x.flatten(1).double().numpy()
    if pca:
        components = PCA(pca, svd_solver="full").fit(keys)
        keys, key = components.transform(keys), components.transform(key)
    away, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(keys).kneighbors(key)
    ours = np.linalg.norm(keys[near.numpy()] - key[:, None], axis=2)
    assert np.allclose(ours, away, atol=1e-3)  # nearest first, whoever wins a tie
    assert np.allclose(np.sort(ours, 1), away, atol=1e-4)


@pytest.mark.parametrize("centre", ["x", "mean"])
@pytest.mark.parametrize("k", [1, 2, 7, 29, 30, 31, 60])
def test_projection_is_least_squares(centre: str, k: int) -> None:
    train, split = images(60), images(110, seed=1)
    x = noisy(split, 0.2)
    manifold = NeighbourManifold(train, k, centre=centre)
    expected = by_hand(x, split, train, k, centre)
    got = manifold.project(x, split)
    assert got.shape == x.shape
    assert got.dtype == x.dtype
    assert np.abs(got.flatten(1).numpy() - expected).max() <= 2e-5
    away = np.linalg.norm(x.flatten(1).double().numpy() - expected, axis=1)
    assert np.allclose(manifold.distance(x, split).numpy(), away, atol=2e-5)
    if k >= 31:  # more directions than pixels
        assert manifold.distance(x, split).max() <= 1e-5


@pytest.mark.parametrize("centre", ["x", "mean"])
@pytest.mark.parametrize("pca", [None, 4])
def test_residuals_are_orthogonal_to_the_plane(centre: str, pca: int | None) -> None:
    train, split = images(60), images(30, seed=1)
    x = noisy(split, 0.2)
    manifold = NeighbourManifold(train, 8, centre=centre, pca=pca)
    rest = (x - manifold.project(x, split)).flatten(1).double()
    near = train.x.flatten(1).double()[manifold.neighbours(x)]
    origin = split.x.flatten(1).double() if centre == "x" else near.mean(1)
    spread = near - origin[:, None]
    assert rest.norm(dim=1).min() > 0.1
    assert (spread @ rest[:, :, None]).abs().max() <= 1e-5
    assert (manifold.distance(x, split) <= (x.flatten(1) - origin).norm(dim=1) + 1e-6).all()


@pytest.mark.parametrize("centre", ["x", "mean"])
def test_a_second_projection_changes_nothing(centre: str) -> None:
    train, split = images(9), images(30, seed=1)
    manifold = NeighbourManifold(train, 9, centre=centre)  # the same neighbours for every image
    once = manifold.project(noisy(split, 0.2), split)
    assert torch.allclose(manifold.project(once, split), once, atol=1e-6)
    assert manifold.distance(once, split).max() <= 1e-5


@pytest.mark.parametrize("centre", ["x", "mean"])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_training_images_and_copies_of_them(centre: str, k: int) -> None:
    some = images(12)
    copies = Split(some.x.repeat(4, 1, 1, 1), some.y.repeat(4))  # each image four times
    manifold = NeighbourManifold(copies, k, centre=centre)
    same = manifold.distance(some.x, some)
    assert not same.isnan().any()
    if k <= 4:
        assert same.max() <= 1e-6
    x = noisy(some, 0.05)
    near = copies.x.flatten(1).double().numpy()[manifold.neighbours(x).numpy()]
    expected = np.stack([plane(a, b, c, centre) for a, b, c in zip(x, some.x, near)])
    got = manifold.project(x, some).flatten(1).numpy()
    assert np.abs(got - expected).max() <= 2e-5
    if k <= 4:  # all neighbours are the image itself: a plane of no dimension
        assert np.abs(got - some.x.flatten(1).numpy()).max() <= 1e-6


@settings(max_examples=80)
@given(
    centre=st.sampled_from(["x", "mean"]),
    k=st.integers(1, 20),
    power=st.floats(-5, -0.3),
    seed=st.integers(0, 10_000),
    double=st.booleans(),
)
def test_unit_distances_are_sines(
    centre: str, k: int, power: float, seed: int, double: bool
) -> None:
    train, split = images(20, seed=seed), images(6, seed=seed + 1)
    if double:
        split = split.with_x(split.x.double())
    x = (split.x + 10**power * uniform(*split.x.shape, seed=seed + 2)).clamp(0, 1).to(split.x)
    manifold = NeighbourManifold(train, k, centre=centre)
    unit = manifold.distance(x, split, unit=True)
    assert unit.min() >= 0
    assert unit.max() <= 1 + 1e-6
    near = train.x.flatten(1).double()[manifold.neighbours(x)]
    origin = split.x.flatten(1).double() if centre == "x" else near.mean(1)
    whole = (x.flatten(1).double() - origin).norm(dim=1)
    assert torch.allclose(unit * whole, manifold.distance(x, split).double(), atol=1e-6)


def test_neighbour_manifolds_that_cannot_be() -> None:
    train = images(20)
    for k in (21, 1000):
        with refused("k must be at most the 20 training images"):
            NeighbourManifold(train, k)
    for k in (0, -1, 2.5, "5", None, True):
        with refused("k must be a whole number >= 1"):
            NeighbourManifold(train, k)
    for centre in ("median", "X", None, 0):
        with refused("centre must be"):
            NeighbourManifold(train, 5, centre=centre)
    with refused("at most 19 components"):
        NeighbourManifold(train, 5, pca=31)
    for pca in (0, -1, 2.5, "40"):
        with refused("pca must be a whole number >= 1"):
            NeighbourManifold(train, 5, pca=pca)
    for other in (train.x, None, 5, advnb.load("fonts")):
        with refused("train must be a Split"):
            NeighbourManifold(other, 5)


def test_images_that_do_not_fit() -> None:
    manifold, split = NeighbourManifold(images(20), 5), images(6, seed=1)
    for x in (split.x[:, 0], torch.rand(6, 1, 5, 5), torch.rand(6, 3, 5, 6), split.x[0]):
        with refused("x must be"):
            manifold.neighbours(x)
        with refused("x must be"):
            manifold.project(x, split)
    with refused(r"x must be \[6, 1, 5, 6\]"):
        manifold.project(split.x[:3], split)


@pytest.mark.filterwarnings("error")
def test_attribution_finds_the_face_and_without_it_another(fonts: advnb.Dataset) -> None:
    split = fonts.test(5)
    free = attribute(split.x, split)
    assert torch.equal(free.letter, split.y)
    assert free.distance.shape == (5, 10)
    own = free.distance.gather(1, split.y[:, None])[:, 0]
    assert own.max() <= 1e-3
    met = split.dataset.manifold.glyphs(free.face, split.y, like=split.x)
    mine = split.dataset.manifold.glyphs(split.font, split.y, like=split.x)
    assert (met - mine).abs().max() <= 0.02  # its own face, or one with the same letter
    other = attribute(split.x, split, without=split.font)
    assert (other.face != split.font).all()
    images = fonts.manifold.decode(  # the distance is that of an image that is there
        fonts.manifold.nearest(split.x, again(split, other.face, other.letter)),
        again(split, other.face, other.letter),
    )
    there = (images - split.x).flatten(1).norm(dim=1)
    assert (there <= other.distance.min(1).values + 0.05).float().mean() >= 0.7


def again(split: Split, face: torch.Tensor, letter: torch.Tensor) -> Split:
    """The same codes with other glyphs."""
    return Split(split.x, letter, z=split.z, font=face, dataset=split.dataset)


def test_attribution_needs_letters(fonts: advnb.Dataset) -> None:
    with refused("only FONTS .* load a 'fonts' data set"):
        attribute(images(2).x, images(2))
    split = fonts.test(3)
    with refused("without must be a face an image"):
        attribute(split.x, split, without=split.font[:2])


def test_attribution_tells_whose_image_is_nearest(fonts: advnb.Dataset) -> None:
    split = fonts.test(2)
    x = noisy(split, 0.2)
    found = attribute(x, split, without=split.font)
    assert (found.faces != split.font[:, None]).all()
    assert torch.equal(found.letter, found.distance.argmin(1))
    assert torch.equal(found.face, found.faces.gather(1, found.letter[:, None])[:, 0])
    low, high = fonts.manifold.bounds
    assert found.code.shape == (2, 10, 6)
    assert ((low <= found.code) & (found.code <= high)).all()
    glyphs = torch.from_numpy(np.load(advnb.fonts.ATLAS)["glyphs"])
    for row, letter in np.ndindex(2, 10):
        glyph = glyphs[found.faces[row, letter], letter][None] / 255
        away = np.linalg.norm(moved(glyph, found.code[row, letter].double()) - x[row].numpy())
        assert away == pytest.approx(found.distance[row, letter].item(), abs=1e-3)


@pytest.fixture(scope="module")
def triangle(fonts: advnb.Dataset) -> tuple[Split, Tensor, Tensor]:
    """An image, a regular example of it, and another letter of another face in its pose."""
    one, model = fonts.test(20)[3], zoo.load("fonts-cnn-normal")
    other = fonts.manifold.glyphs(torch.tensor([10]), torch.tensor([0]), like=one.x)
    return one, Attack(Pixels(0.3))(model, one).x[0], transform(other, one.z)


def in_the_plane(triangle: tuple, a: float, b: float) -> np.ndarray:
    """The image at (a, b): Gram and Schmidt's axes, in double precision."""
    one, first, second = (getattr(t, "x", t).double().numpy().ravel() for t in triangle)
    (q, r) = np.linalg.qr(np.stack([first - one, second - one], 1))
    across, up = (q * np.sign(np.diag(r))).T
    return (one + a * across + b * up).clip(0, 1).reshape(1, 28, 28)


@pytest.fixture(scope="module")
def seen(triangle: tuple) -> advnb.attribution.Slice:
    return advnb.attribution.plane(zoo.load("fonts-cnn-normal"), *triangle, cells=3)


def test_a_plane_has_the_three_images_where_they_lie(triangle: tuple, seen: object) -> None:
    one, first, second = triangle
    for place, x in zip(seen.marks.tolist(), (one.x, first, second)):
        assert np.abs(in_the_plane(triangle, *place) - x[0].numpy()).max() < 1e-4
    lengths = [(x - one.x).norm().item() for x in (first, second)]
    assert seen.marks.norm(dim=1).tolist() == pytest.approx([0, *lengths], rel=1e-4)
    assert torch.dist(*seen.marks[1:]).item() == pytest.approx(torch.dist(first, second).item())
    assert seen.ticks.shape == (2, 3)
    for row, marks in zip(seen.ticks.double().numpy(), seen.marks.double().T.numpy()):
        room = (marks.max() - marks.min()) / 4
        expected = np.linspace(marks.min() - room, marks.max() + room, 3)
        assert row == pytest.approx(expected, abs=1e-4)


def test_a_plane_is_what_model_and_letters_say(triangle: tuple, seen: object) -> None:
    one, model = triangle[0], zoo.load("fonts-cnn-normal").double()
    places = [(a, b) for b in seen.ticks[1].tolist() for a in seen.ticks[0].tolist()]
    images = torch.from_numpy(np.stack([in_the_plane(triangle, *place) for place in places]))
    with torch.no_grad():
        assert seen.guess.flatten().tolist() == model(images).argmax(1).tolist()
    many = one[torch.zeros(9, dtype=torch.int64)]
    found = attribute(images.float(), many, without=many.font)
    best = found.distance.sort(1).values
    # a search from other images' letters may end elsewhere, and letters may be as near
    clear = best[:, 1] - best[:, 0] > 0.1 * best[:, 0]
    same = seen.letter.flatten() == found.letter
    assert clear.sum() >= 5
    assert set(found.letter[clear].tolist()) == {0, one.y.item()}
    assert same[clear].all()
    for mark in seen.marks:
        near = (images - torch.from_numpy(in_the_plane(triangle, *mark.tolist()))).flatten(1)
        cell = near.norm(dim=1).argmin()
        assert same[cell] or not clear[cell]
    assert seen.guess.shape == seen.letter.shape == (3, 3)
    assert seen.guess.dtype == seen.letter.dtype == torch.int64


def test_no_plane(triangle: tuple, fonts: advnb.Dataset) -> None:
    one, first, second = triangle
    model = advnb.models.CNN(0).eval()
    for a, b in ((second, second), (one.x, second), (second, one.x), (first, first)):
        with refused("on a line: give others"):
            advnb.attribution.plane(model, one, a, b, cells=2)
    both, none = fonts.test(2), Split(one.x, one.y)
    for split, a, b in (
        (both, both.x, both.x), (one, first[0], second), (one, first, second[..., :27]),
        (one, both.x, second), (none, first, second),
    ):  # fmt: skip
        with refused("plane needs a split of one FONTS image, and two images made from it"):
            advnb.attribution.plane(model, split, a, b, cells=2)
    for cells in (1, 0, 2.5, None):
        with refused("cells must be a whole number >= 2"):
            advnb.attribution.plane(model, one, first, second, cells=cells)


def test_no_plane_through_a_line_of_images(fonts: advnb.Dataset) -> None:
    model, split = advnb.models.CNN(0).eval(), fonts.test(20)
    for row in range(19):
        one, end = split[row], split[row + 1].x
        for share in (0.25, 0.5, 0.9):
            with refused("on a line: give others"):
                advnb.attribution.plane(model, one, one.x.lerp(end, share), end, cells=2)


def look_of(labels: Tensor, **changed: object) -> plots.Picture:
    """Regions over a plane from -1 to 3 and from 0 to 2."""
    n, m = labels.shape
    given = {
        "looks": {"one": labels, "other": labels.flip(0)},
        "ticks": torch.stack([torch.linspace(-1, 3, m), torch.linspace(0, 2, n)]),
        "marks": {"here": torch.tensor([0.0, 1.0]), "there": torch.tensor([2.0, 0.5])},
        "classes": "ABCDEFGHIJ",
        "alt": "Two looks.",
    }
    return plots.regions(**(given | changed))


def test_regions_are_named_once_each() -> None:
    labels = torch.full((9, 9), 2)
    labels[2:7, 2:7] = 0  # inside of the other, which has its middle here
    labels[8, 8] = 9
    picture = look_of(labels)
    assert picture.alt == "Two looks."
    assert repr(picture) == "Picture: Two looks."
    assert picture.png().startswith(b"\x89PNG")
    assert [axes.get_title() for axes in picture.axes] == ["one", "other"]
    for axes, shown in zip(picture.axes, (labels, labels.flip(0))):
        texts = {text.get_text(): text.get_position() for text in axes.texts}
        assert sorted(texts) == ["A", "C", "J"]
        assert len(axes.texts) == 3
        for name, (a, b) in texts.items():  # each in a cell of its own region
            column, row = round((a + 1) / 0.5), round(b / 0.25)
            assert "ABCDEFGHIJ"[shown[row, column]] == name
        assert texts["A"] == (1, 1)  # its middle
        (image,) = axes.images
        colours = image.get_array()
        assert image.origin == "lower"
        for label in (0, 2, 9):
            assert np.allclose(colours[shown.numpy() == label], plots.PASTEL[label])


def test_regions_have_their_marks() -> None:
    picture = look_of(torch.zeros(4, 4, dtype=torch.int64))
    for axes in picture.axes:
        marks = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        assert marks == {"here": [[0, 1]], "there": [[2, 0.5]]}
        assert len({line.get_marker() for line in axes.lines}) == 2
    (legend,) = picture.legends
    assert [text.get_text() for text in legend.get_texts()] == ["here", "there"]


def test_regions_are_drawn_where_their_ticks_are() -> None:
    picture = look_of(torch.arange(9).view(3, 3))
    left, right, bottom, top = picture.axes[0].images[0].get_extent()
    assert np.allclose(np.linspace(left, right, 7)[1::2], [-1, 1, 3])
    assert np.allclose(np.linspace(bottom, top, 7)[1::2], [0, 1, 2])


def test_regions_have_all_their_marks() -> None:
    marks = {name: torch.zeros(2) for name in "abcde"}
    picture = look_of(torch.zeros(4, 4, dtype=torch.int64), marks=marks)
    assert len(picture.axes[0].lines) == 5


def test_names_of_regions_stand_beside_the_marks() -> None:
    labels = torch.zeros(41, 41, dtype=torch.int64)
    labels[3, 4] = 1  # no room there
    ticks = torch.linspace(-2, 2, 41).repeat(2, 1)
    marks = {"middle": torch.zeros(2), "small": torch.stack([ticks[0][4], ticks[1][3]])}
    texts = look_of(labels, ticks=ticks, marks=marks).axes[0].texts
    places = {text.get_text(): torch.tensor(text.get_position()) for text in texts}
    assert 0.07 <= places["A"].norm() / 4.1 < 0.1
    assert torch.allclose(places["B"], marks["small"])


def test_colours_of_classes_differ_and_can_be_written_on() -> None:
    assert len(set(plots.PASTEL)) == 10
    rows = torch.tensor(plots.PASTEL)
    assert torch.pdist(rows).min() > 0.07
    grey = torch.tensor([0x44 / 255] * 3)

    def light(colour: Tensor) -> Tensor:  # WCAG's relative luminance
        linear = torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return linear @ torch.tensor([0.2126, 0.7152, 0.0722])

    assert ((light(rows) + 0.05) / (light(grey) + 0.05)).min() >= 4.5


def test_principal_components_of_next_to_nothing() -> None:
    with refused("at most 0 components"):
        NeighbourManifold(images(1), 1, pca=1)
    line = images(5, (1, 1, 1))
    pixel = NeighbourManifold(line, 1, pca=1)
    assert pixel.neighbours(line.x).flatten().tolist() == list(range(5))


# --- real data


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_regular_examples_leave_the_manifold(name: str, request: pytest.FixtureRequest) -> None:
    data = request.getfixturevalue(name)
    train, split = data.train(10_000), data.test(100)
    result = Attack(Pixels(0.3))(zoo.load(f"{name}-cnn-normal"), split)
    x, hits = result.x[0], result.success[0] & result.correct
    assert hits.sum() > 80
    away = NeighbourManifold(train, 50).distance(x, split, unit=True)
    assert away[hits].median() >= (0.85 if name == "mnist" else 0.7)
    mean = NeighbourManifold(train, 50, centre="mean")
    assert mean.distance(split.x, split).median() < mean.distance(x, split)[hits].median()
    few = slice(0, 5)
    expected = by_hand(x[few], split[few], train, 50, "mean")
    got = mean.project(x[few], split[few]).flatten(1).numpy()
    assert np.abs(got - expected).max() <= 1e-4
