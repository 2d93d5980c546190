"""The cheaper pass that attacks take: the same numbers as the network's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import advnb
from advnb import Attack, Pixels
from advnb.models import CNN, NETWORKS, Network
from advnb.passes import Convolution, Linear, quickened
from advnb.search import Search
from advnb.stacks import Stack

SMALL = {"ResNet13", "VGG", "MadryMNIST", "MadryCIFAR"}  # for these a few images must do


def trained(name: str, **settings: object) -> Network:
    """A network whose batch normalisations have something to do."""
    model = NETWORKS[name](0, **settings).double().eval()
    stream = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(generator=stream)
            layer.running_var.uniform_(0.5, 2, generator=stream)
            layer.weight.data.uniform_(0.5, 2, generator=stream)
            layer.bias.data.normal_(generator=stream)
    return model


def looked(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of a function of them by x."""
    x = x.clone().requires_grad_()
    output = model(x)
    return output.detach(), torch.autograd.grad(output.logsumexp(1).sum(), x)[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_same_logits_and_gradients(name: str) -> None:
    model = trained(name)
    x = torch.rand(2 if name in SMALL else 9, *model.shape, dtype=torch.float64)
    for mine, own in zip(looked(quickened(model), x), looked(model, x)):
        assert torch.allclose(mine, own, rtol=1e-9, atol=1e-12 * own.abs().max())


@pytest.mark.parametrize("shape", [(1, 17, 23), (3, 32, 32), (2, 8, 64), (5, 28, 28)])
def test_other_shapes_and_channels(shape: tuple[int, int, int]) -> None:
    model = trained("CNN", shape=shape, classes=3)
    x = torch.rand(4, *shape, dtype=torch.float64)
    for mine, own in zip(looked(quickened(model), x), looked(model, x)):
        assert torch.allclose(mine, own, rtol=1e-9, atol=1e-12)


def test_normalisations_are_gone() -> None:
    made = quickened(trained("CNN"))
    assert made is not None
    kinds = [type(layer) for layer in made.modules()]
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(Convolution) == 3


def linears(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(layer.weight.shape) for layer in model.modules() if isinstance(layer, Linear)]


def test_linear_layers_in_a_row_become_one_where_it_has_fewer_weights() -> None:
    assert linears(quickened(trained("CNN"))) == [(1, 576, 10)]
    assert linears(quickened(Stack([CNN(0), CNN(1)]).eval())) == [(2, 576, 10)]
    model = trained("CNN")  # through 3 numbers is cheaper than past them
    model.head = nn.Sequential(nn.Linear(100, 3), nn.Linear(3, 90, bias=False)).double()
    x = torch.rand(6, 1, 28, 28, dtype=torch.float64)
    assert linears(quickened(model)) == [(1, 576, 3), (1, 3, 90)]
    for mine, own in zip(looked(quickened(model), x), looked(model, x)):
        assert torch.allclose(mine, own, rtol=1e-9, atol=1e-12)


def test_numbers_of_a_search_are_the_networks_own() -> None:
    model, split = advnb.zoo.load("fonts-cnn-normal"), advnb.load("fonts").test(40)
    result = Attack(Pixels(0.1), steps=10)(model, split)
    wrong = advnb.models.logits(model, split.with_x(result.x[0])).argmax(1) != split.y
    assert torch.equal(wrong, result.success[0])
    search = Search(Attack(Pixels(0.1)), model, split, torch.Generator())
    search.begin()
    assert isinstance(search.forward, nn.Sequential)


def test_every_search_sees_the_weights_as_they_are() -> None:
    model, x = trained("CNN"), torch.rand(3, 1, 28, 28, dtype=torch.float64)
    before = quickened(model)(x)
    with torch.no_grad():
        model.body[0].weight.mul_(1.5)
    after = quickened(model)(x)
    assert not torch.allclose(before, after)
    assert torch.allclose(after, model(x))


def test_nothing_is_left_on_the_model() -> None:
    model = trained("CNN")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    looked(quickened(model), torch.rand(3, 1, 28, 28, dtype=torch.float64))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


class Own(CNN):
    """Somebody's subclass with another way through."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class OwnFeatures(CNN):
    """The same, halfway."""

    def features(self, x: Tensor) -> Tensor:
        return super().features(x).relu()


def test_what_is_not_known_stays_what_it_is() -> None:
    listened = CNN(0)
    listened.body[2].register_forward_hook(lambda *_: None)
    for model in (Own(0), OwnFeatures(0), listened, CNN(0).bfloat16(), nn.Sequential(CNN(0))):
        assert quickened(model) is model


def test_a_normalisation_without_statistics_stays() -> None:
    model = CNN(0).double().eval()
    model.body[1] = nn.BatchNorm2d(16, track_running_stats=False).double()
    x = torch.rand(6, 1, 28, 28, dtype=torch.float64)
    assert torch.allclose(quickened(model)(x), model(x))


def test_a_forward_put_in_place_of_the_networks_own_is_used() -> None:
    model = trained("CNN")
    model.forward = lambda x: Network.forward(model, 1 - x)  # type: ignore[method-assign]
    assert quickened(model) is model
    inner = trained("CNN")
    inner.body[0].forward = lambda x: x  # type: ignore[method-assign]
    assert quickened(inner) is inner
