"""The training loop against plain loops, what it leaves behind, and that a kill loses nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import advnb
from advnb import Attack, OnManifold, Pixels, Split, checkpoints, fit, recipes
from advnb.files import DamagedFileError
from advnb.manifolds import LearnedManifold
from advnb.models import CNN
from advnb.recipes import Decay, OneCycle, Part, Recipe
from advnb.stacks import Stack
from advnb.stats import generator

from .conftest import refused
from .kill import same_after_kills


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def small(n: int = 30, side: int = 6) -> Split:
    stream = generator(n)
    return Split(torch.rand(n, 1, side, side, generator=stream), torch.arange(n) % 4)


def dropout_net(side: int = 6) -> nn.Sequential:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(side * side, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(20, 4),
    )  # fmt: skip
    for number, p in enumerate(model.parameters()):
        nn.init.normal_(p, std=0.3, generator=generator(number))
    return model


# --- schedules and recipes


def test_decay_by_hand() -> None:
    decay = Decay()
    assert decay(0, 20) == pytest.approx(0.0095)
    assert decay(0.5, 20) == pytest.approx(0.01 * 0.95**1.5)
    assert decay(19 + 1 / 3, 20) == pytest.approx(0.01 * 0.95 ** (20 + 1 / 3))
    assert decay(300, 400) == 1e-7


def test_one_cycle_by_hand() -> None:
    cycle = OneCycle(peak=0.02, rise=0.25)
    assert cycle(0, 8) == pytest.approx(0.02 / 25)
    assert cycle(1, 8) == pytest.approx(0.02 * (1 + 1 / 25) / 2)  # half-way up
    assert cycle(2, 8) == pytest.approx(0.02)
    assert cycle(5, 8) == pytest.approx(0.01)  # half-way down
    assert cycle(8, 8) == pytest.approx(0, abs=1e-12)


@given(epoch=st.floats(0, 20), rise=st.floats(0.05, 0.95))
def test_one_cycle_stays_within_its_peak(epoch: float, rise: float) -> None:
    assert -1e-12 <= OneCycle(0.01, rise)(epoch, 20) <= 0.01 + 1e-12


def test_counts() -> None:
    attack = Attack(Pixels(0.1))
    assert recipes.normal().counts() == [100]
    assert recipes.adversarial(attack).counts() == [50, 50]
    assert recipes.adversarial(attack, 1.0).counts() == [100]
    assert recipes.adversarial(attack, 0.25, batch_size=10).counts() in ([8, 2], [7, 3])
    assert Recipe((Part(0.5), Part(0.25), Part(0.25))).counts() == [50, 25, 25]


@given(shares=st.lists(st.integers(1, 9), min_size=1, max_size=5), batch_size=st.integers(50, 500))
def test_counts_sum_to_the_batch(shares: list[int], batch_size: int) -> None:
    parts = tuple(Part(share / sum(shares)) for share in shares)
    counts = Recipe(parts, batch_size=batch_size).counts()
    assert sum(counts) == batch_size
    assert all(abs(c - p.share * batch_size) <= 1 for c, p in zip(counts, parts))


def test_adversarial_trains_from_one_start_with_the_strongest() -> None:
    part = recipes.adversarial(Attack(Pixels(0.1), restarts=5)).parts[1]
    assert (part.attack.restarts, part.attack.keep) == (1, "strongest")
    weak = recipes.adversarial(Attack(Pixels(0.1)), keep="first").parts[1]
    assert weak.attack.keep == "first"


def test_bad_recipes() -> None:
    for parts in ((), (Part(0.5),), (Part(0.9), Part(0.2))):
        with refused("shares must be positive and sum to 1"):
            Recipe(parts)
    with refused("too small"):
        Recipe((Part(0.9), Part(0.1)), batch_size=2)
    for fraction in (0, -0.5, 1.5):
        with refused("fraction"):
            recipes.adversarial(Attack(Pixels(0.1)), fraction)


# --- against plain loops


def plain_loop(model: nn.Module, split: Split, shares: list[int], epochs: int, seed: int) -> None:
    """What `fit` is documented to do with clean images, written out; `shares` sum to 100."""
    adam = torch.optim.Adam(model.parameters(), lr=1, betas=(0.5, 0.9), weight_decay=1e-4)
    n, batches = len(split), math.ceil(len(split) / 100)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(n, generator=generator(seed, 0, epoch)).tolist()
        for b in range(batches):
            rows = [order[(100 * b + i) % n] for i in range(100)]
            adam.param_groups[0]["lr"] = 0.01 * 0.95 ** (epoch + 1 + b / batches)
            output = model(split.x[rows])
            loss, begin = 0, 0
            for share in shares:
                part = slice(begin, begin + share)
                loss = loss + cross_entropy(output[part], split.y[rows][part]) / len(shares)
                begin += share
            adam.zero_grad()
            loss.backward()
            adam.step()


def test_normal_training_is_the_plain_loop(fonts: advnb.Dataset) -> None:
    split, ours, theirs = fonts.train(250), CNN(seed=1), CNN(seed=1)
    fit(ours, split, recipes.normal(), epochs=3, seed=7, progress=False)
    plain_loop(theirs, split, [100], epochs=3, seed=7)
    assert same_weights(ours, theirs)


def test_parts_weigh_the_same(fonts: advnb.Dataset) -> None:
    split, ours, theirs = fonts.train(200), CNN(seed=1), CNN(seed=1)
    recipe = Recipe((Part(0.2), Part(0.3), Part(0.5)))
    fit(ours, split, recipe, epochs=2, seed=7, progress=False)
    plain_loop(theirs, split, [20, 30, 50], epochs=2, seed=7)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()):
        assert torch.allclose(a.float(), b.float(), atol=1e-4)
    plain_loop(unlike := CNN(seed=1), split, [100], epochs=2, seed=7)
    assert not torch.allclose(ours.head.weight, unlike.head.weight, atol=1e-4)


@contextmanager
def watched(model: nn.Module) -> Iterator[list[tuple[bool, Tensor]]]:
    """(in train mode?, input) of every forward pass with gradients or in train mode."""
    seen: list[tuple[bool, Tensor]] = []
    hook = model.register_forward_pre_hook(
        lambda module, inputs: seen.append((module.training, inputs[0].detach().clone()))
    )
    yield seen
    hook.remove()


def test_adversarial_training_step_by_step(fonts: advnb.Dataset) -> None:
    split, model, eps, steps = fonts.train(200), CNN(seed=1), 0.2, 3
    attack = Attack(Pixels(eps), steps=steps, lr=0.1, optimizer="sign", start="uniform")
    recipe = recipes.adversarial(attack, warmup=2.0)
    with watched(model) as seen:
        fit(model, split, recipe, epochs=4, seed=7, progress=False)
    trained_on = [x for training, x in seen if training]
    attacked = [x for training, x in seen if not training and len(x) == 50]
    assert len(trained_on) == 4 * 2  # one forward pass a step, so one update of the statistics
    assert all(len(x) == 100 for x in trained_on)
    assert model.body[1].num_batches_tracked == 8
    assert len(attacked) == 7 * (steps + 1)  # in eval mode; the first step has radius 0
    for step, x in enumerate(trained_on):
        epoch, b = divmod(step, 2)
        order = torch.randperm(200, generator=generator(7, 0, epoch))
        clean = split.x[order[100 * b : 100 * (b + 1)]]
        radius = eps * min(1, (epoch + b / 2) / 2)
        change = (x - clean).abs()
        assert change[:50].max() == 0
        assert change[50:].max() <= radius + 1e-7
        assert change[50:].max() >= 0.99 * radius


def test_starts_differ_from_step_to_step() -> None:
    grey = Split(torch.full((10, 1, 28, 28), 0.5), torch.arange(10))  # where nothing is clipped

    def starts(seed: int) -> list[Tensor]:
        model = CNN(seed=1)
        recipe = recipes.adversarial(Attack(Pixels(0.1), steps=0), 1.0, batch_size=10)
        with watched(model) as seen:
            fit(model, grey, recipe, epochs=2, seed=seed, progress=False)
        return [x - 0.5 for training, x in seen if training]

    first, second = starts(3)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, starts(4)[0])
    assert torch.equal(first, starts(3)[0])


def test_adversarial_training_helps(fonts: advnb.Dataset) -> None:
    split, test = fonts.train(600), fonts.train(200)
    attack = Attack(Pixels(0.05), steps=5, lr=0.025, optimizer="sign")
    models = [
        fit(CNN(seed=1), split, recipe, epochs=5, progress=False)
        for recipe in (recipes.normal(), recipes.adversarial(attack))
    ]
    normal, robust = (attack(model, test).success_rate().value for model in models)
    assert robust < normal - 0.2


# --- what is left behind


def test_what_fit_leaves(fonts: advnb.Dataset) -> None:
    split, model = fonts.train(120), CNN(seed=1)
    flags = [p.requires_grad for p in model.parameters()]
    torch.manual_seed(3)
    before, images = torch.get_rng_state(), split.x.clone()
    recipe = recipes.adversarial(Attack(Pixels(0.1), steps=2))
    assert fit(model, split, recipe, epochs=1, progress=False) is model
    assert not any(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(split.x, images)


def test_the_global_random_state_decides_nothing() -> None:
    weights = []
    for number in (1, 2):
        torch.manual_seed(number)
        weights.append(fit(dropout_net(), small(), recipes.normal(), epochs=2, progress=False))
    assert same_weights(*weights)
    other = fit(dropout_net(), small(), recipes.normal(), epochs=2, seed=1, progress=False)
    assert not same_weights(weights[0], other)


def test_what_cannot_be_trained(fonts: advnb.Dataset) -> None:
    for epochs in (0, -1, 2.5, "3"):
        with refused("epochs"):
            fit(CNN(), fonts.train(10), recipes.normal(), epochs=epochs, progress=False)
    with refused("out of range for a model of 4 classes"):
        fit(CNN(classes=4), fonts.train(10), recipes.normal(), progress=False)
    with refused("cannot read"):
        fit(dropout_net(), fonts.train(10), recipes.normal(), progress=False)
    wild = Recipe((Part(1.0),), schedule=lambda epoch, epochs: 1e38)
    with refused("NaN or infinity"):
        fit(CNN(), fonts.train(10), wild, progress=False)


# --- going on after a stop


class StoppedError(Exception):
    pass


def stop_after(model: nn.Module, steps: int, error: type[BaseException] = StoppedError) -> None:
    """The model refuses its training pass number `steps` (from 0)."""
    count = 0

    def hook(module: nn.Module, _: tuple) -> None:
        nonlocal count
        if module.training:
            if count == steps:
                raise error
            count += 1

    model.register_forward_pre_hook(hook)


ATTACK = Attack(Pixels(0.1), steps=2, lr=0.05)
RUNS = {
    "normal, dropout": (dropout_net, recipes.normal(batch_size=8)),
    "adversarial, dropout": (dropout_net, recipes.adversarial(ATTACK, batch_size=8, warmup=1.5)),
    "one cycle": (dropout_net, recipes.adversarial(ATTACK, 1.0, batch_size=8, schedule=OneCycle())),
}


@pytest.mark.parametrize("stops", [(0,), (1,), (4,), (5, 3, 1), (11,)])
@pytest.mark.parametrize("kind", RUNS)
def test_going_on_is_exact(
    kind: str, stops: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SAVE_EVERY", 0.0)
    make, recipe = RUNS[kind]
    run = {"epochs": 3, "seed": 5, "progress": False}
    unbroken = fit(make(), small(), recipe, **run)
    for steps in stops:
        model = make()
        stop_after(model, steps)
        with pytest.raises(StoppedError):
            fit(model, small(), recipe, checkpoint=tmp_path / "run", **run)
    resumed = fit(make(), small(), recipe, checkpoint=tmp_path / "run", **run)
    assert same_weights(resumed, unbroken)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    again = fit(make(), small(), recipe, checkpoint=tmp_path / "run", **run)
    assert same_weights(again, unbroken)  # a run that has ended is not run again
    assert not again.training


@pytest.mark.parametrize("change", ["a frozen layer", "another share of dropout"])
def test_a_model_that_is_another(change: str, tmp_path: Path) -> None:
    run = {"epochs": 1, "checkpoint": tmp_path / "run", "progress": False}
    fit(dropout_net(), small(), recipes.normal(batch_size=8), **run)
    other = dropout_net()
    if change == "a frozen layer":
        next(other.parameters()).requires_grad_(False)
    for layer in other.modules():
        if isinstance(layer, nn.Dropout) and change != "a frozen layer":
            layer.p /= 2
    with refused("belongs to another run"):
        fit(other, small(), recipes.normal(batch_size=8), **run)


def test_what_a_stop_by_hand_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = {"epochs": 3, "progress": False, "checkpoint": tmp_path / "run"}
    kept = (
        "stopped at step 6 of 12, 4 are kept: make the model as before, and the same call goes on"
    )
    for steps, told in ((2, ""), (6, kept)):
        model = dropout_net()
        stop_after(model, steps, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(model, small(), recipes.normal(batch_size=8), **run)
        out = capsys.readouterr().out
        assert out.startswith(told) if told else out == ""
        assert bool(told) == (tmp_path / "run").exists()


def test_between_epochs_is_saved_without_waiting(tmp_path: Path) -> None:
    """With the usual 30 seconds a stop loses at most the epoch that it falls into."""
    recipe = recipes.normal(batch_size=8)  # four steps an epoch
    model, seen = dropout_net(), dropout_net()
    stop_after(model, 6)
    with pytest.raises(StoppedError):
        fit(model, small(), recipe, epochs=3, checkpoint=tmp_path / "run", progress=False)
    with watched(seen) as passes:
        fit(seen, small(), recipe, epochs=3, checkpoint=tmp_path / "run", progress=False)
    assert sum(training for training, _ in passes) == 12 - 4


def test_frozen_weights_go_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SAVE_EVERY", 0.0)

    def make() -> nn.Module:
        model = dropout_net()
        model[1].requires_grad_(False)
        return model

    recipe = recipes.normal(batch_size=8)
    unbroken = fit(make(), small(), recipe, epochs=2, progress=False)
    model = make()
    stop_after(model, 3)
    with pytest.raises(StoppedError):
        fit(model, small(), recipe, epochs=2, checkpoint=tmp_path / "run", progress=False)
    resumed = fit(make(), small(), recipe, epochs=2, checkpoint=tmp_path / "run", progress=False)
    assert same_weights(resumed, unbroken)
    assert torch.equal(resumed[1].weight, dropout_net()[1].weight)


def test_checkpoints_of_other_runs(tmp_path: Path) -> None:
    path, recipe = tmp_path / "run", recipes.normal(batch_size=8)
    fit(dropout_net(), small(), recipe, epochs=1, checkpoint=path, progress=False)
    others = {
        "data": (dropout_net(), small(31), recipe, 1, 0),
        "weights": (fit(dropout_net(), small(), recipe, epochs=1), small(), recipe, 1, 0),
        "recipe": (dropout_net(), small(), recipes.normal(batch_size=9), 1, 0),
        "epochs": (dropout_net(), small(), recipe, 2, 0),
        "seed": (dropout_net(), small(), recipe, 1, 1),
    }
    kept = path.read_bytes()
    for model, split, other, epochs, seed in others.values():
        before = copy.deepcopy(model)
        with refused("belongs to another run"):
            fit(model, split, other, epochs=epochs, seed=seed, checkpoint=path, progress=False)
        assert same_weights(model, before)
    assert path.read_bytes() == kept


def test_letters_that_were_drawn_are_the_same_run(fonts: advnb.Dataset, tmp_path: Path) -> None:
    letters, run = fonts.train(20), {"epochs": 1, "progress": False}
    for _ in range(2):  # the first has drawn the letters
        fit(CNN(0), letters, recipes.normal(), checkpoint=tmp_path / "run", **run)
    fit(CNN(0), fonts.train(20), recipes.normal(), checkpoint=tmp_path / "run", **run)
    with refused("belongs to another run"):
        fit(CNN(0), fonts.train(21), recipes.normal(), checkpoint=tmp_path / "run", **run)


def test_another_manifold_is_another_run(fonts: advnb.Dataset, tmp_path: Path) -> None:
    wide = LearnedManifold.load(fonts)
    run = {"epochs": 1, "progress": False, "checkpoint": tmp_path / "run"}
    for manifold in (wide, wide.within(0.5)):
        recipe = recipes.adversarial(Attack(OnManifold(manifold, 0.3), steps=1))
        if manifold is not wide:
            with refused("belongs to another run"):
                fit(CNN(0), fonts.train(20), recipe, **run)
        else:
            fit(CNN(0), fonts.train(20), recipe, **run)
    assert str(wide) == str(LearnedManifold.load(fonts)) != str(wide.within(0.5))


def test_a_training_that_fails_leaves_no_trace() -> None:
    model = dropout_net()
    stop_after(model, 2)
    with pytest.raises(StoppedError):
        fit(model, small(), recipes.normal(batch_size=8), epochs=1, progress=False)
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "empty"])
def test_damaged_checkpoints(damage: str, tmp_path: Path) -> None:
    path, recipe = tmp_path / "run", recipes.normal(batch_size=8)
    fit(dropout_net(), small(), recipe, epochs=1, checkpoint=path, progress=False)
    good = path.read_bytes()
    flipped = good[:-7] + bytes([good[-7] ^ 1]) + good[-6:]
    contents = {"truncated": good[:-9], "flipped": flipped, "foreign": b"notes", "empty": b""}
    path.write_bytes(contents[damage])
    with refused("run.* delete it", DamagedFileError):
        fit(dropout_net(), small(), recipe, epochs=1, checkpoint=path, progress=False)


def test_killed_twice(tmp_path: Path) -> None:
    assert same_after_kills(tmp_path, 2)


def test_a_checkpoint_refuses_a_recipe_that_it_cannot_tell_from_others(tmp_path: Path) -> None:
    class Flat:
        def __call__(self, epoch: float, epochs: int) -> float:
            return 0.01

    run: dict = {"epochs": 1, "progress": False}

    def inner(epoch: float, epochs: int) -> float:
        return 0.01

    # one of a notebook's cell has no function around it
    for schedule in (eval("lambda epoch, epochs: 0.01"), inner, Flat()):
        recipe = replace(recipes.normal(), schedule=schedule)
        fit(dropout_net(), small(), recipe, **run)  # without a checkpoint it is no matter
        with refused("knows a recipe by its text, where .* says too little"):
            fit(dropout_net(), small(), recipe, checkpoint=tmp_path / "run", **run)


class Bent(nn.Module):
    """A manifold by a network, whose text tells its form and not its weights."""

    bounds = -torch.ones(6), torch.ones(6)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def encode(self, split: Split) -> Tensor:
        return torch.zeros(len(split), 6)

    def decode(self, z: Tensor, split: Split) -> Tensor:
        return (split.x + self.layer(z).sum(1).view(-1, 1, 1, 1)).clamp(0, 1)


def test_a_checkpoint_refuses_a_manifold_of_unknown_weights(tmp_path: Path) -> None:
    recipe = recipes.adversarial(Attack(OnManifold(Bent(), 0.3), steps=1))
    run: dict = {"epochs": 1, "progress": False}
    fit(dropout_net(), small(), recipe, **run)  # without a checkpoint it is no matter
    with refused("knows a recipe by its text, where .*Bent.* says too little"):
        fit(dropout_net(), small(), recipe, checkpoint=tmp_path / "run", **run)


def test_images_are_copied_for_a_checkpoint_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large set would be there twice, and in floats."""
    copied: list[Split] = []
    content = Split.content
    monkeypatch.setattr(Split, "content", lambda split: copied.append(split) or content(split))
    run: dict = {"epochs": 1, "progress": False}
    fit(dropout_net(), small(), recipes.normal(), **run)
    assert not copied
    fit(dropout_net(), small(), recipes.normal(), checkpoint=tmp_path / "run", **run)
    assert len(copied) == 1


def test_seeds_of_a_stack_in_any_sequence_are_one_run(tmp_path: Path, fonts: advnb.Dataset) -> None:
    run: dict = {"epochs": 1, "progress": False, "checkpoint": tmp_path / "run"}
    networks = [[CNN(0)], [CNN(0)]]
    for seeds, alone in zip(([5], (5,)), networks):
        fit(Stack(alone), fonts.train(20), recipes.normal(), seed=seeds, **run)
