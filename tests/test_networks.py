"""The papers' networks against hand-written forward passes, what any network must be able to do,
other people's models wrapped for pixels, and what is put back after a look at a model."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18

import advnb
from advnb import Attack, Pixels, Split
from advnb.layers import Standardise
from advnb.models import MLP, NETWORKS, MadryCIFAR, Network, full_precision, kept_random, wrap
from advnb.recipes import Decay, normal
from advnb.stats import generator

from .conftest import ROOT, refused

COUNTS = {
    "CNN": 100_262, "CelebACNN": 196_622, "WideCNN": 371_958, "MLP": 152_330,
    "ResNet13": 2_776_522, "VGG": 15_014_922, "MadryMNIST": 3_274_634, "MadryCIFAR": 45_901_914,
    "WongKolter": 166_406, "WRM": 710_218,
}  # fmt: skip
WIDTHS = {
    "CNN": 100, "CelebACNN": 20, "WideCNN": 100, "MLP": 128, "ResNet13": 256, "VGG": 1024,
    "MadryMNIST": 1024, "MadryCIFAR": 640, "WongKolter": 100, "WRM": 128,
}  # fmt: skip
SHAPES = {"CelebACNN": (3, 56, 48), "WideCNN": (3, 32, 32), "MadryCIFAR": (3, 32, 32)}
RELU_LAST = ("ResNet13", "VGG", "MadryMNIST", "WongKolter")  # the others' features go below 0
LEAST = {"CNN": 8, "CelebACNN": 16, "WideCNN": 8, "VGG": 4, "MadryMNIST": 4, "WongKolter": 4,
         "WRM": 28}  # fmt: skip
SIZES = {"grey": (1, 28, 28), "colour": (3, 32, 32)}
every_network = pytest.mark.parametrize("name", NETWORKS)


def weighted(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def pixels(n: int, shape: tuple[int, ...], seed: int = 4) -> Tensor:
    return torch.rand(n, *shape, generator=generator(seed))


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> Network:
    """A network of the papers in float64 and eval mode; no bias is 0, no statistic 0 or 1."""
    network, stream = NETWORKS[request.param](1).double().eval(), generator(2)
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1:
            noise = torch.randn(tensor.shape, generator=stream) * 0.3
            tensor.add_(noise.abs() if name.endswith("var") else noise)
    return network


every_model = pytest.mark.parametrize("model", NETWORKS, indirect=True)


# what they are


@every_network
def test_sizes(name: str) -> None:
    network = NETWORKS[name]()
    assert count(network) == COUNTS[name]
    assert network.shape == SHAPES.get(name, (1, 28, 28))
    assert network.classes == (2 if name == "CelebACNN" else 10)


def test_wong_and_kolters_network_for_colour_images() -> None:
    assert count(NETWORKS["WongKolter"](shape=(3, 32, 32))) == 214_918


class Hand:
    """Layers by hand; each takes the next of a state_dict's tensors."""

    def __init__(self, model: nn.Module) -> None:
        self.rest = [t for name, t in model.state_dict().items() if "num_batches" not in name]

    def conv(self, x: Tensor, stride: int = 1, padding: int = 1, bias: bool = True) -> Tensor:
        weight = self.rest.pop(0)
        return F.conv2d(x, weight, self.rest.pop(0) if bias else None, stride, padding)

    def plain(self, x: Tensor, stride: int = 1) -> Tensor:
        return self.conv(x, stride, bias=False)

    def norm(self, x: Tensor, eps: float = 1e-5) -> Tensor:
        rows = (t.view(-1, *[1] * (x.ndim - 2)) for t in self.rest[:4])
        self.rest = self.rest[4:]
        weight, bias, mean, variance = rows
        return weight * (x - mean) / (variance + eps).sqrt() + bias

    def leaky(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(x, 1e-3), 0.1)

    def linear(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.rest.pop(0).T + self.rest.pop(0)


def cnn(by: Hand, x: Tensor, convolutions: int = 3) -> tuple[Tensor, Tensor]:
    for _ in range(convolutions):
        x = by.norm(by.conv(x, 2)).relu()
    h = by.linear(x)
    return h, by.linear(h)


def mlp(by: Hand, x: Tensor) -> tuple[Tensor, Tensor]:
    for _ in range(4):
        x = by.norm(by.linear(x).relu())
    return x, by.linear(x)


def resnet13(by: Hand, x: Tensor) -> tuple[Tensor, Tensor]:
    x = by.norm(by.plain(x)).relu()
    for stride, changes in ((1, 0), (1, 0), (2, 1), (1, 0), (2, 1), (1, 0)):
        branch = by.norm(by.plain(by.norm(by.plain(x, stride)).relu()))
        x = (branch + (by.norm(by.conv(x, 2, 0, bias=False)) if changes else x)).relu()
    h = x.mean((2, 3))
    return h, by.linear(h)


def vgg(by: Hand, x: Tensor) -> tuple[Tensor, Tensor]:
    for block in (1, 2, 2):
        x = x if block == 1 else F.max_pool2d(x, 2)
        for _ in range(block):
            x = by.norm(by.conv(x)).relu()
    h = by.linear(x).relu()
    return h, by.linear(by.linear(h).relu())


def madry_mnist(by: Hand, x: Tensor) -> tuple[Tensor, Tensor]:
    for _ in range(2):
        x = F.max_pool2d(by.conv(x, padding=2).relu(), 2)
    h = by.linear(x).relu()
    return h, by.linear(h)


def madry_cifar(by: Hand, x: Tensor) -> tuple[Tensor, Tensor]:
    flat = x.flatten(1)
    x = (x - flat.mean(1).view(-1, 1, 1, 1)) / flat.std(1, correction=0).view(-1, 1, 1, 1)
    x = by.plain(x)
    for before, after, first in ((16, 160, 1), (160, 320, 2), (320, 640, 2)):
        for unit in range(5):
            ready = by.leaky(x)
            kept = ready if before == 16 and unit == 0 else x
            if unit == 0:
                kept = F.avg_pool2d(kept, first)
                zeros = torch.zeros_like(kept[:, :1]).repeat(1, (after - before) // 2, 1, 1)
                kept = torch.cat([zeros, kept, zeros], 1)
            x = kept + by.plain(by.leaky(by.plain(ready, first if unit == 0 else 1)))
    h = by.leaky(x).mean((2, 3))
    return h, by.linear(h)


def wong_kolter(by: Hand, x: Tensor) -> tuple[Tensor, Tensor]:
    h = by.linear(by.conv(by.conv(x, 2).relu(), 2).relu()).relu()
    return h, by.linear(h)


def wrm(by: Hand, x: Tensor) -> tuple[Tensor, Tensor]:
    h = F.elu(by.conv(F.elu(by.conv(F.elu(by.conv(x, 2, 3)), 2, 0)), 1, 0)).flatten(1)
    return h, by.linear(h)


HANDS: dict[str, Callable[[Hand, Tensor], tuple[Tensor, Tensor]]] = {
    "CNN": cnn, "CelebACNN": lambda by, x: cnn(by, x, 4), "WideCNN": cnn, "MLP": mlp,
    "ResNet13": resnet13, "VGG": vgg, "MadryMNIST": madry_mnist, "MadryCIFAR": madry_cifar,
    "WongKolter": wong_kolter, "WRM": wrm,
}  # fmt: skip


@every_model
def test_features_and_logits_by_hand(model: Network) -> None:
    name, by = type(model).__name__, Hand(model)
    x = pixels(2, model.shape).double()
    with torch.no_grad():
        features, logits = HANDS[name](by, x)
        assert not by.rest  # every tensor was used
        got, output = model.features(x), model(x)
        assert torch.equal(output, model.head(got))
    assert (got.shape, output.shape) == ((2, WIDTHS[name]), (2, model.classes))
    torch.testing.assert_close(got, features, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output, logits, rtol=1e-9, atol=1e-9)
    assert bool((features >= 0).all()) == (name in RELU_LAST)
    assert (logits[0] - logits[1]).abs().max() > 1e-4  # far above the tolerance: images matter


def test_the_width_of_the_cnns_features_follows_the_classes() -> None:
    network = NETWORKS["CNN"](shape=(3, 33, 20), classes=4).eval()
    x = pixels(2, (3, 33, 20))
    assert network(x).shape == (2, 4)
    assert network.features(x).shape == (2, 40)


# initial weights


def law(name: str, layer: nn.Conv2d | nn.Linear) -> tuple[float, float, float | None]:
    """Of a layer's weights the standard deviation and the largest possible; its biases' value,
    None where they follow the weights' law."""
    fan_in, fan_out = layer.weight[0].numel(), layer.weight[:, 0].numel()
    if name in ("CNN", "CelebACNN", "WideCNN", "MLP"):
        return math.sqrt(2 / 3 / fan_in), math.inf, 0.0
    if name == "MadryMNIST":
        return 0.1 * 0.87962566, 0.2, 0.1  # of a standard normal that is cut at +-2
    if isinstance(layer, nn.Conv2d) and name in ("ResNet13", "VGG", "MadryCIFAR"):
        return math.sqrt(2 / fan_out), math.inf, 0.0
    limit = math.sqrt((3 if name == "MadryCIFAR" else 1) / fan_in)
    return limit / math.sqrt(3), limit, None if name in ("WongKolter", "WRM") else 0.0


@every_network
def test_initial_weights(name: str) -> None:
    network = NETWORKS[name](3)
    assert all(m.training for m in network.modules())
    for layer in weighted(network):
        w, (std, most, bias) = layer.weight.detach(), law(name, layer)
        assert w.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * w.numel()))
        assert abs(w.mean().item()) < 5 * std / math.sqrt(w.numel())
        largest = w.abs().max().item()
        assert 0.9 * most < largest <= most * (1 + 1e-6) if most < math.inf else largest > 2 * std
        if layer.bias is None:
            continue
        if bias is None:
            assert 0.5 * most < layer.bias.abs().max() <= most * (1 + 1e-6)
            assert abs(layer.bias.mean()) < 5 * std / math.sqrt(len(layer.bias))
        else:
            assert layer.bias.eq(torch.tensor(bias)).all()
    for m in network.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            assert all(t.eq(1).all() for t in (m.weight, m.running_var))
            assert all(t.eq(0).all() for t in (m.bias, m.running_mean))


@every_network
def test_the_seed_decides_the_weights(name: str) -> None:
    made = []
    for seed in (1, 1, 2):
        torch.rand(1)  # another global random state each time
        before = torch.get_rng_state()
        made.append(NETWORKS[name](seed))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, *(network.state_dict().values() for network in made[:2])))
    first, _, other = ([layer.weight for layer in weighted(network)] for network in made)
    assert not any(map(torch.equal, first, other))
    assert len({w.flatten()[0].item() for w in first}) == len(first)  # no layer repeats one


# standardised images


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-6])
def test_standardise_against_tensorflows_formula(spread: float) -> None:
    x = 0.4 + spread * (pixels(5, (3, 9, 7)).double() - 0.4)
    for image, got in zip(x * 255, Standardise()(x)):
        variance = ((image - image.mean()) ** 2).mean()
        deviation = max(math.sqrt(variance), 1 / math.sqrt(image.numel()))
        want = (image - image.mean()) / deviation
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)
        assert (want.std() < 0.1) == (spread == 1e-6)  # only there the least deviation counts


@pytest.mark.parametrize("model", ["MadryCIFAR"], indirect=True)
def test_madrys_wide_network_sees_no_contrast(model: Network) -> None:
    x = pixels(1, (3, 32, 32)).double()
    pale, dark = (advnb.scale_shift(x, *pair) for pair in ((0.7, 0.1), (0.5, -0.25)))
    with torch.no_grad():
        before, *same, other = model(torch.cat([x, pale, dark, x**2]))
    for after in same:
        torch.testing.assert_close(after, before)
    assert not torch.allclose(other, before)


def test_images_of_one_colour_give_finite_logits_and_gradients() -> None:
    values = torch.tensor([0.0, 0.3, 1.0])
    x = values.view(3, 1, 1, 1).repeat(1, 3, 32, 32).requires_grad_()
    output = MadryCIFAR().eval()(x)
    (gradient,) = torch.autograd.grad(output[:, 0].sum(), x)
    assert output.isfinite().all()
    assert gradient.isfinite().all()
    assert Standardise()(x).abs().max() < 0.01


# what any network must be able to do


def toy(n: int, shape: tuple[int, int, int]) -> Split:
    """Images of four classes: one quadrant is bright, and which one is the class."""
    x, y = 0.2 * pixels(n, shape, seed=6), torch.arange(n) % 4
    for image, label in zip(x, y.tolist()):
        rows, columns = (slice(None, side // 2) for side in shape[1:])
        image.rot90(label, (1, 2))[:, rows, columns] += 0.7
    return Split(x, y)


def loss(network: nn.Module, split: Split) -> float:
    with torch.no_grad():
        return F.cross_entropy(network(split.x), split.y).item()


@pytest.mark.parametrize("size", SIZES)
@every_network
def test_a_short_training_and_an_attack(name: str, size: str) -> None:
    if name in ("MadryCIFAR", "ResNet13") and size == "grey":
        pytest.skip("in colour, for it takes many seconds")
    network = NETWORKS[name](5, shape=SIZES[size], classes=4).eval()
    for m in network.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.momentum = 1.0  # the last batch's statistics: a mean would take more steps
    heavy = name == "MadryCIFAR"
    split, before = toy(4 if heavy else 32, SIZES[size]), math.log(4)  # what guessing costs
    assert loss(network, split) > 0.95 * before
    epochs = {"MadryCIFAR": 3, "ResNet13": 5, "VGG": 6, "WongKolter": 40}.get(name, 20)
    rate = {"MadryCIFAR": 2e-4, "WongKolter": 5e-3}.get(name, 2e-3)
    recipe = normal(batch_size=4 if heavy else 16, schedule=Decay(rate))
    assert advnb.fit(network, split, recipe, epochs=epochs, progress=False) is network
    assert loss(network, split) < 0.7 * before

    few, state = split[:4], {k: v.clone() for k, v in network.state_dict().items()}
    attack = Attack(
        Pixels(0.05), steps=2, lr=0.025, optimizer="sign", start="zero", keep="strongest"
    )
    result = attack(network, few)
    change = (result.x[0].double() - few.x.double()).abs().amax((1, 2, 3))
    assert change.max() <= 0.05
    assert change.min() > 0.02
    assert 0 <= result.x.min() <= result.x.max() <= 1
    assert loss(network, few.with_x(result.x[0])) > loss(network, few)
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


# what they refuse


@every_network
def test_images_that_are_too_small(name: str) -> None:
    side = LEAST.get(name, 1)
    with torch.no_grad():
        smallest = NETWORKS[name](shape=(1, side, side), classes=3).eval()
        assert smallest(pixels(2, (1, side, side))).shape == (2, 3)
    if side > 1:
        size = f"1x{side - 1}x{side - 1}"
        with refused(f"^{name} needs larger images than {size}$"):
            NETWORKS[name](shape=(1, side - 1, side - 1))


@pytest.mark.parametrize(
    "shape", [(28, 28), (1, 1, 28, 28), (1, 28.0, 28), (0, 28, 28), (1, -28, 28), (True, 8, 8),
              "abc", ("1", "28", "28"), ()]
)  # fmt: skip
def test_shapes_that_are_none(shape: tuple) -> None:
    with refused(r"shape('s)? .*\(C, H, W\)"):
        MLP(shape=shape)


@pytest.mark.parametrize("classes", [0, -1, 2.0, True, "10", [10]])
def test_numbers_of_classes_that_are_none(classes: object) -> None:
    with refused("classes must be a whole number >= 1"):
        MLP(classes=classes)


@pytest.mark.parametrize("seed", ["a", 1.0, None])
def test_seeds_that_are_none(seed: object) -> None:
    with refused("a seed must be a whole number"):
        MLP(seed)


# other people's models


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def foreign() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return resnet18(weights=None, num_classes=10).eval()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def test_a_wrapped_model_reads_standardised_images() -> None:
    x, wrapped = pixels(4, (3, 5, 6)), wrap(nn.Flatten(), MEAN, STD)
    want = [(x[:, c].double() - MEAN[c]) / STD[c] for c in range(3)]
    torch.testing.assert_close(wrapped(x).double(), torch.stack(want, 1).flatten(1))
    grey = wrap(nn.Flatten(), [0.5], [0.25])(x[:, :1])
    torch.testing.assert_close(grey, ((x[:, :1] - 0.5) * 4).flatten(1))


def test_a_wrapped_model_is_attacked_in_pixels(foreign: nn.Module) -> None:
    wrapped, split = wrap(foreign, MEAN, STD).eval(), Split(pixels(4, (3, 32, 32)), torch.arange(4))
    attack = Attack(Pixels(0.03), steps=2, lr=0.03, optimizer="sign", keep="strongest")
    result = attack(wrapped, split)
    change = (result.x[0].double() - split.x.double()).abs()
    assert change.max() <= 0.03
    assert change.flatten(1).amax(1).min() > 0.029
    assert 0 <= result.x.min() <= result.x.max() <= 1
    assert loss(wrapped, split.with_x(result.x[0])) > loss(wrapped, split)
    assert all(p.grad is None for p in foreign.parameters())


def test_features_of_a_wrapped_model_are_what_the_last_layer_reads(foreign: nn.Module) -> None:
    wrapped, x = wrap(foreign, MEAN, STD), pixels(3, (3, 32, 32))
    body = nn.Sequential(*list(foreign.children())[:-1])
    standard = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        features = wrapped.features(x)
        assert features.shape == (3, 512)
        torch.testing.assert_close(features, body(standard).flatten(1))
        torch.testing.assert_close(foreign.fc(features), wrapped(x))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(wrapped.features(x).sum(), x)
    assert gradient.abs().amax((1, 2, 3)).min() > 0
    assert hooks(wrapped) == 0


def test_features_where_there_are_several_linear_layers() -> None:
    network, x = NETWORKS["CNN"](shape=(3, 32, 32)).eval(), pixels(3, (3, 32, 32))
    features = wrap(network, [0.5] * 3, [0.25] * 3).features(x)
    torch.testing.assert_close(features, network.features((x - 0.5) * 4))


def test_no_hook_stays_after_an_error(foreign: nn.Module) -> None:
    wrapped = wrap(foreign, [0.5], [0.5])
    with pytest.raises(RuntimeError, match="channels"):
        wrapped.features(pixels(2, (1, 32, 32)))
    assert hooks(wrapped) == 0


def test_a_model_without_a_linear_layer_has_no_features() -> None:
    with refused("no linear layer", RuntimeError):
        wrap(nn.Flatten(), MEAN, STD).features(pixels(2, (3, 4, 4)))


def test_a_wrapped_model_moves_and_is_saved_whole(foreign: nn.Module) -> None:
    x, wrapped = pixels(3, (3, 32, 32)), wrap(foreign, MEAN, STD)
    other = wrap(resnet18(weights=None, num_classes=10), [0.0] * 3, [1.0] * 3).eval()
    with torch.no_grad():
        assert not torch.allclose(other(x), wrapped(x))
        other.load_state_dict(wrapped.state_dict())
        assert torch.equal(other(x), wrapped(x))
        precise = other.to(torch.float64)(x.double())
        assert precise.dtype == torch.float64
        torch.testing.assert_close(precise.float(), wrapped(x), rtol=1e-3, atol=1e-3)
    assert {t.dtype for t in (other.mean, other.std, other.module.fc.weight)} == {torch.float64}


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5, 0.5], [0.5], "mean has 2 numbers and std 1"),
        ([], [], "mean has 0 numbers"),
        ([123.7], [58.4], r"divide by 255.*\[123.7\] and \[58.4\]"),
        ([-0.1], [0.5], "mean must lie in"),
        ([math.nan], [0.5], "mean must lie in"),
        ([0.5], [0.0], "std in"),
        ([0.5], [-0.5], "std in"),
        ([0.5], [math.inf], "std in"),
        (0.5, 0.5, "lists of one number a channel; got 0.5"),
        ("abc", [0.5], "lists of one number a channel; got 'abc'"),
        ([0.5], None, "lists of one number a channel; got"),
    ],
)
def test_what_no_image_is_standardised_by(mean: object, std: object, message: str) -> None:
    with refused(message):
        wrap(nn.Flatten(), mean, std)


def test_a_wrapped_model_keeps_its_mode() -> None:
    assert wrap(nn.Flatten().eval(), MEAN, STD).training is False
    assert wrap(nn.Flatten(), MEAN, STD).training is True


class Heads(nn.Module):
    """A linear layer called by keyword, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(input=x.flatten(1))


def test_features_of_the_layer_that_is_really_called() -> None:
    x = pixels(2, (3, 2, 2))
    wrapped = wrap(Heads(), MEAN, STD)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    assert torch.allclose(wrapped.features(x), ((x - mean) / std).flatten(1))
    with refused("no linear layer", RuntimeError):
        wrap(nn.Flatten(), MEAN, STD).features(x)


def test_a_wrapped_model_refuses_other_channels() -> None:
    model = wrap(nn.Flatten(), MEAN, STD)
    with refused("wrapped for 3 channels"):  # and does not make three of one
        model(pixels(2, (1, 4, 4)))


def test_only_a_module_is_wrapped() -> None:
    with refused("must be a torch.nn.Module; got function"):
        wrap(lambda x: x, MEAN, STD)


# what is put back


GPU = torch.device("cuda")


def rounded() -> bool:
    return torch.backends.cudnn.allow_tf32


@pytest.fixture
def rough() -> Iterator[None]:
    """PyTorch's default, or an earlier choice: convolutions with few bits."""
    before = rounded()
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("rough")
def test_full_precision_on_a_gpu_and_the_earlier_choice_afterwards() -> None:
    with full_precision(GPU):
        assert not rounded()
        with full_precision(GPU):
            assert not rounded()
        assert not rounded()
    assert rounded()

    def broken() -> None:
        with full_precision(GPU):
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert rounded()


@pytest.mark.usefixtures("rough")
def test_full_precision_lasts_until_the_last_thread_leaves() -> None:
    first, second = full_precision(GPU), full_precision(GPU)
    with ExitStack() as stack:
        with first:
            stack.enter_context(second)
        assert not rounded()  # the first has gone, the second is still inside
    assert rounded()


def test_building_a_network_puts_no_random_state_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A panel builds one on its thread while the main thread draws."""
    layer = nn.Conv2d.__init__

    def meanwhile(self: nn.Conv2d, *args: object, **named: object) -> None:
        layer(self, *args, **named)  # type: ignore[arg-type]
        torch.default_generator.manual_seed(77)

    monkeypatch.setattr(nn.Conv2d, "__init__", meanwhile)
    NETWORKS["CNN"](0)
    assert torch.default_generator.initial_seed() == 77


@pytest.mark.usefixtures("rough")
def test_full_precision_changes_nothing_elsewhere() -> None:
    with full_precision(torch.device("cpu")):
        assert rounded()
    assert rounded()


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this PyTorch has no such")
def test_full_precision_beside_the_newer_settings() -> None:
    code = """if True:
        import torch
        from advnb.models import full_precision
        torch.backends.cudnn.rnn.fp32_precision = "ieee"
        try:
            torch.backends.cudnn.allow_tf32
        except RuntimeError:
            print("unreadable")
        print(torch.backends.cudnn.conv.fp32_precision)
        with full_precision(torch.device("cuda")):
            print(torch.backends.cudnn.conv.fp32_precision)
        print(torch.backends.cudnn.conv.fp32_precision)
    """
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["unreadable", "tf32", "ieee", "tf32"]


def test_the_random_state_comes_back() -> None:
    before = torch.get_rng_state()
    with kept_random(torch.device("cpu")):
        assert torch.equal(torch.get_rng_state(), before)  # nothing is seeded
        torch.rand(3)
        assert not torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.get_rng_state(), before)

    def broken() -> None:
        with kept_random(torch.device("cpu")):
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert torch.equal(torch.get_rng_state(), before)
