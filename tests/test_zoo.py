"""Every shipped model is the one its card describes, and does what the card says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from scipy.stats import binom

import advnb
from advnb import zoo
from advnb.files import DamagedFileError, digest, load_tensors, save_tensors, unpacked

from .conftest import ROOT, real, refused

FIELDS = {
    "name", "network", "shape", "classes", "data", "recipe", "epochs", "seed", "minutes",
    "hardware", "torch", "date", "measured", "checksum", "data_sha256", "note",
}  # fmt: skip


def test_names() -> None:
    assert set(zoo.names()) >= {
        f"{data}-cnn-{kind}"
        for data in ("fonts", "mnist", "fashion", "cifar10")
        for kind in ("normal", "adversarial")
    }


def test_unknown_names() -> None:
    for look in (zoo.load, zoo.card, zoo.entry):
        with refused("did you mean 'mnist-cnn-adversarial'"):
            look("mnist-cnn-adverserial")
        with refused("zoo.ENTRIES lists them"):
            look("xyzzy")


def told(what: object) -> str:
    """The text of an attack or recipe without the attack's batch size, which decides nothing."""
    return re.sub(r"batch_size=\w+, seed", "seed", str(what))


@pytest.mark.parametrize("name", zoo.names())
def test_model_and_card(name: str) -> None:
    card, model = zoo.card(name), zoo.load(name)
    assert set(card) >= FIELDS
    assert card["name"] == name
    assert told(card["recipe"]) == told(zoo.entry(name).recipe)
    assert (card["epochs"], card["seed"]) == (zoo.entry(name).epochs, zoo.entry(name).seed)
    assert f"{zoo.entry(name).n:,} training images" in card["data"]
    assert told(zoo.entry(name).attack) in told(card["measured"])
    for what in ("accuracy", "success"):
        number = card["measured"][what]
        assert 0 <= number["low"] <= number["value"] <= number["high"] <= 1
        assert number["n"] >= 1000 * (what == "accuracy")
    assert not any(module.training for module in model.modules())
    assert model(torch.zeros(1, *card["shape"])).shape == (1, card["classes"])
    assert (zoo.FOLDER / f"{name}.safetensors").stat().st_size < 2_000_000


def test_the_pairs_differ_as_they_should() -> None:
    for data in ("fonts", "mnist", "fashion", "cifar10"):
        normal, robust = (
            zoo.card(f"{data}-cnn-{kind}")["measured"] for kind in ("normal", "adversarial")
        )
        assert robust["success"]["value"] < 0.55 < 0.95 < normal["success"]["value"]


@pytest.mark.parametrize("name", [n for n in zoo.names() if zoo.entry(n).certify])
def test_certified_again(name: str) -> None:
    entry, card = zoo.entry(name), zoo.card(name)["measured"]["certified"]
    assert card["eps"] == entry.certify
    test = real(entry.data).test(250)
    sure = advnb.certify.certified(zoo.load(name), test, card["eps"], inner="ibp")
    low, high = binom.interval(0.999, 250, card["value"])
    assert low <= int(sure.sum()) <= high
    found = entry.attack(zoo.load(name), test[:100])
    assert not (sure[:100] & found.success.any(0)).any()  # certified, and fooled


@pytest.mark.parametrize("name", zoo.names())
def test_measured_again(name: str) -> None:
    kind = zoo.entry(name).data
    data = advnb.load(kind) if kind.startswith("fonts") else real(kind)
    model, card = zoo.load(name), zoo.card(name)["measured"]
    whole, told = card["accuracy"]["n"], card["accuracy"]["value"]
    n = 1500 if zoo.entry(name).network == "WRM" else whole  # milliseconds an image
    accuracy = advnb.accuracy(model, data.test(n))
    # a copy of the data in another order, or before JPEG, is not the card's
    same = digest(data.train(zoo.entry(name).n).content()) == zoo.card(name)["data_sha256"]
    if n < whole:
        low, high = binom.interval(0.999, n, told)
        assert low <= round(accuracy.value * n) <= high
    else:
        assert abs(accuracy.value - told) * n <= (2.001 if same else 0.03 * n)
    success = zoo.entry(name).attack(model, data.test(60)).success_rate("images")
    low, high = binom.interval(0.999, success.n, card["success"]["value"])
    assert low <= round(success.value * success.n) <= high


@pytest.mark.parametrize("name", zoo.names())
def test_models_are_kept_small_and_loaded_in_single(name: str) -> None:
    path = zoo.FOLDER / f"{name}.safetensors"
    whole, _ = load_tensors(path)
    for key, tensor in zoo.load(name).state_dict().items():
        assert tensor.dtype == (torch.float32 if whole[key].is_floating_point() else torch.int64)
        assert torch.equal(tensor, whole[key].to(tensor.dtype))
    with safe_open(path, framework="pt") as file:
        types = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    assert torch.float32 not in types
    assert (torch.int8 in types) == (zoo.entry(name).bits == 8)


def test_all_that_ships_is_small() -> None:
    package = Path(advnb.__file__).parent
    sizes = {
        path.name: path.stat().st_size
        for kind in ("safetensors", "npz")
        for path in package.rglob(f"*.{kind}")
    }
    assert len(sizes) >= 9
    assert max(sizes.values()) <= 2_000_000, sizes
    weights = [size for name, size in sizes.items() if name.endswith("safetensors")]
    assert sum(weights) <= 12_000_000, sizes


@pytest.mark.parametrize("bits", [8, 16])
def test_rounded_weights_are_the_model_s_own_from_then_on(bits: int) -> None:
    model = advnb.models.CNN(3)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    weights = unpacked(zoo.rounded(model, bits))
    assert weights.keys() == before.keys()
    for key, tensor in model.state_dict().items():
        assert tensor.dtype == before[key].dtype
        assert torch.equal(weights[key].to(tensor.dtype), tensor)
        if not tensor.is_floating_point():
            assert weights[key].dtype == before[key].dtype
        elif bits == 16:
            rounded = torch.from_numpy(before[key].numpy().astype("float16").astype("float32"))
            assert torch.equal(tensor, rounded)
        else:
            assert (tensor - before[key]).abs().max() <= before[key].abs().max() / 250
    assert any(not torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("weight", [70_000.0, float("inf"), float("nan")])
def test_weights_that_do_not_fit_half_precision(weight: float, bits: int) -> None:
    model = advnb.models.CNN(3)
    with torch.no_grad():
        model.head.bias[2] = weight
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with refused("do not fit half precision: train with another seed"):
        zoo.rounded(model, bits)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[key].nan_to_num())


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with two small models and cards, so that damage needs no shipped file."""
    for number, name in enumerate(("fonts-cnn-normal", "fonts-cnn-adversarial")):
        weights = advnb.models.CNN(number).state_dict()
        save_tensors(tmp_path / f"{name}.safetensors", weights)
        card = {
            "name": name, "network": "CNN", "shape": [1, 28, 28], "classes": 10,
            "checksum": advnb.files.digest(weights), "measured": {}, "note": "",
        }  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(card))
    return tmp_path


def test_load_from_a_folder(made: Path) -> None:
    model = zoo.load("fonts-cnn-adversarial", made)
    assert torch.equal(model.head.weight, advnb.models.CNN(1).head.weight)
    assert not model.training


def test_changed_weights(made: Path) -> None:
    path = made / "fonts-cnn-normal.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
    with refused("checksum", DamagedFileError):
        zoo.load("fonts-cnn-normal", made)
    path.write_bytes(good[:5000])
    with refused("safetensors", DamagedFileError):
        zoo.load("fonts-cnn-normal", made)
    path.write_bytes(good)
    tensors, _ = load_tensors(path)
    tensors["head.bias"] = tensors["head.bias"] + 1e-6
    save_tensors(path, tensors)  # whole, with a checksum of its own, and still not the model
    with refused("card", DamagedFileError):
        zoo.load("fonts-cnn-normal", made)


def test_swapped_cards(made: Path) -> None:
    shutil.copy(made / "fonts-cnn-adversarial.json", made / "fonts-cnn-normal.json")
    with refused("card", DamagedFileError):
        zoo.load("fonts-cnn-normal", made)


def test_swapped_models_with_their_cards(made: Path) -> None:
    for end in ("json", "safetensors"):
        shutil.copy(made / f"fonts-cnn-adversarial.{end}", made / f"fonts-cnn-normal.{end}")
    with refused("fonts-cnn-normal", DamagedFileError):
        zoo.load("fonts-cnn-normal", made)


@pytest.mark.parametrize(
    "field", ["name", "network", "shape", "classes", "checksum", "measured", "note"]
)
def test_cards_that_lack_something(made: Path, field: str) -> None:
    path = made / "fonts-cnn-normal.json"
    rest = {k: v for k, v in json.loads(path.read_text()).items() if k != field}
    path.write_text(json.dumps(rest))
    for look in (zoo.card, zoo.load):
        with refused("not the card of fonts-cnn-normal: train the model again", DamagedFileError):
            look("fonts-cnn-normal", made)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"network": "CNN"}'])
def test_damaged_cards(made: Path, content: str) -> None:
    (made / "fonts-cnn-normal.json").write_text(content)
    with refused("fonts-cnn-normal.json", DamagedFileError):
        zoo.load("fonts-cnn-normal", made)


def test_missing_files(made: Path) -> None:
    (made / "fonts-cnn-normal.safetensors").unlink()
    with refused("no such file", FileNotFoundError):
        zoo.load("fonts-cnn-normal", made)
    (made / "fonts-cnn-normal.json").unlink()
    with refused("zoo train fonts-cnn-normal", FileNotFoundError):
        zoo.load("fonts-cnn-normal", made)


def advnb_command(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "advnb", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_training_an_unknown_model() -> None:
    ran = advnb_command("zoo", "train", "fonts-cnn-normal", "fonts-cnn-normale")
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1
    assert "did you mean 'fonts-cnn-normal'" in ran.stderr
    assert ran.stdout == ""


def test_listing() -> None:
    ran = advnb_command("zoo", "list")
    assert ran.returncode == 0, ran.stderr
    for name in zoo.names():
        value = zoo.card(name)["measured"]["accuracy"]["value"]
        assert any(
            line.startswith(name) and f"{value:.2%}" in line for line in ran.stdout.splitlines()
        )


def test_training_makes_a_model_and_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = advnb.Attack(advnb.Pixels(0.1), steps=2)
    tiny = zoo.Entry("fonts", "CNN", 100, advnb.recipes.normal(), 1, attack, 30)
    monkeypatch.setitem(zoo.ENTRIES, "tiny", tiny)
    zoo.train("tiny", tmp_path, progress=False)
    card = zoo.card("tiny", tmp_path)
    assert set(card) >= FIELDS
    assert card["measured"]["accuracy"]["n"] == 20_000
    assert card["measured"]["success"]["n"] <= 30
    model = zoo.load("tiny", tmp_path)
    split = advnb.load("fonts").test(20_000)
    assert advnb.accuracy(model, split).value == card["measured"]["accuracy"]["value"]
    assert {p.name for p in tmp_path.iterdir()} == {"tiny.json", "tiny.safetensors"}
