"""S's curves: every name in its table means something, cells measure what they say, and the printed
numbers are the paper's."""

from __future__ import annotations

import hashlib
import math
import os
import re
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

import advnb
from advnb import Affine, Attack, OnManifold, Pixels, curves, files, fit, strategies, sweeps
from advnb.__main__ import main
from advnb.curves import Cell, Measure
from advnb.fonts import RANGES, read_atlas, transform
from advnb.learned import FOLDER, LearnedManifold
from advnb.minimal import CarliniWagner
from advnb.models import CNN, NETWORKS
from advnb.perturbations import SMALL
from advnb.profiles import PRINTED, PROFILES
from advnb.recipes import Decay, adversarial, augmented, combined, noisy, normal
from advnb.sweeps import sweep

from .conftest import real, refused

TINY = Cell("fonts", "CNN", "normal", 100, 0, "error", 60, 2, 1)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """No test uses a model that another has left in memory."""
    curves.trained.cache_clear()
    yield
    curves.trained.cache_clear()


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seed of every training that is run."""
    seeds: list[int] = []

    def spy(*args: object, **settings: object) -> torch.nn.Module:
        seeds.append(settings["seed"])
        return fit(*args, **settings)

    monkeypatch.setattr("advnb.trained.fit", spy)
    return seeds


def own(path: Path, seed: int = 0, side: int = 12) -> str:
    """A set of images without a known manifold."""
    stream = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for part, n in (("train", 120), ("test", 40)):
        y = np.arange(n) % 3
        x = stream.integers(0, 120, (n, side, side))
        x[np.arange(n), y] = 255  # a bright row is the class
        arrays |= {f"{part}_x": x.astype(np.uint8), f"{part}_y": y}
    files.save_arrays(path, arrays)
    return str(path)


# --- cells


@pytest.mark.parametrize("field", ["model", "recipe", "attack"])
@pytest.mark.parametrize("wrong", ["", "Normal", "on-manifold", "x\ny" * 99, None, 3, ["CNN"]])
def test_cells_refuse_unknown_names(field: str, wrong: object) -> None:
    there = {"model": NETWORKS, "recipe": strategies.RECIPES, "attack": strategies.ATTACKS}[field]
    with refused(f"^{field} must be one of {re.escape(', '.join(there))}; got "):
        replace(TINY, **{field: wrong})


def test_every_name_is_a_cell() -> None:
    for model in NETWORKS:
        for recipe in strategies.RECIPES:
            for attack in strategies.ATTACKS:
                replace(TINY, model=model, recipe=recipe, attack=attack)


def test_names_are_the_papers_settings(fonts: advnb.Dataset) -> None:
    """S's radii, 40 steps of Adam at 0.005 from one start, batches of 100: half of them, all of
    them, or a quarter for each of two."""
    pixels, true = Pixels(0.3), OnManifold(fonts.manifold, 0.3)
    manifold = LearnedManifold.load("fonts")
    made = {name: recipe(fonts) for name, recipe in strategies.RECIPES.items()}
    full, strong = {"steps": 40, "lr": 0.005, "optimizer": "adam"}, {"keep": "strongest"}
    regular, on_true = (Attack(set_, **full, **strong) for set_ in (pixels, true))
    regular_l2 = Attack(Pixels(1.5, "l2"), **full, **strong)
    on_true_l2 = Attack(OnManifold(fonts.manifold, 0.3, "l2"), **full, **strong)
    moved = Attack(Affine(0.3), **full, **strong)
    plain = {
        "normal": normal(),
        "augmented": augmented(0.3, form="printed"),
        "augmented-plain": augmented(0.3, form="plain"),
        "regular": adversarial(regular),
        "regular-full": adversarial(regular, 1.0),
        "regular-weak": adversarial(regular, keep="first"),
        "on-true-full": adversarial(on_true, 1.0),
        "on-true-weak": adversarial(on_true, keep="first"),
        "on-true": adversarial(on_true),
        "transformation": adversarial(moved),
        "regular-l2": adversarial(regular_l2),
        "on-true-l2": adversarial(on_true_l2),
        "regular+on-true": combined([adversarial(regular), adversarial(on_true)]),
        "regular+transformation": combined([adversarial(regular), adversarial(moved)]),
        "random-pixels": noisy(pixels),
        "random-code": noisy(true),
        "random-pixels-uniform": noisy(pixels, start="uniform"),
        "random-code-uniform": noisy(true, start="uniform"),
        "regular-quarter": adversarial(regular, 0.25),
    }
    assert {name: made[name] for name in plain} == plain
    # of a model of each class, and of one for all
    learned = {
        "on-learned": regular,
        "on-learned-full": regular,
        "on-learned-weak": replace(regular, keep="first"),
        "on-learned-l2": regular,
        "regular+on-learned": regular,
        "on-learned-printed": regular,
        "on-learned-full-printed": regular,
        "random-learned-code": noisy(pixels).parts[-1].attack,
        "on-shared": regular,
    }
    assert set(made) == {*plain, *learned}
    for name, like in learned.items():
        part, shared = made[name].parts[-1], name == "on-shared"
        assert part.within == (None if name.endswith("-printed") else 2)
        found, bounds = part.attack.set, manifold.bounds
        if shared:
            bounds = LearnedManifold.load("fonts", "flow-shared").bounds
        assert (found.eta, found.norm) == (0.1 if shared else 0.3, "l2" if "l2" in name else "linf")
        assert found.manifold.shared == shared
        assert all(map(torch.equal, found.manifold.bounds, bounds))
        assert replace(part.attack, set=pixels) == like
    assert made["on-learned-full"].counts() == made["on-learned-full-printed"].counts() == [100]
    assert made["on-learned"].counts() == [50, 50]
    assert made["regular+on-learned"].counts() == [50, 25, 25]
    for recipe in made.values():
        assert (recipe.batch_size, recipe.betas, recipe.weight_decay) == (100, (0.5, 0.9), 1e-4)
        assert (recipe.schedule, recipe.warmup) == (Decay(0.01, 0.95, 1e-7), 0)
    assert [name for name, recipe in made.items() if recipe.apart] == ["augmented"]


@pytest.mark.parametrize("recipe", strategies.RECIPES)
def test_every_recipe_trains(recipe: str) -> None:
    cell = replace(TINY, recipe=recipe, images=40)
    rate = Measure()(cell)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    assert rate.n == 40
    model = Measure().model(cell)
    assert not model.training
    assert any(
        not torch.equal(a, b) for a, b in zip(model.parameters(), CNN(0).parameters(), strict=True)
    )
    assert Measure().cost(cell) > 0


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Images and seed of a model that is soon trained, for examples that are transferred."""
    monkeypatch.setattr(curves, "SOURCE", (300, 5))
    return 300, 5


@pytest.mark.parametrize("attack", strategies.ATTACKS)
def test_every_attack_measures(attack: str, source: tuple[int, int]) -> None:
    # of a transfer the images count that both models get right
    images = 60 if attack.endswith("-transfer") else 20
    cell = replace(TINY, attack=attack, images=images, n=300, epochs=2)
    rate = Measure()(cell)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    assert 0 < rate.n <= images * (1 if attack.startswith("error") else 2)
    assert Measure().cost(cell) > 0


def test_without_a_known_manifold(tmp_path: Path) -> None:
    path = own(tmp_path / "mine.npz")
    cell = Cell(path, "CNN", "normal", 100, 0, "error", 40, 1, 1)
    for attack in ("error", "regular", "transformation"):
        rate = Measure()(replace(cell, attack=attack))
        assert 0 <= rate.low <= rate.value <= rate.high <= 1
    for recipe in ("augmented", "augmented-plain", "random-pixels"):
        assert Measure()(replace(cell, recipe=recipe)).n == 40
    for name in ("on-true", "on-learned", "on-shared"):
        what = "no known manifold" if name == "on-true" else "no learned manifold"
        both = [{"recipe": f"regular+{name}"}] if name != "on-shared" else []
        for changed in ({"attack": name}, {"recipe": name}, *both):
            with refused(what):
                Measure()(replace(cell, **changed))
    with refused("no known manifold"):
        Measure()(replace(cell, recipe="random-code"))


def test_an_attack_that_cannot_be_had_trains_no_model(tmp_path: Path) -> None:
    cell = Cell(own(tmp_path / "mine.npz"), "CNN", "normal", 100, 0, "on-true", 40, 1, 1)
    with refused("no known manifold"):
        Measure(str(tmp_path / "models"))(cell)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_real_data(name: str) -> None:
    data = real(name)
    for recipe in ("on-true", "regular+on-true", "random-code"):
        with refused("no known manifold"):
            strategies.RECIPES[recipe](data)
    with refused("no known manifold"):
        strategies.searched(data, "on-true")
    assert strategies.RECIPES["on-learned"](data).counts() == [50, 50]
    rate = Measure()(Cell(name, "CNN", "normal", 300, 0, "on-learned", 20, 1, 2))
    assert 0 <= rate.low <= rate.value <= rate.high <= 1


# --- what a cell measures


def independent(seed: int, fonts: advnb.Dataset, n: int = 300) -> torch.nn.Module:
    model = CNN(seed)
    return fit(model, fonts.train(n), normal(), epochs=2, seed=seed, progress=False)


@pytest.mark.parametrize("seed", [0, 3])
def test_error_is_what_the_model_gets_wrong(seed: int, fonts: advnb.Dataset) -> None:
    rate = Measure()(replace(TINY, n=300, seed=seed, images=500, epochs=2))
    model, test = independent(seed, fonts), fonts.test(500)
    with torch.no_grad():
        wrong = (model(test.x).argmax(1) != test.y).float().mean().item()
    right = advnb.accuracy(model, test)
    assert rate.value == pytest.approx(wrong) == pytest.approx(1 - right.value)
    assert (rate.low, rate.high) == pytest.approx((1 - right.high, 1 - right.low))
    assert rate.n == 500
    assert 0 < rate.low < rate.value < rate.high < 1


@pytest.mark.parametrize("attack", ["regular", "on-true", "transformation", "regular-l2"])
def test_success_is_that_of_the_attack_by_hand(attack: str, fonts: advnb.Dataset) -> None:
    sets = {
        "regular": Pixels(0.3),
        "on-true": OnManifold(fonts.manifold, 0.3),
        "transformation": Affine(0.3),
        "regular-l2": Pixels(1.5, "l2"),
    }
    cell = replace(TINY, n=300, seed=3, attack=attack, images=30, restarts=2, epochs=2)
    result = Attack(sets[attack], restarts=2, seed=3)(independent(3, fonts), fonts.test(30))
    pairs = [hit for row in result.success[:, result.correct].tolist() for hit in row]
    rate = Measure()(cell)
    assert rate == result.success_rate()
    assert rate.n == len(pairs) == 2 * int(result.correct.sum())
    assert rate.value == pytest.approx(sum(pairs) / len(pairs))  # pairs, not any of the starts


def test_printed_carlini_and_wagner_by_hand(fonts: advnb.Dataset) -> None:
    cell = replace(TINY, n=300, seed=3, attack="on-true-cw", images=20, epochs=2)
    attack = CarliniWagner.printed(OnManifold(fonts.manifold, 0.3, "l2"), seed=3)
    assert Measure()(cell) == attack(independent(3, fonts), fonts.test(20)).success_rate()


def test_transfer_is_from_a_normal_model(fonts: advnb.Dataset, source: tuple[int, int]) -> None:
    """Images that both models get right, changed for the one and shown to the other."""
    cell = replace(TINY, n=200, seed=3, attack="regular-transfer", images=60, restarts=2, epochs=2)
    other, model, test = independent(5, fonts), independent(3, fonts, 200), fonts.test(60)
    result = Attack(Pixels(0.3), restarts=2, seed=3)(other, test)
    with torch.no_grad():
        right = (model(test.x).argmax(1) == test.y) & (other(test.x).argmax(1) == test.y)
        wrong = [bool(w) for x in result.x for w in (model(x).argmax(1) != test.y)[right]]
    rate = Measure()(cell)
    assert rate.n == len(wrong) > 0
    assert rate.value == pytest.approx(sum(wrong) / len(wrong))


def test_unseen_faces_are_those_after_fonts_own(fonts: advnb.Dataset) -> None:
    cell = replace(TINY, n=300, attack="error-unseen", images=200, epochs=2)
    model, test = independent(0, fonts), fonts.test(200)
    glyphs = torch.from_numpy(read_atlas()["glyphs"])[1000:]
    assert test.font.max() < 1000
    x = glyphs[test.font % len(glyphs), test.y][:, None] / 255
    with torch.no_grad():
        wrong = model(transform(x, test.z)).argmax(1) != test.y
    assert Measure()(cell).value == pytest.approx(wrong.float().mean().item(), abs=0.011)
    assert Measure()(replace(cell, attack="error")).value != Measure()(cell).value


def test_on_learned_counts_as_the_papers_code(fonts: advnb.Dataset) -> None:
    """Right is right on the reconstruction; a success counts where the image's own code lies
    within 2, over all that were right."""
    manifold = LearnedManifold.load("fonts")
    cell = replace(TINY, n=300, attack="on-learned", images=100, restarts=2, epochs=2)
    rate, model, test = Measure()(cell), independent(0, fonts), fonts.test(100)
    result = Attack(OnManifold(manifold, 0.3), restarts=2, seed=0)(model, test)
    code = manifold.encode(test)
    with torch.no_grad():
        right = model(manifold.decode(code, test)).argmax(1) == test.y
        on_image = model(test.x).argmax(1) == test.y
        fooled = torch.stack([model(x).argmax(1) != test.y for x in result.x])
    safe = code.abs().amax(1) <= 2
    hits = int((fooled & right & safe).sum())
    assert rate.n == 2 * int(right.sum())
    assert rate.value == pytest.approx(hits / (2 * int(right.sum())))
    # the choices matter on these images: another reading would give another number
    assert not torch.equal(right, on_image)
    assert (fooled & right & ~safe).any()


# --- models that are kept


def test_a_model_is_trained_once(tmp_path: Path, trainings: list[int]) -> None:
    measure = Measure(str(tmp_path))
    rates = [measure(replace(TINY, attack=a, images=20)) for a in ("error", "regular", "on-true")]
    assert trainings == [0]
    (kept,) = tmp_path.iterdir()  # no checkpoint stays behind
    assert kept.suffix == ".safetensors"
    curves.trained.cache_clear()  # as in a process of tomorrow
    again = [measure(replace(TINY, attack=a, images=20)) for a in ("on-true", "regular", "error")]
    assert trainings == [0]
    assert again == rates[::-1]
    measure(replace(TINY, seed=1))
    assert trainings == [0, 1]
    assert len([*tmp_path.iterdir()]) == 2


def test_disk_decides_nothing(tmp_path: Path) -> None:
    """The same numbers from a model in memory, one just trained and one read."""
    cells = [replace(TINY, recipe="augmented", attack=a, images=20) for a in ("error", "on-true")]
    found = []
    for folder in (None, str(tmp_path), str(tmp_path)):
        curves.trained.cache_clear()
        measure = Measure(folder)
        digest = files.digest(measure.model(cells[0]).state_dict())
        found.append((digest, *map(measure, cells)))
    assert found[0] == found[1] == found[2]


def test_an_attack_leaves_the_model_alone() -> None:
    measure = Measure()
    before = files.digest(measure.model(TINY).state_dict())
    for attack in ("regular", "on-learned"):
        measure(replace(TINY, attack=attack, images=20))
    assert files.digest(measure.model(TINY).state_dict()) == before
    assert measure.model(TINY) is measure.model(replace(TINY, attack="on-true", images=7))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "empty"])
def test_damaged_models_are_trained_again(
    damage: str, tmp_path: Path, trainings: list[int]
) -> None:
    measure = Measure(str(tmp_path))
    rate = measure(TINY)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    flipped = good[:-7] + bytes([good[-7] ^ 1]) + good[-6:]
    contents = {"truncated": good[:-9], "flipped": flipped, "foreign": b"notes", "empty": b""}
    path.write_bytes(contents[damage])
    curves.trained.cache_clear()
    assert measure(TINY) == rate
    assert trainings == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    curves.trained.cache_clear()
    assert measure(TINY) == rate  # from the file that has been mended
    assert trainings == [0, 0]


def test_a_kept_model_of_another_form_is_trained_anew(tmp_path: Path) -> None:
    """A whole file that does not fit, of an earlier network say: nothing of it may stay."""
    measure = Measure(str(tmp_path))
    digest = files.digest(measure.model(TINY).state_dict())
    (path,) = tmp_path.iterdir()
    tensors, about = files.load_tensors(path)
    tensors.pop(next(iter(tensors)))
    files.save_tensors(path, {k: v + 1 for k, v in tensors.items()}, **about)
    curves.trained.cache_clear()
    assert files.digest(measure.model(TINY).state_dict()) == digest


def test_a_stopped_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = replace(TINY, recipe="augmented", epochs=3)
    digest = files.digest(Measure().model(cell).state_dict())

    class Stopping(CNN):
        count = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            type(self).count += self.training
            if self.count == 4:  # between the two updates of the second epoch
                raise KeyboardInterrupt
            return super().forward(x)

    Stopping.__name__ = "CNN"  # the run's text is to be the same
    curves.trained.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(NETWORKS, "CNN", Stopping)
        with pytest.raises(KeyboardInterrupt):
            Measure(str(tmp_path))(cell)
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".checkpoint"
    assert files.digest(Measure(str(tmp_path)).model(cell).state_dict()) == digest
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]


def test_a_damaged_checkpoint_is_begun_again(tmp_path: Path) -> None:
    rate = Measure(str(tmp_path))(TINY)
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.with_suffix(f".{TINY.seed}.checkpoint").write_bytes(b"half")
    curves.trained.cache_clear()
    assert Measure(str(tmp_path))(TINY) == rate
    assert [left.name for left in tmp_path.iterdir()] == [path.name]


def test_a_checkpoint_of_another_version_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = Measure(str(tmp_path / "whole"))(TINY)
    (path,) = (tmp_path / "whole").iterdir()
    left = tmp_path / "half" / f"{path.stem}.{TINY.seed}.checkpoint"
    files.save_tensors(left, {"w": torch.zeros(2)}, fingerprint="of old", step=1)
    curves.trained.cache_clear()
    assert Measure(str(tmp_path / "half"))(TINY) == rate
    assert [p.name for p in (tmp_path / "half").iterdir()] == [path.name]


def test_a_changed_set_is_measured_anew(tmp_path: Path) -> None:
    """The key of a result follows an own set's content, and so must the result itself."""
    path = own(tmp_path / "mine.npz")
    cell, measure = Cell(path, "CNN", "normal", 100, 0, "error", 40, 1, 1), Measure()
    measure(cell)
    versions = [Measure.version({"data": path})]
    with np.load(path) as kept:
        arrays = {name: kept[name] for name in kept.files}
    arrays["test_y"] = (arrays["test_y"] + 1) % 3
    files.save_arrays(path, arrays)
    versions.append(Measure.version({"data": path}))
    assert versions[0] != versions[1]
    changed = measure(cell)
    curves.trained.cache_clear()
    curves._test.cache_clear()
    assert changed == measure(cell)


def test_versions_follow_an_own_set(tmp_path: Path) -> None:
    first, other = own(tmp_path / "a.npz"), own(tmp_path / "b.npz", seed=1)
    same = own(tmp_path / "c.npz")
    version = Measure.version
    assert version({"data": first}) == version({"data": same}) != version({"data": other})
    assert version({"data": "fonts"}) == curves.VERSION
    with refused("no such file", FileNotFoundError):
        version({"data": str(tmp_path / "gone.npz")})


def test_the_atlas_that_ships_is_the_known_one(tmp_path: Path) -> None:
    """Else every key that ships would be another one's."""
    assert hashlib.sha256(advnb.fonts.ATLAS.read_bytes()).hexdigest() == curves.ATLAS


@pytest.mark.parametrize("name", ["fonts", "fonts-easy"])
def test_versions_follow_the_atlas(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m advnb fonts build` may write another one."""
    path, content = tmp_path / "fonts.npz", advnb.fonts.ATLAS.read_bytes()
    monkeypatch.setattr(advnb.fonts, "ATLAS", path)
    versions = []
    for made in (content, content + b"1", content + b"2"):
        path.write_bytes(made)
        os.utime(path, ns=(1, len(versions)))  # two of them are of one size
        versions.append(Measure.version({"data": name}))
    assert versions[0] == curves.VERSION
    assert versions[1] != versions[2]
    assert versions[1:] == [[curves.VERSION, hashlib.sha256(content + c).hexdigest()]
                            for c in (b"1", b"2")]  # fmt: skip


def test_versions_follow_a_known_set_of_fewer_images(unkept: Path) -> None:
    version = Measure.version
    assert version({"data": "mnist"}) == curves.VERSION  # where it is not here yet
    unkept.mkdir()
    path = Path(own(unkept / "mnist.npz", side=28))
    few = version({"data": "mnist"})
    assert few == [curves.VERSION, hashlib.sha256(path.read_bytes()).hexdigest()]
    own(path, seed=1, side=28)
    assert version({"data": "mnist"}) not in (few, curves.VERSION)
    arrays = {"train_y": np.zeros(60_000, np.uint8), "test_y": np.zeros(10_000, np.uint8)}
    files.save_arrays(path, arrays, compress=True)  # as many as there are
    assert version({"data": "mnist"}) == curves.VERSION


@pytest.mark.parametrize("name", ["mnist", "fashion", "cifar10"])
def test_whole_sets_have_their_known_sizes(name: str) -> None:
    assert real(name).sizes == advnb.downloads.KNOWN[name].sizes
    assert Measure.version({"data": name}) == curves.VERSION


def test_a_file_is_read_once_for_all_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, reads = Cell(own(tmp_path / "mine.npz"), "CNN", "normal", 100, 0, "error", 20), []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: reads.append(a) or digest(*a))
    keys = {sweeps.key(replace(cell, seed=s), Measure()) for s in range(50)}
    assert len(keys) == 50
    assert len(reads) == 1


# --- sweeps of cells


def test_run_gives_a_row_a_cell(tmp_path: Path, trainings: list[int]) -> None:
    cells = [
        replace(TINY, attack=a, images=20, seed=s) for s in (0, 1) for a in ("error", "on-true")
    ]
    table = curves.run(cells, cache=tmp_path, progress=False)
    assert trainings == [0, 1]
    assert (table.error == "").all()
    for cell, row in zip(cells, table.itertuples(), strict=True):
        rate = Measure()(cell)
        assert (row.recipe, row.attack, row.seed, row.n) == ("normal", cell.attack, cell.seed, 100)
        assert (row.value, row.low, row.high, row.of) == (rate.value, rate.low, rate.high, rate.n)
    trainings.clear()
    again = curves.run(cells, cache=tmp_path, progress=False)
    assert not trainings
    pd.testing.assert_frame_equal(table, again)
    short = curves.summary(table)
    assert short.seeds.tolist() == [2, 2]
    assert short.value.tolist() == pytest.approx(table.groupby("attack").value.mean().tolist())


class Recording(Executor):
    """Runs everything here and now, and remembers which cells came together."""

    def __init__(self) -> None:
        self.batches: list[list[Cell]] = []

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        self.batches.append([cell for _, cell in args[0]])
        future: Future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def told(cell: Cell) -> dict[str, float]:
    return {"value": 0.5}


def models_apart(cells: list[Cell], folder: Path) -> list[tuple]:
    """The models of each batch that an executor is given, batch after batch."""
    executor = Recording()
    sweep(cells, told, cache=folder, executor=executor, progress=False)
    batches = [{tuple(getattr(c, n) for n in curves.TRAINED) for c in b} for b in executor.batches]
    return [model for batch in batches for model in batch]


def test_cells_of_one_size_share_a_process(tmp_path: Path) -> None:
    cells = [replace(TINY, attack=a, images=20, seed=s) for a in strategies.ATTACKS for s in (0, 1)]
    models = models_apart(cells, tmp_path)
    assert len(models) == len(set(models)) == 2


def test_cells_of_one_model_share_a_process(tmp_path: Path) -> None:
    """Whatever the sizes of its attacks: else each would train it."""
    cells = curves.figure("fonts", PROFILES["smoke"], recipes=["normal"])
    models = models_apart(cells, tmp_path)
    assert len(models) == len(set(models)) == 1


def test_a_failed_cell_leaves_the_others(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cells = [replace(TINY, n=960_001), TINY, replace(TINY, images=160_001)]
    table = curves.run(cells, cache=tmp_path, progress=False)
    assert [bool(error) for error in table.error] == [True, False, True]
    assert "960,000 training images" in table.error[0]
    assert "160,000 test images" in table.error[2]
    short = curves.summary(table)
    assert short.seeds.tolist() == [1]
    assert short.value.tolist() == [table.value[1]]


def test_a_strategy_that_cannot_be_had_leaves_the_others(tmp_path: Path) -> None:
    """What a cell costs cannot be told either."""
    bad = Cell(own(tmp_path / "mine.npz"), "CNN", "on-true", 100, 0, "error", 20, 1, 1)
    table = curves.run([bad, TINY], cache=tmp_path / "cache", progress=False)
    assert [bool(error) for error in table.error] == [True, False]
    assert "no known manifold" in table.error[0]


# --- summaries


def test_a_cell_that_is_there_twice_counts_once() -> None:
    """Of two sweeps' tables put together, say."""
    table = measured([0.2, 0.4])
    pd.testing.assert_frame_equal(curves.summary(pd.concat([table, table])), curves.summary(table))


def measured(values: list[float], **fields: object) -> pd.DataFrame:
    row = {"data": "fonts", "model": "CNN", "recipe": "normal", "n": 250, "attack": "error",
           "images": 60, "restarts": 1, "epochs": 1, "error": "", **fields}  # fmt: skip
    return pd.DataFrame([{**row, "seed": s, "value": v} for s, v in enumerate(values)])


@settings(max_examples=50)
@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_summary_is_students_interval(values: list[float]) -> None:
    (row,) = curves.summary(measured(values)).itertuples()
    mean, n = statistics.fmean(values), len(values)
    scale = statistics.stdev(values) / math.sqrt(n)
    assert row.value == pytest.approx(mean)
    assert row.seeds == n
    low, high = student.interval(0.95, n - 1, mean, scale) if scale > 1e-12 else (mean, mean)
    assert (row.low, row.high) == pytest.approx((max(low, 0), min(high, 1)), abs=1e-9)
    assert 0 <= row.low <= row.value + 1e-12
    assert row.value - 1e-12 <= row.high <= 1


def test_summary_by_hand() -> None:
    (row,) = curves.summary(measured([0.1, 0.2, 0.3])).itertuples()
    assert (row.value, row.seeds) == (pytest.approx(0.2), 3)
    half = 4.302652729 * 0.1 / math.sqrt(3)  # t of two degrees of freedom, from a printed table
    assert (row.low, row.high) == pytest.approx((0, 0.2 + half))


def test_summary_of_one_seed_has_no_interval() -> None:
    (row,) = curves.summary(measured([0.4])).itertuples()
    assert (row.value, row.seeds) == (0.4, 1)
    assert math.isnan(row.low)
    assert math.isnan(row.high)


def test_summary_keeps_what_differs_apart() -> None:
    tables = [
        measured([0.5]), measured([0.3], n=1000), measured([0.1], recipe="regular"),
        measured([0.9], attack="regular"), measured([0.2], data="mnist"),
        measured([0.6], model="MLP"), measured([0.7]).assign(seed=1),
    ]  # fmt: skip
    short = curves.summary(pd.concat(tables))
    assert short.columns.tolist() == [
        "data", "model", "recipe", "n", "attack", "images", "restarts", "epochs",
        "value", "low", "high", "seeds",
    ]  # fmt: skip
    assert short.value.tolist() == pytest.approx([0.6, 0.3, 0.1, 0.9, 0.2, 0.6])  # in their order
    assert short.seeds.tolist() == [2, 1, 1, 1, 1, 1]


def test_summary_keeps_other_sizes_apart() -> None:
    """Cells of another form are no further seeds."""
    table = pd.concat([measured([0.5, 0.6], epochs=2), measured([0.1, 0.2], epochs=20)])
    assert curves.summary(table).seeds.tolist() == [2, 2]


def test_summary_leaves_failures_out() -> None:
    table = measured([0.1, 0.2, 0.3])
    failed = measured([math.nan, 0.9], error="Traceback")
    (row,) = curves.summary(pd.concat([table, failed])).itertuples()
    assert (row.value, row.seeds) == (pytest.approx(0.2), 3)


def test_summary_of_a_shipped_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "RESULTS", tmp_path)
    table = pd.concat([measured([0.1, 0.2, 0.3]), measured([0.9], error="Traceback")])
    sweeps.ship(table.assign(key="0"), "mine")
    (row,) = curves.summary(sweeps.shipped("mine")).itertuples()
    assert (row.value, row.seeds) == (pytest.approx(0.2), 3)


def test_summary_of_a_table_that_was_read(tmp_path: Path) -> None:
    table = pd.concat([measured([0.1, 0.2, 0.3]), measured([math.nan], error="Traceback")])
    table.to_csv(tmp_path / "table.csv", index=False)
    (row,) = curves.summary(pd.read_csv(tmp_path / "table.csv")).itertuples()
    assert (row.value, row.seeds) == (pytest.approx(0.2), 3)


def test_summary_always_has_the_same_columns() -> None:
    none, some = (curves.summary(measured([0.1], error=error)) for error in ("Traceback", ""))
    assert none.columns.tolist() == some.columns.tolist()


def test_summary_of_failures_only() -> None:
    table = measured([0.1], error="Traceback").drop(columns="value")
    assert len(curves.summary(table)) == 0


# --- what the paper prints

# test error and success rates at 250, 1000, 5000, 10,000 and 40,000 images: three decimals
SIZES = (250, 1000, 5000, 10_000, 40_000)
NUMBERS = {
    ("fonts", "normal", "error"): (0.730, 0.495, 0.199, 0.124, 0.063),
    ("fonts", "regular", "error"): (0.666, 0.421, 0.213, 0.164, 0.130),
    ("fonts", "on-true", "error"): (0.547, 0.222, 0.076, 0.055, 0.036),
    ("fonts", "augmented", "error"): (0.600, 0.343, 0.134, 0.091, 0.062),
    ("fonts", "transformation", "error"): (0.574, 0.264, 0.083, 0.059, 0.038),
    ("fonts", "on-learned", "error"): (0.640, 0.340, 0.124, 0.079, 0.046),
    ("fonts", "normal", "on-true"): (0.937, 0.911, 0.652, 0.529, 0.363),
    ("fonts", "on-true", "on-true"): (0.683, 0.503, 0.260, 0.210, 0.133),
    ("fonts", "transformation", "on-true"): (0.733, 0.512, 0.264, 0.206, 0.137),
    ("fonts", "normal", "on-learned"): (0.536, 0.527, 0.314, 0.248, 0.181),
    ("fonts", "on-learned", "on-learned"): (0.503, 0.366, 0.184, 0.138, 0.087),
    ("fonts", "normal", "regular"): (1, 0.997, 0.975, 0.964, 0.964),
    ("fonts", "regular", "regular"): (0.944, 0.885, 0.640, 0.566, 0.493),
    ("emnist", "normal", "error"): (0.127, 0.056, 0.022, 0.016, 0.0105),
    ("emnist", "regular", "error"): (0.091, 0.035, 0.017, 0.013, 0.0107),
    ("emnist", "transformation", "error"): (0.040, 0.019, 0.009, 0.008, 0.0060),
    ("emnist", "normal", "on-learned"): (0.135, 0.067, 0.028, 0.021, 0.017),
    ("emnist", "regular", "regular"): (0.460, 0.226, 0.104, 0.080, 0.061),
    ("fashion", "normal", "error"): (0.236, 0.208, 0.164, 0.136, 0.107),
    ("fashion", "regular", "error"): (0.280, 0.238, 0.204, 0.185, 0.174),
    ("fashion", "on-learned", "on-learned"): (0.159, 0.120, 0.044, 0.029, 0.012),
    ("fashion", "regular", "regular"): (0.606, 0.419, 0.301, 0.282, 0.256),
}


@pytest.mark.parametrize("what", NUMBERS, ids=" ".join)
def test_printed_numbers(what: tuple[str, str, str]) -> None:
    table = curves.printed()
    data, recipe, attack = what
    rows = table[(table.data == data) & (table.recipe == recipe) & (table.attack == attack)]
    found = rows.set_index("n").value
    assert found.index.is_unique
    for n, value in zip(SIZES, NUMBERS[what]):
        assert found[n] == pytest.approx(value, abs=0.00052)


def test_printed_errors_stand_beside_their_values() -> None:
    """The column `error` is the test error that a point of another attack is drawn at."""
    table = curves.printed()
    own_error = table[table.attack == "error"].set_index(["data", "recipe", "n"]).value
    others = table[table.attack != "error"].set_index(["data", "recipe", "n"])
    beside = own_error.reindex(others.index)
    drawn = beside.notna()
    assert drawn.mean() > 0.9
    assert np.allclose(others.error[drawn], beside[drawn], atol=0.01)
    assert (table[table.attack == "error"].error == table[table.attack == "error"].value).all()


def test_printed_long_training() -> None:
    table = curves.printed("long")
    table = table[table.attack == "error"].set_index(["recipe", "n"]).value
    for recipe, n, value in [
        ("normal", 10_000, 0.0419), ("normal", 40_000, 0.0162), ("normal", 100_000, 0.0080),
        ("normal", 900_000, 0.0005), ("regular", 10_000, 0.0548), ("regular", 40_000, 0.0297),
        ("regular", 100_000, 0.0130), ("regular", 900_000, 0.0018),
    ]:  # fmt: skip
        assert table[recipe, n] == pytest.approx(value, abs=6e-5)


def test_printed_slopes() -> None:
    """On FONTS the error goes with on-manifold success in every strategy, and with regular success
    only for regular adversarial training."""
    table = curves.printed()
    table = table[(table.data == "fonts") & (table.attack != "error")]
    for recipe, rows in table[table.attack == "on-true"].groupby("recipe"):
        assert 0.90 < np.corrcoef(rows.error, rows.value)[0, 1] < 0.97, recipe
    regular = table[table.attack == "regular"]
    slopes = {recipe: np.polyfit(r.error, r.value, 1)[0] for recipe, r in regular.groupby("recipe")}
    assert slopes.pop("regular") == pytest.approx(0.92, abs=0.03)
    assert slopes.pop("normal") == pytest.approx(0.07, abs=0.01)
    assert all(abs(slope) < 0.02 for slope in slopes.values())


FIGURES = {
    "curves": (("fonts", "emnist", "fashion"), ("CNN",)),
    "combined": (("fonts", "emnist"), ("CNN",)),
    "long": (("fonts",), ("ResNet13",)),
    "celeba": (("celeba",), ("CelebACNN",)),
    "models": (("fonts", "emnist", "fashion"), ("MLP", "ResNet13", "VGG")),
    "l2": (("fonts", "emnist", "fashion"), ("CNN",)),
    "transfer": (("fonts", "emnist", "fashion"), ("CNN",)),
    "variants": (("fonts", "emnist"), ("CNN",)),
    "class-agnostic": (("fonts", "emnist"), ("CNN",)),
}


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_is_there(figure: str) -> None:
    assert f'"{figure}"' in curves.printed.__doc__
    table = curves.printed(figure)
    assert table.columns.tolist() == ["data", "model", "recipe", "n", "error", "attack", "value"]
    assert table.index.tolist() == list(range(len(table)))
    assert table.value.between(0, 1).all()
    assert (table.error.between(0, 1) | table.error.isna()).all()
    data, models = FIGURES[figure]
    assert set(table.data) == set(data)
    assert set(table.model) == set(models) <= set(NETWORKS)
    known = table[table.n.notna()]
    assert (known.n % 100 == 0).mean() > 0.9  # 250 apart, sizes are whole hundreds
    assert not known.duplicated(["data", "model", "recipe", "n", "attack"]).any()


def test_no_figure_is_left_unnamed() -> None:
    assert set(sweeps.shipped("stutz2019").figure) == set(FIGURES)
    assert curves.printed().equals(curves.printed("curves"))


def test_the_main_curves_are_what_a_sweep_measures() -> None:
    """Points of a sweep can be laid over the printed ones, name by name."""
    table = curves.printed()
    assert set(table.recipe) == set(curves.FIGURE) <= set(strategies.RECIPES)
    assert set(table.attack) == set(curves.MEASURED) <= set(strategies.ATTACKS)
    assert set(table[table.data != "emnist"].n) == set(PRINTED)
    assert set(table[table.data == "emnist"].n) == {100, *PRINTED}
    for attack in ("error", "regular", "on-learned"):
        assert set(table[table.attack == attack].data) == {"fonts", "emnist", "fashion"}
    assert set(table[table.attack == "on-true"].data) == {"fonts"}


@pytest.mark.parametrize("figure", ["", "Fig. 5", "curve", None, 5, "x\n" * 200])
def test_unknown_figures(figure: object) -> None:
    with refused(f"^figure must be one of curves, .*{', '.join([*FIGURES][-2:])}.*; got "):
        curves.printed(figure)


# --- the grids of the figures


def test_grid_is_every_combination() -> None:
    cells = curves.grid("fonts", ["normal", "regular"], [250, 500], [0, 1, 2], ["error", "on-true"])
    assert len(cells) == len(set(cells)) == 2 * 2 * 3 * 2
    assert {(c.recipe, c.n, c.seed, c.attack) for c in cells} == {
        (r, n, s, a)
        for r in ("normal", "regular")
        for n in (250, 500)
        for s in (0, 1, 2)
        for a in ("error", "on-true")
    }
    assert {c.model for c in cells} == {"CNN"}
    assert {c.model for c in curves.grid("fonts", ["normal"], [250], [0], ["error"], "MLP")} == {
        "MLP"
    }


def test_grid_takes_numpys_numbers() -> None:
    """A cell is told by plain ones: numpy's would be refused once it runs."""
    cells = curves.grid("fonts", ["normal"], np.array([250]), np.arange(2), ["error"])
    assert cells == curves.grid("fonts", ["normal"], [250], [0, 1], ["error"])
    assert {type(value) for cell in cells for value in (cell.n, cell.seed)} == {int}
    with refused("^seed must be a whole number >= 0; got 0.5"):
        curves.grid("fonts", ["normal"], [250], [0.5], ["error"])


@pytest.mark.parametrize("profile", [None, PROFILES["paper"]], ids=["none", "paper"])
def test_paper_sizes(profile: advnb.Profile | None) -> None:
    """S: 1,000 regular and 2,500 on-manifold images, five starts each in L-infinity, 20 epochs."""
    cells = curves.grid("fonts", ["normal"], [250], [0], strategies.ATTACKS, profile=profile)
    images = dict.fromkeys(("on-true", "on-learned", "on-shared"), 2500)
    images |= {"error": 40_000, "regular": 1000, "transformation": 1000}
    for cell in cells:
        name = re.sub("-(l2|cw|transfer|unseen)$", "", cell.attack)
        single = name == "error" or cell.attack.endswith(("-l2", "-cw"))
        assert (cell.images, cell.restarts) == (images[name], 1 if single else 5), cell
    assert [c.attack for c in cells] == strategies.ATTACKS
    assert {c.epochs for c in cells} == {20}


@pytest.mark.parametrize("name", ["smoke", "course"])
def test_sizes_of_smaller_profiles(name: str) -> None:
    profile = PROFILES[name]
    for cell in curves.grid("fonts", ["normal"], [250], [0], strategies.ATTACKS, profile=profile):
        error = cell.attack in ("error", "error-unseen")
        single = error or cell.attack.endswith(("-l2", "-cw"))
        assert cell.images == (10_000 if error else profile.attacked)
        assert cell.restarts == (1 if single else profile.restarts)
        assert cell.epochs == 20


@pytest.mark.parametrize("name", PROFILES)
def test_figure_follows_its_profile(name: str) -> None:
    profile = PROFILES[name]
    cells = curves.figure("fonts", profile)
    assert {c.n for c in cells} == set(profile.curve)
    assert {c.seed for c in cells} == set(range(profile.seeds))
    assert {c.recipe for c in cells} == set(curves.FIGURE)
    assert {c.attack for c in cells} == {"error", "regular", "on-true", "on-learned"}
    assert len(set(cells)) == len(cells) == 6 * 4 * len(profile.curve) * profile.seeds
    some = curves.figure("fonts", profile, recipes=["regular"], n=[100], seeds=[7], model="MLP",
                         attacks=["transformation"])  # fmt: skip
    assert [(c.recipe, c.n, c.seed, c.attack, c.model) for c in some] == [
        ("regular", 100, 7, "transformation", "MLP")
    ]


def test_the_papers_curve() -> None:
    profile = PROFILES["paper"]
    assert (profile.curve, profile.seeds) == (PRINTED, 5)
    assert [*PRINTED] == [
        250, 500, 1000, 1500, 2000, 2500, 3000, 4000, 5000, 7500, 10_000, 15_000, 20_000, 30_000,
        40_000,
    ]  # fmt: skip


@pytest.mark.parametrize("profile", [None, *PROFILES.values()])
def test_never_more_images_than_there_are(profile: advnb.Profile | None, tmp_path: Path) -> None:
    path = own(tmp_path / "mine.npz")  # 40 test images
    attacks = ["error", "regular", "transformation"]
    cells = curves.grid(path, ["normal"], [50], [0], attacks, profile=profile)
    assert [c.images for c in cells] == [40] * 3


def test_an_own_set_has_no_manifold(tmp_path: Path) -> None:
    cells = curves.figure(own(tmp_path / "mine.npz"), PROFILES["smoke"])
    assert {c.attack for c in cells} == {"error", "regular"}
    assert {c.recipe for c in cells} == {"normal", "augmented", "transformation", "regular"}


@pytest.mark.parametrize("variant", ["fonts-easy", "fonts-moderate"])
def test_other_fonts_have_a_known_manifold_only(variant: str) -> None:
    cells = curves.figure(variant, PROFILES["smoke"])
    assert {c.attack for c in cells} == {"error", "regular", "on-true"}
    assert "on-true" in {c.recipe for c in cells}
    assert "on-learned" not in {c.recipe for c in cells}


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_figures_of_real_data(name: str) -> None:
    real(name)
    for profile in ("smoke", "paper"):
        cells = curves.figure(name, PROFILES[profile])
        assert {c.attack for c in cells} == {"error", "regular", "on-learned"}
        assert {c.recipe for c in cells} == {*curves.FIGURE} - {"on-true"}
        assert max(c.images for c in cells) <= 10_000
    assert {c.images for c in cells if c.attack == "error"} == {10_000}


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("recipes", ["adversarial"]), ("model", "cnn"),
        ("attacks", ["pgd"]), ("attacks", ["on-manifold"]),
    ],
)  # fmt: skip
def test_grids_of_unknown_names(field: str, wrong: object) -> None:
    sizes = {"recipes": ["normal"], "n": [250], "seeds": [0], "attacks": ["error"]}
    with refused("must be one of .*; got '"):
        curves.grid("fonts", **{**sizes, field: wrong})


def test_sizes_end_with_the_training_images(tmp_path: Path) -> None:
    path = tmp_path / "small.npz"
    x, y = np.zeros((300, 8, 8), np.uint8), np.arange(300) % 10
    np.savez(path, train_x=x, train_y=y, test_x=x, test_y=y)
    assert {c.n for c in curves.figure(str(path), PROFILES["paper"])} == {250}
    assert {c.n for c in curves.figure(str(path), PROFILES["paper"], n=[7, 300])} == {7, 300}
    with refused("n must be at most 300, all training images; got 1,000"):
        curves.grid(str(path), ["normal"], [1000], [0], ["error"])


def test_grid_of_unknown_data() -> None:
    with refused("no data set is called"):
        curves.grid("font", ["normal"], [250], [0], ["error"])


# --- a name's meaning

# (curves.VERSION, the hash of what all names mean)
PINNED = (1, "0278d04ad7bb60b4c9fd63b1113ad87d50ff81f18addbe12bbf7ef90f97501b8")


def meaning(data: advnb.Dataset) -> str:
    made = {name: recipe(data) for name, recipe in strategies.RECIPES.items()}
    sets = {
        name: strategies.searched(data, name)
        for name in strategies.ATTACKS
        if not name.startswith("error") and not name.endswith(("-transfer", "-unseen"))
    }
    printed = CarliniWagner.printed(sets["regular-cw"])
    weights = [
        files.digest(files.load_tensors(FOLDER / f"fonts-{kind}.safetensors")[0])
        for kind in ("flow", "flow-shared")
    ]
    # ranges and a manifold's weights decide a result as well, and are in no text
    text = f"{made} {sets} {printed} {curves.SOURCE} {RANGES} {SMALL} {weights}"
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def test_no_name_changes_its_meaning_unnoticed(fonts: advnb.Dataset) -> None:
    text = meaning(fonts)
    assert " at 0x" not in text
    found = curves.VERSION, hashlib.sha256(text.encode()).hexdigest()
    assert found == PINNED, (
        "a strategy or an attack of advnb.curves means something else than before: results that "
        "lie in caches and in the package are no longer those of their names. Add one to "
        f"curves.VERSION and write {found} here with the new number (if only a text has changed "
        "and no result can, the old number stays)"
    )


def test_the_meaning_is_the_same_twice(fonts: advnb.Dataset) -> None:
    assert meaning(fonts) == meaning(advnb.load("fonts"))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("-n", "0"), "n must be a whole number >= 1"),
        (("--device", "tpu"), "there is no device 'tpu'"),
        (("--figure", "l2", "--profile", "smoke"), "leave --profile out"),
    ],
)
def test_what_fits_no_cell_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: tuple[str, ...], told: str
) -> None:
    assert main(["sweep", "fonts", "--cache", str(tmp_path), *wrong]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert told in line
