"""Several networks as one: the numbers of each are those it has alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import advnb
from advnb import Attack, OnManifold, Pixels, Split, curves, fit, recipes, trained
from advnb.curves import Cell, Measure
from advnb.models import CNN, MLP, VGG, WRM, MadryCIFAR, MadryMNIST, Network, ResNet13, WongKolter
from advnb.passes import quickened
from advnb.recorded import Recorded
from advnb.stacks import Stack
from advnb.stats import generator

from .conftest import refused

STACKED = [CNN, MLP, ResNet13, VGG, MadryMNIST, WongKolter, WRM]


def noise(n: int, *shape: int, kind: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(n, *shape, generator=generator(1)).to(kind)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("network", STACKED)
def test_gradients_are_the_networks_own(network: type[Network], kind: torch.dtype) -> None:
    networks = [network(seed).to(kind) for seed in range(3)]
    stack, x = Stack(networks), noise(3 * 4, *networks[0].shape, kind=kind)
    weights = torch.randn(3 * 4, 10, generator=generator(2)).to(kind)
    together = stack(x)
    alone = torch.cat([own(part) for own, part in zip(networks, x.chunk(3))])
    bound = 1e-10 if kind == torch.float64 else 1e-5
    assert (together - alone).norm() <= bound * alone.norm()
    (together * weights).sum().backward()
    (alone * weights).sum().backward()
    # as one vector: that of a bias before batch normalisation is nothing but rounding
    mine = torch.cat([parameter.grad.flatten() for parameter in stack.parameters()])
    own = zip(*(model.parameters() for model in networks))
    expected = torch.cat([parameter.grad.flatten() for row in own for parameter in row])
    assert (mine - expected).norm() <= bound * expected.norm()


@pytest.mark.parametrize("network", [CNN, ResNet13])
def test_what_a_search_sees_of_a_stack(network: type[Network]) -> None:
    networks = [network(seed).double() for seed in range(2)]
    for model in networks:
        model(noise(8, *model.shape))  # statistics of its own
        model.eval()
    stack, x = Stack(networks).eval(), noise(6, *networks[0].shape)
    alone = torch.cat([own(part) for own, part in zip(networks, x.chunk(2))])
    assert torch.allclose(quickened(stack)(x), alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["normal", "regular", "on-true", "printed", "combined"])
def test_training_is_each_networks_own(kind: str, fonts: advnb.Dataset) -> None:
    attacks = [Attack(s, steps=3) for s in (Pixels(0.3), OnManifold(fonts.manifold, 0.3))]
    pixels, code = (recipes.adversarial(attack) for attack in attacks)
    recipe = {
        "normal": recipes.normal(), "regular": pixels, "on-true": code,
        "printed": recipes.augmented(form="printed"), "combined": recipes.combined([pixels, code]),
    }[kind]  # fmt: skip
    part = fonts.train(120)
    exact = Split(part.x.double(), part.y, z=part.z.double(), font=part.font, dataset=part.dataset)
    options = {"epochs": 1, "progress": False}
    alone = [fit(CNN(s).double(), exact, recipe, seed=s, **options) for s in (4, 9)]
    stack = Stack([CNN(4).double(), CNN(9).double()])
    for own, stacked in zip(alone, fit(stack, exact, recipe, seed=[4, 9], **options).unstack()):
        assert not stacked.training
        for (name, mine), expected in zip(stacked.named_parameters(), own.parameters()):
            # biases before batch normalisation wander in rounding alone, and change nothing
            if name not in ("body.0.bias", "body.3.bias", "body.6.bias"):
                assert torch.allclose(mine, expected, rtol=0, atol=1e-10), name


def test_unstacked_weights_are_those_of_the_stack() -> None:
    networks = [CNN(0), CNN(1)]
    stack = Stack(networks)
    before = [model.body[0].weight.clone() for model in networks]
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.mul_(2)
    for model, was in zip(stack.unstack(), before):
        assert torch.equal(model.body[0].weight, 2 * was)


def test_bad_stacks(fonts: advnb.Dataset) -> None:
    for networks in ([], [nn.Linear(2, 2)], CNN(0)):
        with refused("made of networks of advnb.models"):
            Stack(networks)
    for odd in (CNN(0, classes=5), MLP(0), CNN(0, shape=(1, 32, 32))):
        with refused("must be of one form"):
            Stack([CNN(0), odd])
    with refused("Standardise cannot be stacked: train each"):
        Stack([MadryCIFAR(0), MadryCIFAR(1)])
    for seeds in (0, [0], [0, 1, 2]):
        with refused("2 networks need as many seeds"):
            fit(Stack([CNN(0), CNN(1)]), fonts.train(20), recipes.normal(), seed=seeds)
    with refused("1 networks need as many seeds"):
        fit(CNN(0), fonts.train(20), recipes.normal(), seed=[0, 1])


def test_a_search_for_training_is_the_search(fonts: advnb.Dataset) -> None:
    """Where no graph can be recorded: from each seed's start, for its part of the rows."""
    model, split = CNN(0).eval(), fonts.test(20)
    attack = Attack(Pixels(0.3), steps=4, keep="strongest", seed=3)
    found = Recorded(attack, model)
    assert torch.equal(found(split, [3]), attack(model, split).x[0])
    other = replace(attack, seed=8)(model, split[10:]).x[0]
    mine = attack(model, split[:10]).x[0]
    assert torch.allclose(found(split, [3, 8]), torch.cat([mine, other]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("keep", ["strongest", "first"])
def test_a_search_of_many_rows_is_each_networks_own(keep: str) -> None:
    """More rows than a search takes at a time, and rows that leave it."""
    networks = [WongKolter(seed).double().eval() for seed in range(5)]
    attack = Attack(Pixels(0.02), steps=6, lr=0.005, keep=keep, batch_size=40)  # type: ignore[arg-type]
    split = Split(noise(5 * 50, 1, 28, 28), torch.arange(250) % 10)
    seeds = [3, 1, 4, 1, 5]
    together = Recorded(attack, Stack(networks).eval())(split, seeds)
    for k, (network, seed) in enumerate(zip(networks, seeds)):
        rows = slice(50 * k, 50 * (k + 1))
        alone = Recorded(attack, network)(split[rows], [seed])
        assert torch.allclose(together[rows], alone, rtol=0, atol=1e-9)


def test_a_stack_is_not_looked_at_as_one(fonts: advnb.Dataset) -> None:
    stack = Stack([CNN(0), CNN(1)]).eval()
    for look in (advnb.accuracy, Attack(Pixels(0.1), steps=1)):
        with refused("look at each of its networks, unstack()"):
            look(stack, fonts.test(20))


def test_networks_that_cannot_be_stacked_train_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advnb.trained._stackable", lambda *_: False)
    curves.trained.cache_clear()
    cell = Cell("fonts", "CNN", "normal", 100, 1, "error", 100, epochs=1)
    found = Measure(str(tmp_path), together=(0, 1, 2))(cell)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    curves.trained.cache_clear()
    assert found == Measure()(cell)
    curves.trained.cache_clear()


@pytest.mark.parametrize(("model", "able"), [("CNN", True), ("MadryCIFAR", False)])
def test_which_networks_can_be_stacked(model: str, able: bool, fonts: advnb.Dataset) -> None:
    assert trained._stackable({"model": model, "seed": 0}, fonts) is able


def test_seeds_of_a_curve_train_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    def counted(model: nn.Module, *args: object, **settings: object) -> nn.Module:
        runs.append(settings["seed"])
        return fit(model, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("advnb.trained.fit", counted)
    curves.trained.cache_clear()
    cell = Cell("fonts", "CNN", "normal", 200, 1, "error", 300, epochs=1)
    together = Measure(str(tmp_path), together=(0, 1, 2))
    rates = {seed: together(replace(cell, seed=seed)) for seed in (1, 0, 2)}
    assert runs == [[0, 1, 2]]
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert not list(tmp_path.glob("*.checkpoint"))
    for seed, rate in rates.items():
        alone = Measure()(replace(cell, seed=seed))
        assert rate.value == pytest.approx(alone.value, abs=0.05)  # rounding tips a few images
    assert len(set(rates.values())) == 3
    assert together(replace(cell, seed=3)) == Measure()(replace(cell, seed=3))
    curves.trained.cache_clear()


def test_a_stack_that_was_killed_between_two_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has learned is in its checkpoint: no step is trained twice, and none is left."""
    cell = Cell("fonts", "CNN", "normal", 100, 0, "error", 20, epochs=1)
    measure = Measure(str(tmp_path), together=(0, 1, 4))
    save, saved = trained.save_tensors, []

    def killed(path: Path, *args: object, **about: object) -> Path:
        if saved:
            raise KeyboardInterrupt
        saved.append(path)
        return save(path, *args, **about)  # type: ignore[arg-type]

    curves.trained.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(trained, "save_tensors", killed)
        with pytest.raises(KeyboardInterrupt):
            measure(replace(cell, seed=4))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr("advnb.training._images", lambda *_: pytest.fail("trains again"))
        rates = [measure(replace(cell, seed=seed)) for seed in (4, 0, 1)]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".safetensors"] * 3
    curves.trained.cache_clear()
    whole = Measure(str(tmp_path / "whole"), together=(0, 1, 4))
    assert rates == [whole(replace(cell, seed=seed)) for seed in (4, 0, 1)]
    curves.trained.cache_clear()


def test_frozen_layers_stay_frozen(fonts: advnb.Dataset) -> None:
    networks = [CNN(seed) for seed in range(2)]
    for network in networks:
        network.body[0].requires_grad_(False)
        network.head.requires_grad_(False)
    before = [network.state_dict() for network in networks]
    before = [{k: v.clone() for k, v in state.items()} for state in before]
    stack = Stack(networks)
    fit(stack, fonts.train(40), recipes.normal(), epochs=1, seed=[0, 1], progress=False)
    for state, network in zip(before, stack.unstack()):
        after = network.state_dict()
        for name in ("body.0.weight", "head.weight", "head.bias"):
            assert torch.equal(state[name], after[name]), name
        assert not torch.equal(state["body.3.weight"], after["body.3.weight"])
    networks[0].requires_grad_()
    with refused("frozen in some of the networks"):
        Stack(networks)


def test_an_attack_refuses_a_stack(fonts: advnb.Dataset) -> None:
    for count in (1, 2, 3):
        with refused("a Stack is for training"):
            Attack(Pixels(0.1), steps=1)(Stack([CNN(k) for k in range(count)]), fonts.test(8))
