"""Looking at a model: what is counted, and that no trace of it is left."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import advnb
from advnb import Attack, Pixels, Split
from advnb.models import CNN, lent, logits
from advnb.stats import generator

from .conftest import refused


def test_accuracy_against_a_hand_count(trained: CNN, fonts: advnb.Dataset) -> None:
    split = fonts.test(457)
    with torch.no_grad():
        right = sum(int(trained(x[None]).argmax()) == int(y) for x, y in zip(split.x, split.y))
    assert 100 < right < 457
    for size in (1, 100, 500):
        rate = advnb.accuracy(trained, split, size)
        assert (rate.n, round(rate.value * rate.n)) == (457, right)
    assert torch.allclose(logits(trained, split, 7), logits(trained, split), atol=1e-4)


class Noisy(nn.Module):
    """Dropout and batch normalisation in train mode, one part of it in eval mode, one frozen."""

    def __init__(self) -> None:
        super().__init__()
        stream = generator(8)
        self.norm, self.drop = nn.BatchNorm2d(1), nn.Dropout(0.5)
        self.frozen = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
        self.head = nn.Linear(2 * 6 * 6, 10)
        for p in self.parameters():
            nn.init.normal_(p, generator=stream)
        self.train()
        self.frozen.eval().requires_grad_(False)
        self.norm.weight.grad = torch.ones(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.rand(1)  # touches the global random state
        return self.head(self.drop(self.frozen(self.norm(x))))


def traces(model: nn.Module) -> dict:
    return {
        "modes": [m.training for m in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "random": torch.get_rng_state(),
    }


def unchanged(before: object, after: object) -> bool:
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(unchanged(before[k], after[k]) for k in before)
    if isinstance(before, list):
        return len(before) == len(after) and all(map(unchanged, before, after))
    return torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after


@pytest.mark.filterwarnings("ignore::advnb.AttackWarning")
@pytest.mark.parametrize("look", ["accuracy", "attack", "iterate", "broken off"])
def test_a_model_is_given_back_as_it_came(look: str) -> None:
    stream = generator(2)
    split = Split(torch.rand(30, 1, 8, 8, generator=stream), torch.arange(30) % 10)
    model, attack = Noisy(), Attack(Pixels(0.1), steps=4, restarts=2, batch_size=8)
    torch.manual_seed(3)
    before = traces(model)
    if look == "accuracy":
        advnb.accuracy(model, split)
    elif look == "attack":
        attack(model, split)
    else:
        for state in attack.iterate(model, split):
            assert unchanged(before, traces(model))  # at every step, not only at the end
            if look == "broken off" and state.step == 2:
                break
    assert unchanged(before, traces(model))


def test_an_error_inside_gives_the_modes_back() -> None:
    model = Noisy()
    before = traces(model)

    def broken() -> None:
        with lent(model):
            assert not any(m.training for m in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert unchanged(before, traces(model))


def test_what_no_accuracy_can_be_counted_for() -> None:
    split = Split(torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 10]))
    with refused("label 10 is out of range for a model of 10 classes"):
        advnb.accuracy(CNN(), split)
    with refused("cannot read torch.float32 images of 1x20x20"):
        advnb.accuracy(CNN(), Split(torch.rand(2, 1, 20, 20), torch.arange(2)))
    broken = CNN()
    nn.init.constant_(broken.head.bias, math.nan)
    with refused("NaN"):
        advnb.accuracy(broken, split[:3])


class InPlace(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x -= 0.2
        return self.inner(x)


def test_a_model_that_changes_its_input_is_refused(trained: CNN, fonts: advnb.Dataset) -> None:
    split = fonts.test(20)
    before = split.x.clone()
    for look in (advnb.accuracy, Attack(Pixels(0.1), steps=1)):
        with refused(r"in place: write x = x - m"):
            look(InPlace(trained), split)
    assert torch.equal(split.x, before)


def test_a_model_that_answers_a_single_image_otherwise(fonts: advnb.Dataset) -> None:
    squeezed = nn.Sequential(CNN(0), Squeezed()).eval()
    with refused(r"must return logits \[1, classes\]; this one gave torch.float32 \[10\]"):
        logits(squeezed, fonts.test(9), 4)
    with refused(r"must return logits \[1, classes\]"):
        Attack(Pixels(0.1), steps=1, batch_size=4)(squeezed, fonts.test(9))


class Squeezed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.squeeze()
