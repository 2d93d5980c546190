"""Certificates against exact enumeration, another toolkit, closed forms and an attack."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import advnb
from advnb import Attack, Pixels, Split, models
from advnb.affine import affine_stages
from advnb.certify import RobustLoss, certified, margins
from advnb.models import CNN, MLP, WongKolter
from advnb.recorded import Recorded
from advnb.relaxations import Box, rounding
from advnb.stats import generator

from .conftest import refused

METHODS = [("ibp", "ibp"), ("crown", "ibp"), ("crown", "backward"), ("dual", "ibp"),
           ("dual", "backward")]  # fmt: skip


def drawn(model: nn.Module, seed: int, size: float = 1.0) -> nn.Module:
    """A model in float64 whose weights and statistics are all drawn from `seed`."""
    stream = generator(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(size * torch.randn(tensor.shape, generator=stream))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_var.uniform_(0.3, 2, generator=stream)
    return model.double().eval()


def tiny(seed: int) -> nn.Module:
    """A random network of a few neurons: linear or convolutional, some with normalisation."""
    kind, flat = seed % 4, nn.Flatten()
    if kind == 0:
        layers = [flat, nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)]
    elif kind == 1:
        layers = [nn.Conv2d(1, 2, 2, 1, 1), nn.ReLU(), nn.Conv2d(2, 1, 2, 2), nn.ReLU(), flat,
                  nn.Linear(1, 2)]  # fmt: skip
    elif kind == 2:  # linear layers in a row, and a normalisation on either side of a ReLU
        layers = [flat, nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3),
                  nn.Linear(3, 4), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)]  # fmt: skip
    else:  # a ReLU at the end, after convolutions only
        layers = [nn.Conv2d(1, 2, (1, 2), bias=False), nn.BatchNorm2d(2), nn.ReLU(),
                  nn.Conv2d(2, 3, (2, 1)), nn.ReLU(), flat]  # fmt: skip
    return drawn(nn.Sequential(*layers), seed)


def images(n: int, shape: tuple[int, ...], seed: int = 0, classes: int = 10) -> Split:
    x = torch.rand(n, *shape, generator=generator(seed)).double()
    return Split(x, torch.arange(n) % classes)


def labelled(model: nn.Module, split: Split) -> Split:
    """The same images, with the model's own labels: all are right."""
    return Split(split.x, models.logits(model, split).argmax(1))


def exact_margin(model: nn.Sequential, x: Tensor, y: int, eps: float) -> float:
    """The smallest margin over the box, by a linear program for every pattern of ReLUs that an
    interval leaves open."""
    shape, n = x.shape, x.numel()
    low, high = (x - eps).clamp_min(0).flatten().numpy(), (x + eps).clamp_max(1).flatten().numpy()
    # every region: matrix and offset of the layer's numbers by the pixels, and A v <= b inside it
    regions = [(np.eye(n), np.zeros(n), np.zeros((0, n)), np.zeros(0))]
    for layer in model:
        if isinstance(layer, nn.ReLU):
            regions = [piece for region in regions for piece in cut(region, low, high)]
            continue
        with torch.no_grad():
            offset = layer(torch.zeros(1, *shape).double())
            basis = torch.eye(shape.numel()).double().view(-1, *shape)
            matrix = (layer(basis) - offset).flatten(1).T.numpy()
        shape, add = offset.shape[1:], offset.flatten().numpy()
        regions = [(matrix @ m, matrix @ c + add, a, b) for m, c, a, b in regions]
    best = np.inf
    for m, c, a, b in regions:
        for other in set(range(len(c))) - {y}:
            found = linprog(m[y] - m[other], a, b, bounds=list(zip(low, high)))
            if found.status == 0:  # else there is no image in this region
                best = min(best, found.fun + c[y] - c[other])
    return best


def cut(region: tuple, low: np.ndarray, high: np.ndarray) -> list[tuple]:
    """What a layer of ReLU cuts a region into."""
    m, c, a, b = region
    middle, reach = m @ (low + high) / 2 + c, np.abs(m) @ (high - low) / 2
    signs = [(-1,) if mid + r <= 0 else (1,) if mid - r >= 0 else (-1, 1)
             for mid, r in zip(middle, reach)]  # fmt: skip
    made = []
    for pattern in product(*signs):
        sign = np.array(pattern)
        on = sign[:, None] > 0
        made.append(
            (m * on, c * on[:, 0], np.vstack([a, -sign[:, None] * m]), np.hstack([b, sign * c]))
        )
    return made


def test_ibp_crown_exact_attack_in_this_order_on_200_networks() -> None:
    gaps = {method: [] for method in METHODS}
    for seed in range(200):
        model, eps = tiny(seed), (0.05, 0.1, 0.2, 0.3)[seed // 4 % 4]
        split = labelled(model, images(1, (1, 2, 2), seed))
        exact = exact_margin(model, split.x[0], int(split.y), eps)
        attack = Attack(Pixels(eps), steps=6, lr=eps / 2, optimizer="sign", loss="margin",
                        keep="strongest", start="zero")  # fmt: skip
        found = models.logits(model, split.with_x(Recorded(attack, model)(split, [0])))
        reached = -advnb.search.margin(found, split.y).item()
        ibp, *others = (margins(model, split, eps, method=m, inner=i).item() for m, i in METHODS)
        assert exact <= reached + 1e-6, seed
        assert ibp <= min(others[:2]) + 1e-12, seed
        assert max(ibp, *others) <= exact + 1e-6, seed
        for method, bound in zip(METHODS, (ibp, *others)):
            gaps[method].append(exact - bound)
    mean = {method: np.mean(gap) for method, gap in gaps.items()}
    assert mean["crown", "backward"] < 0.6 * mean["ibp", "ibp"]  # the bounds say something
    assert mean["crown", "backward"] < mean["dual", "backward"] < mean["ibp", "ibp"]
    assert sum(gap < 1e-6 for gap in gaps["crown", "backward"]) >= 40


@pytest.mark.parametrize("eps", [0.01, 0.1])
def test_dual_is_the_authors_own(eps: float, fonts: advnb.Dataset) -> None:
    """Wong and Kolter's toolkit, told that pixels lie in [0, 1] as they do here."""
    oracle = pytest.importorskip("convex_adversarial")
    model, split = drawn(WongKolter(0, shape=(1, 20, 20)), 1, 0.1), fonts.test(2)
    split = split.with_x(split.x[..., 4:24, 4:24].double())
    theirs = oracle.RobustBounds(nn.Sequential(*model.body, model.head), eps, bounded_input=True)
    with torch.no_grad():
        worst = -theirs(split.x, split.y)
    worst[torch.arange(2), split.y] = torch.inf
    ours = margins(model, split, eps, method="dual", inner="backward")
    assert torch.allclose(ours, worst.amin(1), rtol=0, atol=1e-3 * worst.abs().min())


def test_one_neuron_by_hand() -> None:
    """relu(x - 1/2) against 0 around x = 1/2, and the lines through (low, 0) and (high, high)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    for tensor, values in zip(model.parameters(), ([1.0], [-0.5], [1.0, 0.0], [0.0, 0.1])):
        tensor.data = torch.tensor(values).double().view(tensor.shape)
    split = Split(torch.full((2, 1, 1, 1), 0.5).double(), torch.tensor([0, 1]))
    # class 0: relu - 0.1; class 1: 0.1 - relu, with relu in [0, eps] and above in (z + eps) / 2
    assert margins(model, split, 0.3, method="ibp").tolist() == pytest.approx([-0.1, -0.2])
    assert margins(model, split, 0.3, method="dual").tolist() == pytest.approx([-0.25, -0.2])
    assert margins(model, split, 0.3, method="crown").tolist() == pytest.approx([-0.1, -0.2])


def test_pixels_stay_in_range() -> None:
    """A linear model of a black and a white pixel: neither can leave [0, 1]."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).double()
    model[1].weight.data = torch.tensor([[1.0, -3.0], [0.0, 0.0]]).double()
    model[1].bias.data = torch.tensor([4.0, 0.0]).double()
    split = Split(torch.tensor([0.0, 1.0]).double().view(1, 1, 1, 2), torch.tensor([0]))
    for method, inner in METHODS:
        assert margins(model, split, 0.1, method=method, inner=inner).item() == pytest.approx(1)
        assert margins(model, split, 1.0, method=method, inner=inner).item() == pytest.approx(1)
    ball = split.with_x(torch.full_like(split.x, 0.5))
    assert margins(model, ball, 0.1).item() == pytest.approx(3 - 0.1 * 4)


@pytest.mark.parametrize(("method", "inner"), METHODS)
def test_no_radius_no_loss(method: str, inner: str) -> None:
    for seed in range(8):
        model, split = tiny(seed), images(5, (1, 2, 2), seed, classes=2)
        want = -advnb.search.margin(models.logits(model, split), split.y)
        got = margins(model, split, 0.0, method=method, inner=inner)
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)
        assert torch.equal(certified(model, split, 0.0, method=method, inner=inner), want > 0)


@pytest.mark.parametrize("make", [CNN, MLP, WongKolter])
def test_random_images_of_the_box_are_bounded(make: type[models.Network]) -> None:
    """Corners of the box, and images inside it, for networks of full size."""
    model, split, eps = drawn(make(0), 3, 0.1), images(2, (1, 28, 28)), 0.05
    bounds = {pair: margins(model, split, eps, method=pair[0], inner=pair[1])
              for pair in METHODS if make is not CNN or pair[1] == "ibp"}  # fmt: skip
    stream, least = generator(1), torch.full((2,), torch.inf).double()
    for number in range(200):
        move = torch.rand(split.x.shape, generator=stream).double() * 2 - 1
        x = (split.x + eps * (move.sign() if number % 2 else move)).clamp(0, 1)
        least = torch.minimum(least, -advnb.search.margin(model(x).detach(), split.y))
    for pair, bound in bounds.items():
        assert (bound <= least).all(), pair


# --- rounding


def test_rounding_bounds_what_single_precision_does() -> None:
    for seed in range(6):
        exact = drawn(WongKolter(0), seed, 0.3)
        x = torch.rand(3, 1, 28, 28, generator=generator(seed))
        want, got = exact(x.double()), exact.float()(x)
        stages = affine_stages(exact, (1, 28, 28), dtype=torch.float64)
        allowed = rounding(stages, Box.around(x.double(), 0.01), 2.0**-24)
        gone = (got - want).abs().amax(1)
        assert (gone <= allowed).all()
        assert (gone > 0).all()


def test_a_margin_that_rounding_can_take_is_no_certificate() -> None:
    """1e6 * pixel - 1e6 * pixel + 1e-3: float32 may make anything of the sum."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    model[1].weight.data = torch.tensor([[1e6, -1e6], [0.0, 0.0]])
    model[1].bias.data = torch.tensor([1e-3, 0.0])
    split = Split(torch.full((1, 1, 1, 2), 0.7), torch.tensor([0]))
    assert margins(model, split, 0.0).item() == pytest.approx(1e-3)
    assert not certified(model, split, 0.0).any()
    exact = split.with_x(split.x.double())
    assert certified(model.double(), exact, 0.0).all()


def test_half_precision_certifies_what_it_can() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).bfloat16()
    model[1].weight.data = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]).bfloat16()
    model[1].bias.data = torch.tensor([0.0, 0.5]).bfloat16()
    x = torch.tensor([1.0, 0.63]).bfloat16().view(2, 1, 1, 1).expand(2, 1, 2, 2)
    split = Split(x, torch.tensor([0, 0]))
    assert (margins(model, split, 0.1) > 0).all()
    assert certified(model, split, 0.1).tolist() == [True, False]
    long = WongKolter(0).bfloat16()  # sums of 1,569 terms in 8 bits: nothing can be said
    assert not certified(long, images(3, (1, 28, 28)).with_x(torch.rand(3, 1, 28, 28).bfloat16()),
                         0.0, method="ibp").any()  # fmt: skip


# --- what goes in and what is left behind


def test_certified_is_right_and_robust(trained: models.CNN, fonts: advnb.Dataset) -> None:
    model, split = trained, fonts.test(40)
    right = models.logits(model, split).argmax(1) == split.y
    sure = certified(model, split, 0.001, inner="ibp")
    assert sure.dtype == torch.bool
    assert sure.shape == (40,)
    assert 0 < sure.sum() < right.sum() < 40
    assert not (sure & ~right).any()
    bound = margins(model, split, 0.001, inner="ibp")
    assert bound.dtype == torch.float64
    assert torch.equal(sure, right & sure & (bound > 0))


def test_batch_size_decides_nothing() -> None:
    model, split = drawn(MLP(0), 1, 0.1), images(7, (1, 28, 28))
    whole, single = (margins(model, split, 0.01, batch_size=size) for size in (7, 2))
    assert torch.allclose(whole, single, rtol=1e-10)


def test_nothing_is_left_on_the_model() -> None:
    model = CNN(0).train()
    model.body[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    split, state = images(3, (1, 28, 28)), torch.get_rng_state()
    bound = margins(model, split.with_x(split.x.float()), inner="ibp")
    assert not bound.requires_grad
    assert model.training
    assert model.body[1].training
    assert not model.body[0].weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_wrapped_model_is_certified_in_pixels() -> None:
    """Normalisation inside or folded into the first layer by hand: the same bounds."""
    inner = drawn(nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 2)), 5)
    mean, std = [0.2, 0.6], [0.5, 0.25]
    split = images(4, (2, 2, 2), classes=2)
    wrapped = margins(models.wrap(inner, mean, std).double(), split, 0.05)
    plain = drawn(nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 2)), 5)
    with torch.no_grad():
        scale = torch.tensor(std).double().view(1, 2, 1, 1)
        moved = plain[0].weight / scale * torch.tensor(mean).double().view(1, 2, 1, 1)
        plain[0].bias -= moved.sum((1, 2, 3))
        plain[0].weight /= scale
    assert torch.allclose(wrapped, margins(plain, split, 0.05), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "size"),
    [({"stride": 3}, (8, 9)), ({"padding": (2, 1)}, (5, 7)),
     ({"dilation": 2, "padding": 2}, (7, 8)),
     ({"groups": 2, "stride": (1, 2)}, (6, 7)), ({"bias": False, "padding": 1}, (4, 4))],
)  # fmt: skip
def test_convolutions_of_every_kind(settings: dict, size: tuple[int, int]) -> None:
    """Two of them without a ReLU between are one affine map: all bounds but IBP's are exact."""
    first, second = nn.Conv2d(2, 4, 3, **settings), nn.Conv2d(4, 4, 2, **settings | {"groups": 1})
    body = nn.Sequential(first, second, nn.Flatten()).double()
    split = images(3, (2, *size), classes=2)
    model = drawn(nn.Sequential(*body, nn.Linear(body(split.x).shape[1], 2)), 2)
    eye = torch.eye(split.x[0].numel()).double().view(-1, *split.x.shape[1:])
    slope = (model(eye) - model(torch.zeros_like(eye)))[:, [0, 1]].T.detach()
    output, box = model(split.x).detach(), Box.around(split.x, 0.1)
    for n, y in enumerate(split.y.tolist()):
        row = (slope[y] - slope[1 - y]).view(1, *split.x.shape[1:])
        there = box.middle[n] - row.sign() * box.radius[n]
        want = (output[n, y] - output[n, 1 - y] + (row * (there - split.x[n])).sum()).item()
        for method, inner in METHODS:
            assert margins(model, split, 0.1, method=method, inner=inner)[
                n
            ].item() == pytest.approx(want, rel=1e-9)


def hooked() -> nn.Module:
    model = WongKolter(0)
    model.body[0].register_forward_hook(lambda module, inputs, output: output * 1.01)
    return model


def patched() -> nn.Module:
    model = WongKolter(0)
    model.head.forward = lambda x: nn.Linear.forward(model.head, x) + 1
    return model


class Doubled(WongKolter):
    """Somebody's subclass with another way through."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_what_cannot_be_certified() -> None:
    split = images(2, (1, 28, 28)).with_x(torch.rand(2, 1, 28, 28))
    for model, words in (
        (models.MadryMNIST(0), "no bounds for MaxPool2d.*use convolutions"),
        (models.ResNet13(0), "no bounds for Sum"),
        (models.WRM(0), "no bounds for ELU"),
        (Doubled(0), "no bounds for Doubled"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding="same"), nn.Flatten(), nn.Linear(784, 10)),
         "no bounds for Conv2d"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), nn.Flatten(),
                       nn.Linear(784, 10)), "no bounds for Conv2d"),
        (nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(),
                       nn.Linear(784, 10)), "no bounds for BatchNorm2d"),
        (hooked(), "hooks.*remove them"),
        (patched(), "is a forward.* not their own"),
    ):  # fmt: skip
        with refused(words):
            certified(model.eval(), split, 0.01, method="ibp")
    for settings, words in (
        ({"eps": -0.1}, "eps must be a number in"), ({"eps": 1.5}, "eps"), ({"eps": "x"}, "eps"),
        ({"method": "exact"}, "method must be one of.*crown"), ({"inner": "crown"}, "inner must"),
        ({"batch_size": 0}, "batch_size must be"),
    ):  # fmt: skip
        with refused(words):
            margins(WongKolter(0), split, **settings)
    with refused("out of range"):
        margins(WongKolter(0, classes=3), Split(split.x, torch.tensor([1, 5])))
    with refused("cannot read"):
        margins(WongKolter(0), images(2, (3, 8, 8)))


# --- the losses of certified training


def linear(seed: int = 0) -> nn.Sequential:
    return drawn(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), seed)


@pytest.mark.parametrize("method", ["ibp", "crown", "dual"])
def test_robust_loss_by_hand(method: str) -> None:
    """For a linear model the worst logits are exact: W_j x moved by eps times |W_y - W_j|."""
    model, split = linear(), images(6, (1, 2, 2), classes=3)
    x = split.x * 0.4 + 0.3  # so that the box is whole
    weight, output = model[1].weight, model(x)
    loss = RobustLoss((0.05, 0.25), (0.2, 0.6), method)
    for growth, eps, share in ((0.0, 0.05, 0.2), (0.5, 0.15, 0.4), (1.0, 0.25, 0.6)):
        apart = (weight[split.y][:, None] - weight).abs().sum(2)
        worst = output + eps * apart
        want = (1 - share) * cross_entropy(output, split.y) + share * cross_entropy(worst, split.y)
        got = loss(model, x, output, split.y, growth)
        assert got.item() == pytest.approx(want.item(), rel=1e-12)
        for mine, own in zip(*(torch.autograd.grad(v, list(model.parameters()), retain_graph=True)
                               for v in (got, want))):  # fmt: skip
            assert torch.allclose(mine, own)


@pytest.mark.parametrize(("method", "inner"), METHODS)
def test_robust_loss_is_differentiated_throughout(method: str, inner: str) -> None:
    """The gradient by every weight against central differences."""
    for seed in (0, 1):
        model, split = tiny(seed), images(2, (1, 2, 2), seed, classes=2)
        loss = RobustLoss((0.0, 0.2), (1.0, 1.0), method, inner)

        def value(model: nn.Module, split: Split = split, loss: RobustLoss = loss) -> Tensor:
            return loss(model, split.x, model(split.x), split.y, 1.0)

        gradients = torch.autograd.grad(value(model), list(model.parameters()))
        for parameter, gradient in zip(model.parameters(), gradients):
            for at in range(parameter.numel()):
                moved = []
                for step in (1e-6, -1e-6):
                    with torch.no_grad():
                        parameter.view(-1)[at] += step
                        moved.append(value(model).item())
                        parameter.view(-1)[at] -= step
                slope = (moved[0] - moved[1]) / 2e-6
                assert gradient.view(-1)[at].item() == pytest.approx(slope, abs=1e-6, rel=1e-5)


def test_the_true_class_is_never_worst() -> None:
    """Logits of a model that is certain: the loss vanishes, so nothing is added for class y."""
    model = linear()
    model[1].bias.data += torch.tensor([100.0, 0, 0]).double()
    split = Split(images(3, (1, 2, 2)).x, torch.zeros(3, dtype=torch.int64))
    loss = RobustLoss((0.0, 0.1), (1.0, 1.0))(model, split.x, model(split.x), split.y, 1.0)
    assert loss.item() < 1e-20


def test_bad_losses() -> None:
    with refused("method must be"):
        RobustLoss((0, 0.1), (0, 1), "exact")
    with refused("weight must be"):
        RobustLoss((0, 0.1), (0, 2))
    with refused("eps must be"):
        RobustLoss((0, 3), (0, 1))


@pytest.mark.parametrize("method", ["crown", "dual"])
def test_two_linear_maps_before_the_first_relu(method: str) -> None:
    stream = generator(4)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(18, 8), nn.ReLU(), nn.Linear(8, 3)
    ).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.5, generator=stream)
    split = Split(torch.rand(6, 1, 4, 4, generator=stream).double(), torch.arange(6) % 3)
    low = margins(model, split, 0.05, method=method)
    noise = (torch.rand(200, *split.x.shape, generator=stream) * 2 - 1) * 0.05
    for images in (split.x + noise).double():
        output = model(images)
        true = output.gather(1, split.y[:, None])[:, 0]
        other = output.scatter(1, split.y[:, None], -torch.inf).amax(1)
        assert (true - other >= low.to(true) - 1e-9).all()
    ibp = margins(model, split, 0.05, method="ibp")
    assert (low >= ibp - 1e-9).all()
