"""Learned manifolds: flows and autoencoders against autograd, the losses written out again, codes
and projections against SciPy, training against itself after a stop, letters against brute force."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import least_squares
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.distributions import Laplace, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

import advnb
from advnb import (
    Attack,
    Dataset,
    OnManifold,
    Pixels,
    Split,
    checkpoints,
    learned,
    quality,
    vaegan,
)
from advnb.__main__ import main
from advnb.attribution import _centred, _middle, _poses, to_letter
from advnb.autoencoders import LATENTS, Autoencoder, Discriminator, Flow
from advnb.decoders import Decoders
from advnb.files import DamagedFileError, load_tensors, save_tensors
from advnb.fonts import LATENTS as LATENTS_OF_FONTS
from advnb.fonts import RANGES
from advnb.learned import KINDS, SHIPPED, LearnedManifold
from advnb.projection import Found, Linearise
from advnb.stats import generator
from advnb.vaegan import Settings, train

from .conftest import real, refused

SHAPE = (1, 12, 16)
ETA = 0.2


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def images(n: int, shape: tuple[int, int, int] = SHAPE, *, seed: int = 0) -> Split:
    """Noise in three classes."""
    stream = generator(seed)
    x = torch.rand(n, *shape, generator=stream)
    return Split(x, torch.randint(3, (n,), generator=stream))


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights under which every number of a code shows, and statistics that are not 0 and 1."""
    for number, (name, tensor) in enumerate([*module.named_parameters(), *module.named_buffers()]):
        stream = generator(seed, number)
        if tensor.ndim > 1:
            turned = name.startswith("decoder") and tensor.ndim == 4  # four places meet in a pixel
            inputs = tensor[:, 0].numel() / 4 if turned else tensor[0].numel()
            gain = 0.5 if name.startswith("flow") else 1.4
            tensor.data.normal_(0, gain / math.sqrt(inputs), generator=stream)
        elif name.endswith("var"):
            tensor.data.uniform_(0.5, 2, generator=stream)
        elif tensor.is_floating_point():
            tensor.data.normal_(0.1, 0.1, generator=stream)
    return module


def made(*, shared: bool = False, seed: int = 0) -> LearnedManifold:
    """Untrained models with random weights, and bounds that hold the codes of any image."""
    form = {"width": 3, "kernel": 4, "couplings": 2}
    nets = [
        lively(Autoencoder(shape=SHAPE, normalised=False, **form), 100 * seed + k)
        for k in range(1 if shared else 3)
    ]
    edge = torch.full((LATENTS,), 9.0)
    about = {"kind": "flow", "title": "made", "classes": 3, "shape": list(SHAPE),
             "shared": shared, "networks": len(nets), **form}  # fmt: skip
    return LearnedManifold(nets, -edge, edge, about)


def in_double(split: Split) -> Split:
    return split.with_x(split.x.double())


def same_models(a: LearnedManifold, b: LearnedManifold) -> bool:
    pairs = zip(a._on(a.low), b._on(b.low))
    states = [(left.state_dict(), right.state_dict()) for left, right in pairs]
    return all(torch.equal(left[k], right[k]) for left, right in states for k in left)


# --- the flow


def random_flow(d: int, layers: int, seed: int) -> Flow:
    flow = Flow(d, layers).double()
    for number, parameter in enumerate(flow.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=generator(seed, number))
    return flow


@settings(max_examples=40)
@given(d=st.integers(2, 11), layers=st.integers(0, 8), seed=st.integers(0, 10_000))
def test_a_flow_there_and_back(d: int, layers: int, seed: int) -> None:
    flow, u = random_flow(d, layers, seed), normal(4, d, seed=seed)
    z, volume = flow(u)
    assert torch.allclose(flow.inverse(z), u, atol=1e-9)
    assert torch.allclose(flow(flow.inverse(u))[0], u, atol=1e-9)
    for row, expected in zip(u, volume):
        slopes = jacobian(lambda one: flow(one[None])[0][0], row)
        assert torch.allclose(torch.linalg.slogdet(slopes)[1], expected, atol=1e-9)


def test_a_flow_without_layers_is_the_identity() -> None:
    u = normal(5, 10)
    z, volume = Flow(10, 0)(u)
    assert torch.equal(z, u)
    assert torch.equal(Flow(10, 0).inverse(u), u)
    assert not volume.any()


@pytest.mark.parametrize("couplings", [1, 2, 8])
def test_a_new_flow_moves_nothing_but_the_order(couplings: int) -> None:
    flow = Autoencoder(shape=SHAPE, width=2, couplings=couplings).flow.double()
    u = normal(5, 10)
    z, volume = flow(u)
    assert torch.equal(z.sort(1).values, u.sort(1).values)
    assert torch.equal(flow.inverse(z), u)
    assert not volume.any()


# --- the networks


def test_the_papers_autoencoder_has_its_size() -> None:
    model = Autoencoder()  # S: width 64, decoder of kernel 6
    sides: list[tuple[int, ...]] = []
    for layer in model.decoder:
        if isinstance(layer, nn.ConvTranspose2d):
            assert layer.kernel_size == (6, 6)
            layer.register_forward_hook(
                lambda _, before, after: sides.append((before[0].shape[-1], after.shape[-1]))
            )
    model.eval().decode(torch.zeros(2, 10))
    assert sides == [(3, 7), (7, 14), (14, 28)]


def count(width: int, kernel: int, couplings: int = 0) -> int:
    """Numbers in an autoencoder of 28 x 28 grey images, layer by layer."""
    a, b, c, flat = width, 2 * width, 4 * width, 4 * width * 9
    encoder = (16 + 1) * a + (16 * a + 1) * b + (16 * b + 1) * c + 2 * (a + b + c)
    heads = 2 * (flat * 10 + 10)
    area = kernel**2
    decoder = 11 * flat + (area * c + 1) * b + (area * b + 1) * a + (area * a + 1) + 2 * (a + b)
    flow = couplings * ((5 + 1) * 32 + (32 + 1) * 10)
    return encoder + heads + decoder + flow


@pytest.mark.parametrize(("width", "kernel", "couplings"), [(64, 6, 0), (16, 4, 0), (16, 4, 8)])
def test_sizes_in_closed_form(width: int, kernel: int, couplings: int) -> None:
    model = Autoencoder(width=width, kernel=kernel, couplings=couplings)
    assert sum(p.numel() for p in model.parameters()) == count(width, kernel, couplings)
    bare = Autoencoder(width=width, kernel=kernel, couplings=couplings, normalised=False)
    less = sum(p.numel() for m in model.modules() if isinstance(m, nn.BatchNorm2d)
               for p in m.parameters())  # fmt: skip
    assert sum(p.numel() for p in bare.parameters()) == count(width, kernel, couplings) - less


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 56, 48), (2, 9, 15), (1, 8, 8)])
@pytest.mark.parametrize("kernel", [4, 6])
def test_images_come_back_in_their_shape(shape: tuple[int, int, int], kernel: int) -> None:
    model = lively(Autoencoder(shape=shape, width=3, kernel=kernel, couplings=2)).eval()
    x = images(4, shape).x
    z = model.encode(x)
    y = model.decode(z)
    assert z.shape == (4, 10)
    assert [part.shape for part in model.posterior(x)] == [z.shape, z.shape]
    assert y.shape == x.shape
    assert 0 <= y.min() < y.max() <= 1
    critic = Discriminator(0, shape=shape, width=3, kernel=kernel).eval()
    assert critic(x).shape == (4, 1)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 56, 48), (2, 9, 15), (1, 8, 8)])
@pytest.mark.parametrize("kernel", [4, 6, 8])
@pytest.mark.parametrize("couplings", [0, 1, 7])
def test_quick_decoders_of_every_form(
    shape: tuple[int, int, int], kernel: int, couplings: int
) -> None:
    form: dict = {"shape": shape, "width": 2, "kernel": kernel, "couplings": couplings}
    nets = [lively(Autoencoder(normalised=False, **form), k).double() for k in range(2)]
    z = normal(3, 2, LATENTS)
    expected = torch.stack([net.decode(z[:, k]) for k, net in enumerate(nets)], 1)
    assert torch.allclose(Decoders(nets)(z), expected, rtol=0, atol=1e-12)
    assert torch.allclose(Decoders(nets[1:]).alone(z[:, 1]), expected[:, 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("couplings", [0, 3])
def test_folded_is_the_same_network(couplings: int) -> None:
    model = lively(Autoencoder(shape=(2, 13, 10), width=4, couplings=couplings)).eval()
    before = copy.deepcopy(model.state_dict())
    folded, x, z = model.folded(), images(6, (2, 13, 10)).x, normal(6, 10).float()
    with torch.no_grad():
        assert (folded.encode(x) - model.encode(x)).abs().max() <= 1e-5
        assert (folded.decode(z) - model.decode(z)).abs().max() <= 1e-5
        for ours, theirs in zip(folded.posterior(x), model.posterior(x)):
            assert (ours - theirs).abs().max() <= 1e-5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    bare = Autoencoder(shape=(2, 13, 10), width=4, couplings=couplings, normalised=False)
    assert bare.state_dict().keys() == folded.state_dict().keys()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


MAKERS: dict[str, Callable[[int], nn.Module]] = {
    "autoencoder": lambda seed: Autoencoder(seed, shape=SHAPE, width=4, couplings=2),
    "discriminator": lambda seed: Discriminator(seed, shape=SHAPE, width=4, kernel=4),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_weights_come_from_the_seed_alone(kind: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = MAKERS[kind](5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = MAKERS[kind](5).state_dict(), MAKERS[kind](6).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    drawn = [k for k, v in first.items() if v.ndim > 1 and v.any()]
    assert not any(torch.equal(first[k], other[k]) for k in drawn)
    assert all(v.isfinite().all() for v in first.values())


def test_weights_are_drawn_as_in_the_papers_code() -> None:
    state = Autoencoder(3).state_dict()
    for name, fan in (("body.3", None), ("decoder.5", None), ("mean", 2304), ("spread", 2304)):
        expected = 1e-3 if fan is None else math.sqrt(2 / 3 / fan)
        assert state[f"{name}.weight"].std() == pytest.approx(expected, rel=0.05)
        assert not state[f"{name}.bias"].any()


# --- the losses


def a_run(kind: str, beta: float = 2.5) -> tuple[vaegan._Run, Tensor, Tensor]:
    """A training about to begin, in double precision, with a batch and its noise."""
    data = advnb.load("fonts")
    part = data.train(200)[::10]
    run = vaegan._Run(part, Settings(kind, width=3, beta=beta), 0, None)
    for module in (run.model, run.critic):
        lively(module, 3).double().train()
    return run, part.x.double(), normal(len(part), 10, seed=4)


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    names = [name for name, _ in model.named_parameters()]
    return {name: grad for name, grad in zip(names, found) if grad is not None}


def compared(run: vaegan._Run, got: list, expected: dict[str, dict[str, Tensor]]) -> None:
    """Every parameter's gradient is the expected one, and none is left out."""
    names = {id(p): name for m in (run.model, run.critic) for name, p in m.named_parameters()}
    assert set(run.groups) == set(expected)
    largest = max(part.abs().max().item() for parts in got for part in parts)
    for (group, parameters), parts in zip(run.groups.items(), got):
        assert {names[id(p)] for p in parameters} == set(expected[group])
        for parameter, part in zip(parameters, parts):
            wanted = expected[group][names[id(parameter)]]
            assert torch.allclose(part, wanted, rtol=1e-9, atol=1e-11 * largest)


def split_names(found: dict[str, Tensor], decoder: bool) -> dict[str, Tensor]:
    return {k: v for k, v in found.items() if k.startswith(("decoder", "flow")) == decoder}


def test_three_losses_of_a_vaegan() -> None:
    run, x, noise = a_run("vaegan")

    def passed() -> tuple[nn.Module, nn.Module, Normal, Tensor]:
        model, critic = copy.deepcopy(run.model), copy.deepcopy(run.critic)
        mean, spread = model.posterior(x)
        posterior = Normal(mean, spread.exp().sqrt())
        return model, critic, posterior, model.decoder(mean + posterior.stddev * noise)

    expected = {}
    for who in ("encoder", "decoder"):
        model, critic, posterior, y = passed()
        fake = critic(y)
        loss = 2.5 * (y - x).abs().sum() + bce(fake, torch.ones_like(fake), reduction="sum")
        if who == "encoder":
            zero = torch.zeros((), dtype=torch.float64)
            loss = loss + kl_divergence(posterior, Normal(zero, zero + 1)).sum()
        expected[who] = split_names(gradients(loss, model), who == "decoder")
    _, critic, _, y = passed()
    fake, real = critic(y.detach()), critic(x)
    loss = bce(real, torch.ones_like(real), reduction="sum") + bce(
        fake, torch.zeros_like(fake), reduction="sum"
    )
    expected["critic"] = gradients(loss, critic)
    compared(run, run.gradients(x, noise), expected)


def test_the_loss_of_a_flow_is_its_bound() -> None:
    run, x, noise = a_run("flow")
    model = copy.deepcopy(run.model)
    mean, spread = model.posterior(x)
    posterior = Normal(mean, spread.exp().sqrt())
    u = mean + posterior.stddev * noise
    z, volume = model.flow(u)
    y = model.decoder(u)
    scale = (y - x).abs().mean().detach()  # the most likely one: there its slope is 0
    zero = torch.zeros((), dtype=torch.float64)
    likely = Laplace(y, scale).log_prob(x).flatten(1).sum(1)
    prior = Normal(zero, zero + 1).log_prob(z).sum(1) + volume
    loss = -(likely + prior - posterior.log_prob(u).sum(1)).mean()
    found = gradients(loss, model)
    expected = {"encoder": split_names(found, False), "decoder": split_names(found, True)}
    compared(run, run.gradients(x, noise), expected)


# --- codes and images


@pytest.mark.parametrize("shared", [False, True])
def test_every_row_is_decoded_by_its_class(shared: bool) -> None:
    manifold, split, z = made(shared=shared), images(11), normal(11, 10).float()
    nets = manifold._on(z)
    together, codes = manifold.decode(z, split), manifold.encode(split)
    order = torch.randperm(11, generator=generator(5))
    assert torch.allclose(manifold.decode(z[order], split[order]), together[order], atol=1e-6)
    assert torch.allclose(manifold.encode(split[order]), codes[order], atol=1e-5)
    for i in range(11):
        net = nets[0 if shared else int(split.y[i])]
        with torch.no_grad():
            assert torch.allclose(together[i : i + 1], net.decode(z[i : i + 1]), atol=1e-6)
            assert torch.allclose(codes[i : i + 1], net.encode(split.x[i : i + 1]), atol=1e-5)
        alone = manifold.decode(z[i : i + 1], split[i])
        assert torch.allclose(alone, together[i : i + 1], atol=1e-6)
    other = Split(split.x, (split.y + 1) % 3)
    assert torch.equal(manifold.decode(z, other), together) == shared
    assert torch.equal(manifold.encode(other), codes) == shared
    assert manifold.shared == shared
    assert manifold.low.dtype == torch.float32


@pytest.mark.parametrize("couplings", [0, 2])
@pytest.mark.parametrize("way", ["side by side", "class after class", "recorded"])
@pytest.mark.parametrize("labels", [[0, 1, 2] * 3, [2, 0, 2, 2, 2, 1], [1] * 5], ids=str)
def test_every_way_to_decode_is_the_networks_own(
    way: str, labels: list[int], couplings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    form: dict = {"shape": SHAPE, "width": 3, "kernel": 4, "couplings": couplings}
    nets = [lively(Autoencoder(normalised=False, **form), k) for k in range(3)]
    edge = torch.full((LATENTS,), 9.0)
    about = {"kind": "flow", "title": "made", "classes": 3, "shape": list(SHAPE), "shared": False}
    manifold = LearnedManifold(nets, -edge, edge, about)
    monkeypatch.setattr(learned, "watched", lambda: way != "recorded")
    monkeypatch.setattr(learned, "FEW", 0 if way == "class after class" else 500)
    y, z = torch.tensor(labels), normal(len(labels), LATENTS).requires_grad_()
    weights = normal(len(labels), *SHAPE, seed=1)
    images = manifold.decode(z, Split(weights.clamp(0, 1), y))
    (slope,) = torch.autograd.grad((images * weights).sum(), z)
    for i, label in enumerate(labels):
        code = z[i : i + 1].detach().requires_grad_()
        image = copy.deepcopy(nets[label]).double().decode(code)
        (expected,) = torch.autograd.grad((image * weights[i]).sum(), code)
        assert torch.allclose(images[i : i + 1], image, rtol=0, atol=1e-12)
        assert torch.allclose(slope[i : i + 1], expected, rtol=0, atol=1e-11)


def test_in_double_precision() -> None:
    manifold, split = made(), images(9)
    exact = manifold.encode(in_double(split))
    assert exact.dtype == torch.float64
    assert torch.allclose(exact.float(), manifold.encode(split), atol=1e-4)
    image = manifold.decode(exact, split)
    assert image.dtype == torch.float64
    assert torch.allclose(image.float(), manifold.decode(exact.float(), split), atol=1e-5)
    assert manifold.reconstruct(in_double(split)).x.dtype == torch.float64


def test_saved_and_read(tmp_path: Path) -> None:
    manifold, split, z = made(), images(9), normal(9, 10).float()
    manifold.about["measured"] = {"some": [1, "two"]}
    read = LearnedManifold.read(manifold.save(tmp_path / "m.safetensors"))
    assert read.about == manifold.about
    assert torch.equal(torch.stack(read.bounds), torch.stack(manifold.bounds))
    assert torch.allclose(read.encode(split), manifold.encode(split), atol=0.02)
    assert torch.allclose(read.decode(z, split), manifold.decode(z, split), atol=0.01)
    for ours, theirs in zip(read._on(z), manifold._on(z)):
        mine = theirs.state_dict()
        for name, tensor in ours.state_dict().items():
            if not name.startswith("spread"):
                assert torch.equal(tensor, mine[name].half().float())
    assert not any(p.requires_grad for net in read._on(z) for p in net.parameters())
    again = LearnedManifold.read(read.save(tmp_path / "n.safetensors"))
    assert torch.equal(again.decode(z, split), read.decode(z, split))


@pytest.mark.parametrize(
    "damage",
    ["cut off", "changed", "words", "classifier", "missing", "odd", *sorted(learned.ABOUT)],
)
def test_files_that_hold_no_manifold(damage: str, tmp_path: Path) -> None:
    path = made().save(tmp_path / "m.safetensors")
    good, (tensors, about) = path.read_bytes(), load_tensors(path)
    if damage == "cut off":
        path.write_bytes(good[:-9])
    elif damage == "changed":
        path.write_bytes(good[:-7] + bytes([good[-7] ^ 1]) + good[-6:])
    elif damage == "words":
        path.write_text("notes")
    elif damage == "classifier":
        save_tensors(path, advnb.models.CNN(0).state_dict())
    elif damage == "missing":
        del tensors["decoder.0.bias"]
        save_tensors(path, tensors, **about)
    elif damage in about:
        save_tensors(path, tensors, **{k: v for k, v in about.items() if k != damage})
    else:
        save_tensors(path, {**tensors, "more": torch.zeros(3, 1)}, **about)
    with refused(r"m\.safetensors .*(delete it|train it again)", DamagedFileError):
        LearnedManifold.read(path)
    with refused("no such file", FileNotFoundError):
        LearnedManifold.read(tmp_path / "none")


def test_bounds_and_limits() -> None:
    manifold, split = made(), images(5)
    low, high = manifold.within(1.5).bounds
    assert torch.equal(low, torch.full((10,), -1.5))
    assert torch.equal(high, -low)
    assert manifold.bounds[1].max() == 9.0  # the other one stays what it was
    z = normal(5, 10).float().clamp(-1, 1)
    assert torch.equal(manifold.within(1.5).decode(z, split), manifold.decode(z, split))
    for limit in (0, -1, math.nan, math.inf, "2", None):
        with refused("limit must be a positive number"):
            manifold.within(limit)


def test_a_limit_of_a_whole_number(tmp_path: Path) -> None:
    manifold = made().within(2)
    assert manifold.low.dtype == torch.float32
    assert LearnedManifold.read(manifold.save(tmp_path / "m")).high.tolist() == [2.0] * 10


def test_codes_a_little_outside_are_decoded_and_far_ones_are_not() -> None:
    manifold, split = made().within(1.0), images(4)  # what `made` allows, 9, and a width of that
    assert manifold.decode(torch.full((4, 10), 26.9), split).isfinite().all()
    for far in (27.1, -27.1, math.nan, math.inf):
        z = torch.zeros(4, 10)
        z[2, 7] = far
        with refused("far outside the manifold's bounds"):
            manifold.decode(z, split)
    for z in (torch.zeros(4, 9), torch.zeros(3, 10), torch.zeros(10)):
        with refused(r"z must be floats \[4, 10\]"):
            manifold.decode(z, split)


class Plain(nn.Module):
    """Codes as images of ten pixels."""

    def encode(self, x: Tensor) -> Tensor:
        return torch.logit(x.flatten(1))


def plain() -> LearnedManifold:
    about = {"kind": "flow", "title": "plain", "classes": 4, "shape": [1, 2, 5], "shared": True}
    made = LearnedManifold([Plain()], -torch.full((10,), 9.0), torch.full((10,), 9.0), about)
    made._decode = lambda z, y: torch.sigmoid(z).view(-1, 1, 2, 5)
    return made


@pytest.mark.parametrize("limit", [0.5, 2.0, 3.0])
def test_samples_are_a_truncated_normal(limit: float) -> None:
    manifold, labels = plain(), torch.arange(2000) % 4
    sample = manifold.sample(labels, seed=3, limit=limit)
    z = manifold.encode(sample).flatten().double().numpy()
    assert np.abs(z).max() <= limit + 1e-4
    assert stats.kstest(z, stats.truncnorm(-limit, limit).cdf).pvalue > 1e-3
    assert torch.equal(sample.y, labels)
    assert torch.equal(manifold.sample(labels, seed=3, limit=limit).x, sample.x)
    assert not torch.equal(manifold.sample(labels, seed=4, limit=limit).x, sample.x)


def test_samples_are_of_their_class() -> None:
    manifold, labels = made(), torch.tensor([2, 0, 1, 1, 2])
    before = torch.get_rng_state()
    sample = manifold.sample(labels)
    assert torch.equal(torch.get_rng_state(), before)
    twos = manifold.sample(torch.full((5,), 2))
    assert ((sample.x - twos.x).abs().flatten(1).amax(1) < 1e-6).tolist() == (labels == 2).tolist()
    assert sample.dataset is None
    for limit in (0, -2.0, math.nan, math.inf):
        with refused("limit must be a positive number"):
            manifold.sample(labels, limit=limit)
    for seed in (-1, 0.5, None):
        with refused("seed must be a whole number"):
            manifold.sample(labels, seed=seed)


@pytest.mark.parametrize("shared", [False, True])
def test_samples_of_a_class_that_there_is_not(shared: bool) -> None:
    with refused("knows 3 classes; a label is 3"):
        made(shared=shared).sample(torch.tensor([0, 3]))


def test_interpolation() -> None:
    manifold, first = made(), images(6)
    last = Split(images(6, seed=1).x, first.y)
    rows = manifold.interpolate(first, last, 5)
    a, b = manifold.encode(first), manifold.encode(last)
    assert rows.shape == (6, 5, *SHAPE)
    assert torch.equal(rows[:, 0], manifold.reconstruct(first).x)
    assert torch.allclose(rows[:, 4], manifold.reconstruct(last).x, atol=1e-6)
    assert torch.allclose(rows[:, 1], manifold.decode(0.75 * a + 0.25 * b, first), atol=1e-5)
    assert torch.allclose(manifold.reconstruct(first).x, manifold.decode(a, first), atol=1e-6)
    assert torch.equal(manifold.reconstruct(first).y, first.y)
    for other in (Split(last.x, (last.y + 1) % 3), last[:5]):
        with refused("same classes, row by row"):
            manifold.interpolate(first, other)
    for steps in (1, 0, 2.5, None):
        with refused("steps must be a whole number >= 2"):
            manifold.interpolate(first, last, steps)


def test_images_and_labels_that_do_not_fit(fonts: Dataset) -> None:
    manifold, split = made(), images(4)
    for look in (manifold.encode, manifold.reconstruct, lambda s: manifold.project(s.x, s)):
        with refused(r"makes images \(1, 12, 16\); got \(1, 9, 16\)"):
            look(images(4, (1, 9, 16)))
        with refused("knows 3 classes; a label is 3"):
            look(Split(split.x, torch.tensor([0, 1, 3, 2])))
        with refused(r"learned from made, and the images are of FONTS \(hard\): load theirs"):
            look(fonts.test(3))
    with refused("split must be a Split"):
        manifold.encode(split.x)
    wrong = (split.x[:3], split.x[:, 0], split.x * math.nan, None, split.x.numpy())
    for x in wrong:
        with refused(r"x must be finite images \[4, 1, 12, 16\]"):
            manifold.nearest(x, split)


def test_images_of_its_set_in_another_size(learnt: dict, fonts: Dataset) -> None:
    with refused("images"):
        learnt["flow"].encode(fonts.test(2).with_x(torch.zeros(2, 1, 20, 20)))


@pytest.mark.parametrize("variant", RANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_codes_outside_the_bounds_are_named(variant: str, dtype: torch.dtype) -> None:
    data = advnb.load("fonts" if variant == "hard" else f"fonts-{variant}")
    split = data.test(2)
    for edge, away in zip(data.manifold.bounds, (-0.01, 0.01)):
        at_the_edge = edge.to(dtype).expand(2, 6)
        assert data.manifold.decode(at_the_edge, split).shape == split.x.shape
        for k, name in enumerate(LATENTS_OF_FONTS):
            z = at_the_edge.clone()
            z[1, k] += away
            with refused(f"^{name} in z lies outside the bounds of the {variant} manifold"):
                data.manifold.decode(z, split)
            z[1, k] = math.nan
            with refused(f"^{name} in z lies outside the bounds"):
                data.manifold.decode(z, split)


# --- the nearest image


def around(split: Split, manifold: LearnedManifold, room: float = 1.0) -> LearnedManifold:
    """The manifold with bounds that lie `room` around the codes of these images."""
    z = manifold.encode(split)
    new = copy.copy(manifold)
    new.low, new.high = z.amin(0).float() - room, z.amax(0).float() + room
    return new


def norms(change: Tensor) -> Tensor:
    return change.double().flatten(1).square().sum(1).sqrt()


@pytest.mark.parametrize("shared", [False, True])
def test_no_projection_is_farther_than_the_reconstruction(shared: bool) -> None:
    split = images(30)
    manifold = around(split, made(shared=shared))
    low, high = manifold.bounds
    for x in (split.x, images(30, seed=7).x, split.x.double()):
        code, distance = manifold.nearest(x, split), manifold.distance(x, split)
        assert code.dtype == distance.dtype == x.dtype
        assert ((code >= low.to(x)) & (code <= high.to(x))).all()
        assert torch.equal(manifold.project(x, split), manifold.decode(code, split))
        assert torch.allclose(norms(manifold.decode(code, split) - x), distance.double(), atol=1e-5)
        assert (distance.double() <= norms(manifold.reconstruct(split).x - x) + 1e-4).all()
        assert not code.requires_grad


def test_codes_outside_the_bounds_are_searched_inside() -> None:
    split, manifold = images(20), made().within(0.3)
    z = made().encode(split)
    assert (z.abs() > 0.3).any(1).all()
    code = manifold.nearest(split.x, split)
    assert code.abs().max() <= torch.tensor(0.3)
    met = manifold.nearest(made().reconstruct(split).x, split)  # no code inside is any nearer
    assert met.abs().max() <= torch.tensor(0.3)
    inside = made().decode(z.clamp(-0.3, 0.3), split)
    assert (manifold.distance(split.x, split) <= norms(inside - split.x) + 1e-4).all()


def test_a_decoded_code_is_found_again() -> None:
    split = in_double(images(30))
    manifold = around(split, made())
    z = manifold.encode(split) + 0.2 * normal(30, 10, seed=2).clamp(-2, 2)
    x = manifold.decode(z, split)
    assert norms(manifold.reconstruct(split).x - x).median() > 0.02
    assert manifold.distance(x, split).max() <= 2e-3
    assert manifold.distance(manifold.reconstruct(split).x, split).max() <= 1e-4


@pytest.mark.parametrize("shared", [False, True])
def test_the_slopes_of_the_search(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    split = in_double(images(7))
    manifold = around(split, made(shared=shared))

    def looked(linearise: Linearise, x: Tensor, starts: list[Tensor], *_: object) -> Found:
        rows = torch.tensor([5, 1, 3])
        z = starts[1][rows]
        found, slopes = linearise(z, rows)
        assert torch.allclose(found, manifold.decode(z, split[rows]), atol=1e-12)
        for one, row, changes in zip(z, rows, slopes):
            exact = jacobian(lambda c, r=row: manifold.decode(c[None], split[r])[0], one)
            exact = exact.permute(3, 0, 1, 2)
            assert (changes - exact).norm() <= 0.1 * exact.norm()  # kinks
        return Found(starts[1], torch.zeros(7))

    monkeypatch.setattr(advnb.learned, "nearest", looked)
    assert torch.allclose(manifold.nearest(split.x, split), manifold.encode(split))


def scipy_distance(manifold: LearnedManifold, x: Tensor, one: Split, begin: Tensor) -> float:
    """What SciPy's trust-region search ends at."""
    low, high = (edge.double().numpy() for edge in manifold.bounds)

    def residual(z: np.ndarray) -> np.ndarray:
        return (manifold.decode(torch.from_numpy(z)[None], one) - x).flatten().numpy()

    def slopes(z: np.ndarray) -> np.ndarray:
        many = torch.from_numpy(z + 1e-6 * np.concatenate([np.eye(10), -np.eye(10)]))
        up, down = manifold.decode(many, one[[0] * 20]).flatten(1).chunk(2)
        return ((up - down) / 2e-6).T.numpy()

    found = least_squares(residual, begin.numpy(), slopes, bounds=(low, high), method="trf")
    return math.sqrt(2 * found.cost)


@pytest.mark.parametrize("room", [0.05, 1.0])
def test_no_worse_than_scipy(room: float) -> None:
    split = in_double(images(8))
    manifold = around(split, made(), room)
    target = manifold.decode(manifold.encode(split) + 0.2 * normal(8, 10, seed=3), split)
    x = (target + 0.1 * normal(8, *SHAPE, seed=4)).clamp(0, 1)
    ours = manifold.distance(x, split)
    theirs = [scipy_distance(manifold, x[i], split[i], manifold.encode(split)[i]) for i in range(8)]
    assert min(theirs) > 0.1
    assert (ours / torch.tensor(theirs, dtype=torch.float64)).max() <= 1.01


# --- attacks


def reader(classes: int = 3, seed: int = 0, shape: tuple = SHAPE) -> nn.Sequential:
    layer = nn.Linear(math.prod(shape), classes)
    nn.init.normal_(layer.weight, std=0.3, generator=generator(seed, 1))
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layer).eval()


@pytest.fixture(scope="module")
def attacked() -> tuple:
    """A model that takes reconstructions for one class or another, images, an attack on their
    manifold and its result."""
    model, split = reader(), images(80)
    manifold = around(split, made(), 0.5)
    with torch.no_grad():
        model[1].bias.sub_(model(manifold.reconstruct(split).x).mean(0))
    attack = Attack(OnManifold(manifold, ETA), steps=6, lr=0.05, restarts=2, seed=3)
    return model, split, attack, attack(model, split)


def test_what_an_attack_on_a_learned_manifold_says(attacked: tuple) -> None:
    model, split, attack, result = attacked
    manifold, origin = attack.set.manifold, attack.set.manifold.encode(split)
    low, high = manifold.bounds
    assert result.code.shape == (2, 80, 10)
    for code, x, success in zip(result.code, result.x, result.success):
        assert (code.double() - origin.double()).abs().max() <= ETA
        assert ((code >= low) & (code <= high)).all()
        assert torch.allclose(x, manifold.decode(code, split), atol=1e-6)
        with torch.no_grad():
            assert torch.equal(success, model(x).argmax(1) != split.y)
    assert torch.equal(result.change, result.code - origin)
    assert torch.equal(attack(model, split).code, result.code)
    with torch.no_grad():
        assert torch.equal(result.correct, model(split.x).argmax(1) == split.y)
        own = torch.cat([model(manifold.decode(origin[[i]], split[i])) for i in range(80)])
    assert torch.equal(result.reconstructed, own.argmax(1) == split.y)
    assert (result.reconstructed != result.correct).sum() > 5
    assert result.success[:, result.reconstructed].any()
    assert not result.success[:, result.reconstructed].all()


def brute(result: advnb.AttackResult, over: str, known: Tensor, far: Tensor) -> tuple[int, int]:
    """(hits, pairs or images), counted one by one."""
    hits = units = 0
    for i in range(len(result.split)):
        if known[i]:
            fooled = [bool(s) and not far[i] for s in result.success[:, i]]
            hits += sum(fooled) if over == "pairs" else any(fooled)
            units += len(fooled) if over == "pairs" else 1
    return hits, units


@pytest.mark.parametrize("over", ["pairs", "images"])
@pytest.mark.parametrize("limit", [None, 0.8, 2, 50.0])
def test_success_rates_by_hand(over: str, limit: float | None, attacked: tuple) -> None:
    _, split, attack, result = attacked
    codes = attack.set.manifold.encode(split)
    far = torch.zeros(80, dtype=torch.bool) if limit is None else codes.abs().amax(1) > limit
    for correct, known in (("x", result.correct), ("reconstruction", result.reconstructed)):
        rate = result.success_rate(over, correct=correct, code_limit=limit)
        hits, units = brute(result, over, known, far)
        assert rate.n == units
        assert rate.value == pytest.approx(hits / units)
    assert result.success_rate(over) == result.success_rate(over, correct="x")
    limited = [result.success_rate(code_limit=c).value for c in (1e-6, 0.8, 1.5, 50.0)]
    assert limited[0] == 0
    assert limited == sorted(limited)


@pytest.mark.parametrize("limit", [None, 1.5])
def test_transferred_by_hand(limit: float | None, attacked: tuple) -> None:
    model, split, attack, result = attacked
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[1].weight.add_(0.01 * torch.randn(other[1].weight.shape, generator=generator(4)))
        guess = [other(x).argmax(1) for x in result.x]
        starts = {"x": split.x, "reconstruction": attack.set.manifold.reconstruct(split).x}
        for correct, start in starts.items():
            both = (model(start).argmax(1) == split.y) & (other(start).argmax(1) == split.y)
            far = attack.set.manifold.encode(split).abs().amax(1) > (limit or math.inf)
            hits = sum(
                bool(result.success[k, i] and guess[k][i] != split.y[i] and not far[i])
                for k in range(2) for i in range(80) if both[i]
            )  # fmt: skip
            rate = result.transferred(other, correct=correct, code_limit=limit)
            assert 0 < rate.n == 2 * int(both.sum())
            assert rate.value == pytest.approx(hits / rate.n)
            assert hits > 0


def test_rates_that_cannot_be(attacked: tuple, fonts: Dataset) -> None:
    result = attacked[3]
    for correct in ("code", None, 2, True):
        with refused('correct must be "x" or "reconstruction"'):
            result.success_rate(correct=correct)
    for limit in (0, -2, math.nan, math.inf, "2"):
        with refused("code_limit must be a positive number"):
            result.success_rate(code_limit=limit)
    split = fonts.test(4)
    pixels = Attack(Pixels(0.1), steps=1)(advnb.models.CNN(0).eval(), split)
    assert torch.equal(pixels.reconstructed, pixels.correct)
    with refused("code_limit is for sets that search a code"):
        pixels.success_rate(code_limit=2)


def test_a_known_manifold_has_one_reading(fonts: Dataset, trained: nn.Module) -> None:
    split = fonts.test(100)
    result = Attack(OnManifold(fonts.manifold, 0.2), steps=5)(trained, split)
    assert torch.equal(result.reconstructed, result.correct)
    assert result.success_rate() == result.success_rate(correct="reconstruction")
    near = split.z.abs().amax(1) <= 1.1
    assert 10 < near.sum() < 90
    expected = (result.success[0] & near)[result.correct].double().mean().item()
    assert result.success_rate(code_limit=1.1).value == pytest.approx(expected)


def test_gradients_of_codes_are_finite_differences() -> None:
    manifold, split, model = made(), in_double(images(7)), reader().double()
    z = manifold.encode(split).requires_grad_()

    def losses(z: Tensor) -> Tensor:
        return cross_entropy(model(manifold.decode(z, split)), split.y, reduction="none")

    (gradient,) = torch.autograd.grad(losses(z).sum(), z)
    steps = 1e-6 * torch.eye(10, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([(losses(z + e) - losses(z - e)) / 2e-6 for e in steps], 1)
    assert expected.norm() > 0.1
    assert (gradient - expected).abs().max() <= 1e-6 * expected.abs().max()
    kept = Attack(OnManifold(manifold, 0.1), steps=1, lr=0.01, optimizer="sign", start="zero",
                  keep="strongest")  # fmt: skip
    *_, last = kept.iterate(model, split)
    uphill = z.detach() + 0.01 * expected.sign()
    moved = (last.code - z.detach()).abs().amax(1) > 0
    assert moved.any()
    assert torch.allclose(last.code[moved], uphill[moved], atol=1e-12)


# --- training


SMALL = {"width": 4, "steps": 6}


def file_of_three(path: Path, tests: int = 30, side: int = 12) -> Path:
    """Bars in three places on a dark ground, as a set of one's own."""
    draws = np.random.default_rng(0)

    def part(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(n) % 3
        x = draws.integers(0, 40, (n, side, side), dtype=np.uint8)
        for k in range(3):
            x[y == k, 4 * k : 4 * k + 3] += 150
        return x, y

    (train_x, train_y), (test_x, test_y) = part(240), part(tests)
    np.savez(path, train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
    return path


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return advnb.load(file_of_three(tmp_path_factory.mktemp("three") / "three.npz"))


@pytest.fixture(scope="module")
def learnt(fonts: Dataset) -> dict[str, LearnedManifold]:
    """Both kinds after thirty steps a letter."""
    split = fonts.train(1000)
    return {
        kind: train(split, Settings(kind, width=4, steps=30), progress=False)
        for kind in ("flow", "vaegan")
    }


def error(manifold: LearnedManifold, split: Split) -> float:
    return (manifold.reconstruct(split).x - split.x).square().mean().item()


@pytest.mark.parametrize("kind", ["flow", "vaegan"])
def test_training_helps(kind: str, three: Dataset, learnt: dict, fonts: Dataset) -> None:
    few, many = (
        train(three.train(), Settings(kind, width=4, steps=steps), progress=False)
        for steps in (1, 60 if kind == "flow" else 150)
    )
    assert error(many, three.test()) < 0.4 * error(few, three.test())
    split = fonts.train(1000)
    untrained = train(split, Settings(kind, width=4, steps=1), progress=False)
    assert error(learnt[kind], split) < 0.98 * error(untrained, split)


@pytest.mark.parametrize("kind", ["flow", "vaegan"])
def test_what_training_says(kind: str, learnt: dict, fonts: Dataset) -> None:
    split, manifold = fonts.train(1000), learnt[kind]
    codes = manifold.encode(split)
    assert torch.allclose(codes.amin(0), manifold.low, atol=1e-4)
    assert torch.allclose(codes.amax(0), manifold.high, atol=1e-4)
    assert manifold.about["title"] == "FONTS (hard)"
    assert (manifold.about["kind"], manifold.about["networks"]) == (kind, 10)
    assert (manifold.about["couplings"] > 0) == (kind == "flow")
    assert kind in repr(manifold)
    assert "10 models" in repr(manifold)


@pytest.mark.parametrize("kind", ["flow", "vaegan"])
def test_an_attack_on_what_was_learnt(
    kind: str, learnt: dict, fonts: Dataset, trained: nn.Module
) -> None:
    split, manifold = fonts.test(40), learnt[kind]
    result = Attack(OnManifold(manifold, 0.3), steps=4, lr=0.1)(trained, split)
    assert (result.code[0] - manifold.encode(split)).abs().max() <= 0.3
    assert torch.allclose(result.x[0], manifold.decode(result.code[0], split), atol=1e-6)
    made_up = manifold.reconstruct(split)
    with torch.no_grad():
        assert torch.equal(result.reconstructed, trained(made_up.x).argmax(1) == split.y)
    assert (manifold.distance(result.x[0], split) <= norms(made_up.x - result.x[0]) + 1e-4).all()


@pytest.mark.parametrize("kind", ["flow", "vaegan"])
def test_the_seed_decides_everything(kind: str, three: Dataset) -> None:
    split, about = three.train(), []
    for number in (1, 2):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        about.append(train(split, Settings(kind, **SMALL), progress=False))
        assert torch.equal(torch.get_rng_state(), before)
    first, again = about
    assert same_models(first, again)
    assert torch.equal(torch.stack(first.bounds), torch.stack(again.bounds))
    nets = first._on(first.low)
    assert not torch.equal(nets[0].mean.weight, nets[1].mean.weight)
    other = train(split, Settings(kind, seed=1, **SMALL), progress=False)
    assert not same_models(first, other)
    assert not any(net.training for net in nets)


@pytest.mark.parametrize("shared", [False, True])
def test_every_epoch_visits_every_image(shared: bool, three: Dataset) -> None:
    part, seen = three.train()[:130], []  # 100 and 30 images, filled up from the front
    run = vaegan._Run(part, Settings(width=2, steps=4, shared=shared), 0, None)
    loss = run.gradients

    def watched(x: Tensor, noise: Tensor) -> list:
        assert run.model.training
        assert noise.shape == (100, 10)
        seen.extend(int((part.x == one).flatten(1).all(1).nonzero()) for one in x)
        return loss(x, noise)

    run.gradients = watched
    assert not run.finish(tqdm(disable=True)).training
    first, second = seen[:200], seen[200:]
    for epoch in (first, second):
        assert sorted(epoch[:130]) == list(range(130))
        assert epoch[130:] == epoch[:70]
    assert first != second


def stop_after(saves: int, patch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """Let the checkpoint be written `saves` times and then stop the run."""
    written, save = 0, checkpoints.Checkpoint.save

    def stopping(self: checkpoints.Checkpoint, step: int, due: bool) -> None:
        nonlocal written
        save(self, step, due)
        written += 1
        if written == saves:
            raise error

    patch.setattr(checkpoints.Checkpoint, "save", stopping)


@pytest.mark.parametrize("stops", [(1,), (6,), (8, 4, 1)])
@pytest.mark.parametrize("kind", ["flow", "vaegan", "shared"])
def test_going_on_is_exact(
    kind: str, stops: tuple[int, ...], three: Dataset, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    small = SMALL | {"steps": 14} if kind == "shared" else SMALL
    chosen = Settings("flow" if kind == "shared" else kind, shared=kind == "shared", **small)
    unbroken = train(three.train(), chosen, progress=False)
    monkeypatch.setattr(checkpoints, "SAVE_EVERY", -1.0)
    for saves in stops:
        with monkeypatch.context() as patch:
            stop_after(saves, patch, KeyboardInterrupt)
            with pytest.raises(KeyboardInterrupt):
                train(three.train(), chosen, checkpoint=tmp_path / "run", progress=False)
    resumed = train(three.train(), chosen, checkpoint=tmp_path / "run", progress=False)
    assert same_models(resumed, unbroken)
    assert torch.equal(torch.stack(resumed.bounds), torch.stack(unbroken.bounds))
    assert resumed.about["minutes"] is None  # what one part of it took says nothing
    count = 1 if kind == "shared" else 3
    names = {f"{k}.safetensors" for k in range(count)}
    assert {p.name for p in (tmp_path / "run").iterdir()} == names


def test_a_checkpoint_of_another_run(three: Dataset, tmp_path: Path) -> None:
    run = Settings(**SMALL)
    train(three.train(), run, checkpoint=tmp_path, progress=False)
    others = [replace(run, seed=1), replace(run, steps=7), replace(run, kind="vaegan")]
    for other in others:
        with refused("belongs to another run"):
            train(three.train(), other, checkpoint=tmp_path, progress=False)
    with refused("belongs to another run"):
        train(three.train(200), run, checkpoint=tmp_path, progress=False)


def test_other_settings_begin_in_a_place_of_theirs(
    three: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run = tmp_path / "m.safetensors", Settings(**SMALL)
    monkeypatch.setattr(checkpoints, "SAVE_EVERY", -1.0)
    with monkeypatch.context() as patch:
        stop_after(2, patch, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            quality.make(three, run, path)
    (place,) = tmp_path.iterdir()
    kept = {part.name: part.read_bytes() for part in place.iterdir()}
    made = quality.make(three, replace(run, seed=3), path)
    assert same_models(made, LearnedManifold.read(path))
    # the first one may still run elsewhere
    assert {left.name for left in tmp_path.iterdir()} == {path.name, place.name}
    assert {part.name: part.read_bytes() for part in place.iterdir()} == kept
    quality.make(three, run, path)
    assert [left.name for left in tmp_path.iterdir()] == [path.name]


def test_one_model_for_all_classes(three: Dataset) -> None:
    manifold = train(three.train(), Settings(shared=True, **SMALL), progress=False)
    assert manifold.shared
    assert manifold.about["networks"] == 1
    assert "one model" in repr(manifold)
    split, few = three.test(9), three.train(9)[torch.tensor([0, 3, 6])]  # of class 0 alone
    other = Split(split.x, (split.y + 1) % 3, dataset=three)
    assert torch.equal(manifold.reconstruct(split).x, manifold.reconstruct(other).x)
    train(few, Settings(shared=True, width=4, steps=1), progress=False)


def test_a_weight_for_every_class(three: Dataset) -> None:
    betas = (0.5, 2.0, 8.0)
    nets = [
        train(three.train(), Settings("vaegan", beta=beta, **SMALL), progress=False)
        for beta in (betas, 2.0)
    ]
    mixed, same = (m._on(m.low) for m in nets)
    for k, equal in enumerate((False, True, False)):
        assert torch.equal(mixed[k].mean.weight, same[k].mean.weight) == equal
    with refused("beta weighs the reconstruction of a VAE-GAN; a flow needs none"):
        train(three.train(), Settings("flow", beta=2.0, **SMALL), progress=False)
    for beta in ((1.0, 2.0), (1.0,) * 4, ()):
        with refused("beta must be one number or 3, one a model"):
            train(three.train(), Settings("vaegan", beta=beta, **SMALL), progress=False)


def test_what_cannot_be_learned(three: Dataset, tmp_path: Path) -> None:
    split = three.train()
    with refused("no image is of class 1: give it some"):
        train(split[split.y != 1], Settings(**SMALL), progress=False)
    for what in (three, None, Split(split.x, split.y)):
        with refused(r"split must be one of a data set, data.train\(\) say"):
            train(what, Settings(**SMALL), progress=False)
    tiny = advnb.load(file_of_three(tmp_path / "tiny.npz", side=7))
    with refused("images must be 8 pixels or more a side"):
        train(tiny.train(), Settings(**SMALL), progress=False)


def test_settings_that_cannot_be() -> None:
    wrong = {
        "kind": ["gan", None, 3, ["flow"]], "width": [0, -1, 2.5, "16", None],
        "steps": [0, 1.5, "7"], "seed": [-1, 0.5, None], "kernel": [2, 5, "6", None],
        "beta": [0, -1.0, math.nan, math.inf, "3", [3.0], (3.0, -1.0)],
    }  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            with refused(f"{name} must be"):
                Settings(**{name: value})


def test_a_set_of_ones_own_that_is_named_after_a_known_one(tmp_path: Path) -> None:
    data = advnb.load(file_of_three(tmp_path / "mnist-three.npz"))
    assert train(data.train(), Settings(width=2, steps=1), progress=False).about["classes"] == 3


def test_divergence_is_told(three: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vaegan._Run, "_rate", lambda self, done: 1e38)
    with refused("diverged to NaN or infinity"):
        train(three.train(), Settings("vaegan", **SMALL), progress=False)


# --- what ships


@pytest.mark.parametrize(
    ("data", "kind"),
    [("cifar10", "flow"), ("mnist", "gan"), ("fonts", "gan"), (3, "flow"), (None, "flow")],
)
def test_manifolds_that_do_not_ship(data: object, kind: str) -> None:
    with refused("no learned manifold .* ships, only of fonts .*vaegan train"):
        LearnedManifold.load(data, kind)


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in SHIPPED.items() for kind in kinds]
)
def test_manifolds_that_ship(name: str, kind: str) -> None:
    """Of the form that their name says, and as near to test images as was measured."""
    data = advnb.load(name) if name == "fonts" else real(name)
    manifold = LearnedManifold.load(data, kind)
    chosen = Settings(kind.removesuffix("-shared"), shared=kind.endswith("-shared"))
    assert manifold.shared == chosen.shared
    assert (manifold.about["kind"], manifold.about["title"]) == (chosen.kind, data.title)
    assert manifold.about["networks"] == (1 if chosen.shared else len(data.classes))
    measured = manifold.about["measured"]["reconstruction"]
    assert error(manifold, data.test(2000)) == pytest.approx(measured, rel=0.1)


def test_one_model_for_all_letters_is_less_exact() -> None:
    kinds = (LearnedManifold.load("fonts", kind) for kind in ("flow", "flow-shared"))
    own, shared = (kind.about["measured"]["reconstruction"] for kind in kinds)
    assert own < shared < 2 * own


def test_the_default_steps() -> None:
    assert [Settings(kind).steps for kind in ("flow", "vaegan")] == [3000, 1680]
    assert Settings("flow", shared=True).steps == 12_000


def test_made_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = file_of_three(tmp_path / "three.npz", tests=10_000)
    out = tmp_path / "three-flow.safetensors"
    arguments = ["--steps", "3", "--width", "4", "--out", str(out)]
    assert main(["vaegan", "train", str(data), *arguments]) == 0
    assert "LearnedManifold(flow of three, 3 models, " in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == {data.name, out.name}
    read, loaded = LearnedManifold.read(out), advnb.load(data)
    test = loaded.test(10_000)
    assert read.about["measured"] == {"reconstruction": pytest.approx(error(read, test))}
    expected = train(loaded.train(), Settings(width=4, steps=3), progress=False)
    assert torch.equal(torch.stack(read.bounds), torch.stack(expected.bounds))
    assert isinstance(read.about["minutes"], float)


def test_making_goes_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = advnb.load(file_of_three(tmp_path / "three.npz", tests=10_000)), tmp_path / "m"
    unbroken = quality.make(data, Settings(**SMALL), tmp_path / "other")
    with monkeypatch.context() as patch:
        stop_after(9, patch, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            quality.make(data, Settings(**SMALL), out)
    assert not out.exists()
    assert same_models(quality.make(data, Settings(**SMALL), out), unbroken)
    assert {p.name for p in tmp_path.iterdir()} == {"three.npz", "m", "other"}


def test_a_set_of_few_test_images(three: Dataset, tmp_path: Path) -> None:
    manifold = quality.make(three, Settings(width=4, steps=1), tmp_path / "m")
    assert manifold.about["measured"]["reconstruction"] > 0


def test_the_quality_of_letters(learnt: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    fonts = advnb.load("fonts")  # one that nobody else measures
    monkeypatch.setattr(quality, "to_letter", lambda x, y, manifold: norms(x))
    found, n = quality.measure(learnt["flow"], fonts, n=500), 500
    test = fonts.test(n)
    again = learnt["flow"].reconstruct(test)
    assert found["reconstruction"] == pytest.approx((again.x - test.x).square().mean().item())
    judge = advnb.zoo.load("fonts-cnn-adversarial")
    parts = {
        "test images": test, "reconstructions": again,
        "samples": learnt["flow"].sample(torch.arange(n) % 10),
    }  # fmt: skip
    assert found["accuracy"] == {k: vars(advnb.accuracy(judge, s)) for k, s in parts.items()}
    some = norms(parts["samples"].x[:100]).median().item()
    assert found["distance of samples"] == pytest.approx(some)


def finished(data: Dataset, chosen: Settings, path: Path) -> LearnedManifold:
    """A manifold with made-up measures, as `make` leaves it."""
    manifold = made()
    manifold.about |= {"kind": chosen.kind, "parameters": 7, "minutes": 1.0, "data": data.title}
    manifold.about["measured"] = {"reconstruction": chosen.seed, "accuracy": {"samples": {"n": 9}}}
    manifold.save(path)
    return manifold


def test_the_comparison(three: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_now: list[Settings] = []

    def make(data: Dataset, chosen: Settings, path: Path) -> LearnedManifold:
        made_now.append(chosen)
        return finished(data, chosen, path)

    monkeypatch.setattr(quality, "make", make)
    make(three, Settings("vaegan", seed=1), tmp_path / "three-vaegan-1.safetensors")
    table = quality.compare(three, tmp_path, seeds=2)
    assert table["kind"].tolist() == ["flow", "flow", "vaegan", "vaegan"]
    assert table["seed"].tolist() == table["reconstruction"].tolist() == [0, 1, 0, 1]
    assert table["steps"].tolist() == [3000, 3000, 1680, 1680]
    assert (table["accuracy.samples.n"] == 9).all()
    assert len(made_now) == 4  # the one that was there is not made again
    assert (tmp_path / "three-generative.csv").is_file()
    shutil.copy(tmp_path / "three-flow-0.safetensors", tmp_path / "kept")
    quality.compare(three, tmp_path, seeds=2)
    assert len(made_now) == 4
    assert (tmp_path / "kept").read_bytes() == (tmp_path / "three-flow-0.safetensors").read_bytes()


def test_a_comparison_after_a_stop_before_the_measures(
    three: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vaegan, "STEPS", {"flow": 1, "vaegan": 1})
    with monkeypatch.context() as patch:
        patch.setattr(quality, "measure", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            quality.compare(three, tmp_path, seeds=1)
    monkeypatch.setattr(quality, "measure", lambda *_: {"reconstruction": 0.5})
    assert len(quality.compare(three, tmp_path, seeds=1)) == 2


def test_a_comparison_of_files_without_measures(
    three: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in KINDS:  # as `train` leaves them, saved by hand
        manifold = finished(three, Settings(kind), tmp_path / "m")
        del manifold.about["measured"]
        manifold.save(tmp_path / f"three-{kind}-0.safetensors")
    monkeypatch.setattr(quality, "measure", lambda manifold, data: {"reconstruction": 0.25})
    assert quality.compare(three, tmp_path, seeds=1).reconstruction.tolist() == [0.25, 0.25]


# --- how far a letter is from all letters


def blobs(n: int, seed: int = 0) -> Tensor:
    """Images [n, 1, 28, 28] with ink well inside."""
    x = torch.zeros(n, 1, 28, 28)
    x[..., 8:20, 9:21] = torch.rand(n, 1, 12, 12, generator=generator(seed)) ** 3
    return x


def test_the_centre_of_the_ink_by_hand() -> None:
    x = blobs(6)
    for image, found in zip(x[:, 0].double(), _middle(x)):
        total = across = down = 0.0
        for i in range(28):
            for j in range(28):
                total += image[i, j].item()
                across += image[i, j].item() * (2 * j / 27 - 1)
                down += image[i, j].item() * (2 * i / 27 - 1)
        assert found.tolist() == pytest.approx([across / total, down / total], abs=1e-5)
    assert _middle(torch.zeros(1, 1, 28, 28)).abs().max() <= 1e-6
    moved = _centred(x)
    assert _middle(x).abs().amax() > 0.01
    assert _middle(moved).abs().max() <= 2e-3
    assert torch.allclose(moved.sum((1, 2, 3)), x.sum((1, 2, 3)), rtol=0.02)


@pytest.mark.parametrize("variant", ["hard", "moderate", "easy"])
def test_the_grid_of_poses(variant: str) -> None:
    low, high = advnb.fonts.KnownManifold(variant).bounds
    poses = _poses(low, high)
    assert poses.shape == (243, 6)
    assert len(poses.unique(dim=0)) == 243
    assert ((poses > low) | (low == high)).all()
    assert (poses < high).all()
    assert poses[:, :2].abs().max() <= 1e-7
    assert [len(column.unique()) for column in poses.T] == [1, 1, 3, 3, 3, 9]
    for column, a, b in zip(poses.T, low, high):  # every cell of the range has its middle
        cells = column.unique()
        width = (b - a) / len(cells)
        assert torch.allclose(cells, a + width * (torch.arange(len(cells)) + 0.5), atol=1e-6)


@pytest.fixture(scope="module")
def letters(fonts: Dataset) -> Split:
    """Letters of the first thirty faces, A and G."""
    split = fonts.test(300)
    return split[(split.y == 0) | (split.y == 6)][::6]


def test_true_letters_lie_among_the_letters(letters: Split, fonts: Dataset) -> None:
    away = to_letter(letters.x, letters.y, fonts.manifold, faces=30)
    assert away.shape == (10,)
    assert away.max() <= 1e-3


def test_no_letter_is_farther_than_its_own_face(letters: Split, fonts: Dataset) -> None:
    noise = torch.randn(letters.x.shape, generator=generator(3))
    x = (letters.x + 0.15 * noise).clamp(0, 1)
    away = to_letter(x, letters.y, fonts.manifold, faces=30)
    own = fonts.manifold.distance(x, letters)
    assert own.min() > 0.5
    assert (away <= own + 0.01).float().mean() >= 0.8
    assert (away <= 1.5 * own).all()
    alone = to_letter(x[3:4], letters.y[3:4], fonts.manifold, faces=30)
    assert torch.allclose(alone, away[3:4], atol=1e-3)


def test_distances_to_letters_that_cannot_be(letters: Split, fonts: Dataset) -> None:
    for x in (letters.x[0], None, torch.zeros(len(letters), 3, 32, 32), letters.x.long()):
        with refused("x must be"):
            to_letter(x, letters.y, fonts.manifold, faces=5)
    for y in (letters.y[:3], [1] * len(letters), letters.y + 10, letters.y - 10):
        with refused("letter must be a label"):
            to_letter(letters.x, y, fonts.manifold, faces=5)
    for sizes in ({"faces": 0}, {"faces": 5}, {"refine": 0}, {"faces": 2000}):
        with refused("faces|refine"):
            to_letter(letters.x, letters.y, fonts.manifold, **sizes)
    with refused("manifold must be that of FONTS"):
        to_letter(letters.x, letters.y, None)


def test_bounds_that_were_widened_can_be_decoded(fonts: advnb.Dataset) -> None:
    manifold, split = LearnedManifold.load("fonts"), fonts.test(2)
    wide = manifold.within(20.0)
    assert wide.decode(torch.full((2, 10), 19.0), split).isfinite().all()
    with refused("far outside the manifold's bounds"):
        manifold.decode(torch.full((2, 10), 19.0), split)
