"""A GPU gives what the CPU gives: logits, letters, attacks, training. Skipped without one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import advnb
from advnb import Affine, Attack, OnManifold, Pixels
from advnb.live import LatentPanel, close_all
from advnb.manifolds import LearnedManifold
from advnb.models import (
    CNN,
    MadryCIFAR,
    ResNet13,
    WongKolter,
    full_precision,
    kept_random,
    logits,
    seed_device,
)
from advnb.recorded import Recorded
from advnb.stacks import Stack

FOUND = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()


@pytest.fixture(params=["cuda", "mps"])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param not in FOUND:
        pytest.skip(f"no {request.param} device")
    return torch.device(request.param)


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool(((a.cpu() - b.cpu()).abs() <= tolerance).all())


@pytest.mark.parametrize("network", [CNN, ResNet13, MadryCIFAR])
def test_logits(network: type[CNN], device: torch.device) -> None:
    model = network(0).eval()
    split = advnb.Split(
        torch.rand(16, *model.shape, generator=advnb.stats.generator(1)), torch.arange(16) % 10
    )
    expected = logits(model, split)
    there = copy.deepcopy(model).to(device)
    assert logits(there, split).device.type == "cpu"  # the split's
    assert close(logits(there, split), expected, 1e-4 * expected.abs().max().item())


def test_decoded_letters(fonts: advnb.Dataset, device: torch.device) -> None:
    split = fonts.test(500)
    assert split.to(device).x.device.type == device.type
    assert close(split.to(device).x, split.x, 1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("optimizer", ["adam", "sign"])
def test_attack(fonts: advnb.Dataset, device: torch.device, norm: str, optimizer: str) -> None:
    model, split = advnb.zoo.load("fonts-cnn-adversarial"), fonts.test(500)
    eps = 0.1 if norm == "linf" else 1.5
    attack = Attack(Pixels(eps, norm), lr=eps / 20, optimizer=optimizer, restarts=2)
    here, there = attack(model, split), attack(copy.deepcopy(model).to(device), split)
    assert there.x.device.type == "cpu"
    # a rounding here and there tips an image over: 1 in 100 may differ
    assert (here.success != there.success).float().mean() <= 0.01
    assert abs(here.success_rate().value - there.success_rate().value) <= 0.01
    on_it = attack(copy.deepcopy(model).to(device), split.to(device))
    assert on_it.x.device.type == on_it.success.device.type == device.type
    change = (there.x.double() - split.x.double()).flatten(2)
    size = change.abs().amax(2) if norm == "linf" else change.norm(dim=2)
    assert size.max() <= eps
    assert 0 <= there.x.min() <= there.x.max() <= 1


def test_training(fonts: advnb.Dataset, device: torch.device) -> None:
    """Five steps of a network without batch normalisation: a bias before that is moved by nothing
    but rounding, and Adam makes it large."""
    recipe = advnb.recipes.adversarial(Attack(Pixels(0.1), steps=5))
    exact = torch.float64 if device.type == "cuda" else torch.float32
    split = fonts.train(500)
    split = split.with_x(split.x.to(exact))
    models = [
        advnb.fit(WongKolter(0).to(where, exact), split, recipe, epochs=1, progress=False)
        for where in ("cpu", device)
    ]
    assert next(models[1].parameters()).device.type == device.type
    here, there = (torch.nn.utils.parameters_to_vector(m.parameters()).cpu() for m in models)
    start = torch.nn.utils.parameters_to_vector(WongKolter(0).parameters())
    off = (here - there).norm() / (here - start).norm()
    assert off <= (1e-9 if exact == torch.float64 else 0.01)


@pytest.mark.parametrize("networks", [1, 3])
@pytest.mark.parametrize("set", ["pixels", "l2", "codes", "affine", "learned"])
def test_recorded_searches(
    fonts: advnb.Dataset, device: torch.device, set: str, networks: int
) -> None:
    """A graph, recorded at the first batch, gives what a search gives, batch after batch, against
    the weights as they are."""
    if device.type != "cuda":
        pytest.skip("graphs are CUDA's")
    split = fonts.train(90).to(device)
    split = split.with_x(split.x.double())
    split.z = split.z.double()
    sets = {
        "pixels": Pixels(0.3), "l2": Pixels(1.5, "l2"), "affine": Affine(0.3),
        "codes": OnManifold(fonts.manifold, 0.3),
        "learned": OnManifold(LearnedManifold.load("fonts"), 0.3),
    }  # fmt: skip
    model: torch.nn.Module = Stack([CNN(s).to(device, torch.float64) for s in range(networks)])
    model, attack = model.eval(), Attack(sets[set], steps=10, keep="strongest")
    recorded, plain = Recorded(attack, model), Recorded(attack, model, able=False)
    for number in range(3):
        part, seeds = split[number * 30 : (number + 1) * 30], [number, 7, 8][:networks]
        # the ten decoders are summed in another order
        assert close(recorded(part, seeds), plain(part, seeds), 1e-6 if set == "learned" else 1e-9)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
    assert recorded.able


def test_products_are_of_full_precision(device: torch.device) -> None:
    stream = advnb.stats.generator(3)
    x, w = (
        torch.randn(8, 64, 16, 16, generator=stream),
        torch.randn(64, 64, 3, 3, generator=stream),
    )
    exact = torch.nn.functional.conv2d(x.double(), w.double())
    with full_precision(device):
        found = torch.nn.functional.conv2d(x.to(device), w.to(device)).cpu().double()
    assert (found - exact).abs().max() <= 2e-5 * exact.abs().max()  # TF32: 1e-3


def test_the_random_state_comes_back(device: torch.device) -> None:
    seed_device(device, 5)
    first = torch.rand(3, device=device)
    seed_device(device, 5)
    with kept_random(device):
        torch.rand(100, device=device)
    assert torch.equal(torch.rand(3, device=device), first)


def test_distances_to_the_training_set(fonts: advnb.Dataset, device: torch.device) -> None:
    model, train, test = advnb.zoo.load("fonts-cnn-adversarial"), fonts.train(2000), fonts.test(300)
    here = advnb.nearest(model.features, train, test)
    there = advnb.nearest(copy.deepcopy(model).to(device).features, train, test)
    assert there.distance.device.type == "cpu"  # the split's
    assert close(here.distance, there.distance, 1e-3)
    assert (here.index == there.index).float().mean() > 0.99  # but for near ties
    on_it = advnb.nearest(copy.deepcopy(model).to(device).features, train, test.to(device))
    assert on_it.index.device.type == device.type


def test_certificates(fonts: advnb.Dataset, device: torch.device) -> None:
    model, split = WongKolter(0).eval(), fonts.test(20)
    here = advnb.certify.margins(model, split, 0.01)
    there = advnb.certify.margins(copy.deepcopy(model).to(device), split, 0.01)
    assert close(here, there, 1e-6)


def test_the_latent_panel(fonts: advnb.Dataset, device: torch.device) -> None:
    model, split = advnb.zoo.load("fonts-cnn-normal"), fonts.test(3)
    codes = []
    try:
        for where in ("cpu", device):
            panel = LatentPanel(copy.deepcopy(model).to(where), split.to(where), image=1)
            panel.attack()
            assert panel.settle(120)
            assert panel.frame is not None, panel.message.value
            assert panel.frame.complete
            codes.append(torch.tensor(panel.frame.code))
    finally:
        close_all()
    assert close(codes[0], codes[1], 1e-3)
