"""What is known of a margin, against closed forms and all corners of a small box."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advnb import Attack, Pixels, Split, bounds, plots, stats
from advnb.bounds import STANDINGS, attacked_margins, bracket, growth, standing

from .conftest import refused


def small(seed: int = 0, inputs: int = 4) -> tuple[nn.Module, Split]:
    """A random network with ReLU, and images in double precision with its own labels."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 6), nn.ReLU(), nn.Linear(6, 3)
    ).double().eval()  # fmt: skip
    x = torch.rand(12, 1, 2, inputs // 2, generator=stats.generator(seed)).double()
    with torch.no_grad():
        return model, Split(x, model(x).argmax(1))


def linear() -> tuple[nn.Module, Split]:
    _, split = small()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        return flat, Split(split.x, flat(split.x).argmax(1))


def worst(model: nn.Module, split: Split, eps: float) -> Tensor:
    """The margin of a linear model of two classes where it is smallest, in closed form."""
    weight = (model[1].weight[0] - model[1].weight[1]).detach()  # type: ignore[index]
    bias = (model[1].bias[0] - model[1].bias[1]).detach()  # type: ignore[index]
    sign = 1.0 - 2.0 * split.y
    low, high = (split.x - eps).clamp_min(0), (split.x + eps).clamp_max(1)
    row = sign[:, None] * weight
    x = torch.where(row > 0, low.flatten(1), high.flatten(1))
    return (row * x).sum(1) + sign * bias


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.3, 1.0])
def test_a_linear_model_in_closed_form(eps: float) -> None:
    model, split = linear()
    table, known = bracket(model, split, eps), worst(model, split, eps)
    assert list(table) == ["ibp", "crown", "attack"]
    for name in ("crown", "attack"):  # the attack reaches the corner, the bound is exact
        assert torch.tensor(table[name]).numpy() == pytest.approx(known.numpy(), abs=1e-6)


@settings(max_examples=12)
@given(st.integers(0, 200), st.sampled_from([0.02, 0.1, 0.4]))
@pytest.mark.filterwarnings("ignore:the gradient vanishes")
def test_the_order_of_bounds_corners_and_attack(seed: int, eps: float) -> None:
    model, split = small(seed)
    table = bracket(model, split, eps, inner="backward")
    corners = []
    for signs in product((-1, 0, 1), repeat=4):
        x = (split.x + eps * torch.tensor(signs).double().view(1, 1, 2, 2)).clamp(0, 1)
        with torch.no_grad():
            output = model(x)
        true = output.gather(1, split.y[:, None])[:, 0]
        others = output.scatter(1, split.y[:, None], -torch.inf).amax(1)
        corners.append(true - others)
    least = torch.stack(corners).amin(0).numpy()
    assert (table.ibp <= table.crown + 1e-9).all()
    assert (table.crown <= least + 1e-9).all()
    assert (table.crown <= table.attack + 1e-9).all()
    with torch.no_grad():
        own = model(split.x).topk(2).values
    assert (table.attack.to_numpy() <= (own[:, 0] - own[:, 1]).numpy() + 1e-9).all()


def test_a_given_attack_is_used_within_the_radius() -> None:
    model, split = linear()
    still = Attack(Pixels(0.9), steps=0, start="zero")
    own = attacked_margins(model, split, 0.0)
    assert torch.equal(attacked_margins(model, split, 0.2, still), own)
    strong = Attack(Pixels(0.9), steps=30, lr=0.05, optimizer="sign", loss="margin",
                    keep="strongest")  # fmt: skip
    found = attacked_margins(model, split, 0.2, strong)
    assert torch.allclose(found, worst(model, split, 0.2), atol=1e-6)


def test_growth() -> None:
    model, split = small(3)
    radii = [0.3, 0.0, 0.1]
    table = growth(model, split[4], radii)
    assert list(table.radius) == sorted(radii)
    assert table.attack.is_monotonic_decreasing
    for row in table.itertuples():
        one = bracket(model, split[4], row.radius, inner="backward").iloc[0]
        assert (row.ibp, row.crown) == (one.ibp, one.crown)
        assert row.attack <= one.attack
    picture = plots.margins({"one": table, "again": table}, 0.1, "title", "alt")
    assert len(picture.axes) == 2
    drawn = picture.axes[1].lines[1].get_ydata()
    assert list(drawn) == list(table.crown)
    assert len(picture.png()) > 5000


def test_standings_by_hand() -> None:
    cases = {
        (True, False, True): "certified", (True, False, False): "open",
        (True, True, False): "fooled", (False, False, False): "wrong",
        (False, True, False): "wrong", (True, True, True): "fooled",
    }  # fmt: skip
    right, fooled, sure = torch.tensor(list(cases)).T
    found = standing(right, fooled, sure)
    assert [STANDINGS[k] for k in found.tolist()] == list(cases.values())
    assert found.dtype == torch.int64


def test_bad_input() -> None:
    model, split = small()
    for eps in (-0.1, 2, "a", float("nan")):
        with refused("eps must be a number in \\[0, 1\\]"):
            attacked_margins(model, split, eps)  # type: ignore[arg-type]
    with refused("attack must be an Attack or None"):
        bounds.bracket(model, split, 0.1, 0.1)  # type: ignore[arg-type]
    for eps in (0, 0.1):
        with refused("of pixels in L-infinity: take Attack"):
            attacked_margins(model, split, eps, Attack(Pixels(0.1, "l2")))
    with refused("one image is needed, test\\[:1\\] say"):
        growth(model, split, [0.1])
    with refused("one image is needed"):
        growth(model, split.x, [0.1])  # type: ignore[arg-type]
    with refused("there are no radii"):
        growth(model, split[0], [])
    with refused("inner must be one of"):
        bracket(model, split, 0.1, inner="lp")  # type: ignore[arg-type]
