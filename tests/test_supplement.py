"""The figures of S's supplement: their cells, and what is set beside the printed numbers."""

from __future__ import annotations

import pandas as pd
import pytest

from advnb import plots, supplement
from advnb.__main__ import main
from advnb.curves import Cell, printed, summary
from advnb.sweeps import shipped

from .conftest import refused

FIGURES = ("models", "l2", "transfer", "variants", "class-agnostic", "combined")


@pytest.mark.parametrize("figure", FIGURES)
def test_cells_are_what_the_figure_shows(figure: str) -> None:
    told = printed(figure).query("data == 'fonts' and n == 1000")
    found = supplement.cells(figure, n=[1000], seeds=[3])
    assert len(found) == len(set(found))
    assert {(cell.data, cell.n, cell.seed, cell.epochs) for cell in found} == {
        ("fonts", 1000, 3, 20)
    }
    # the adversarial models of the L2 figure are trained with the L2 attack
    points = {(c.model, c.recipe.removesuffix("-l2"), c.attack) for c in found}
    theirs = set(zip(told.model, told.recipe, told.attack))
    assert theirs <= points
    assert {attack for *_, attack in points - theirs} <= {"error"}
    assert all(c.recipe.endswith("-l2") == (figure == "l2") for c in found if "on-" in c.recipe)


def test_sizes_and_seeds() -> None:
    found = supplement.cells("variants")
    assert {(cell.n, cell.seed) for cell in found} == {(n, s) for n in (1000, 5000) for s in (0, 1)}


def test_an_unknown_figure() -> None:
    for act in (supplement.cells, supplement.beside):
        with refused("^figure must be one of curves, .*; got 'fig. 9'"):
            act("fig. 9")


def row(recipe: str, attack: str, seed: int, value: float, model: str = "CNN") -> dict:
    cell = Cell("fonts", model, recipe, 1000, seed, attack, 10)
    return {**vars(cell), "value": value, "error": ""}


def test_beside_is_the_mean_and_the_printed_number() -> None:
    table = pd.DataFrame([
        row("normal", "regular", 0, 0.9), row("normal", "regular", 1, 0.7),
        row("regular-full", "error", 0, 0.5), row("normal", "on-true", 0, 0.1),
        row("normal", "error", 0, 0.3, model="MLP"),
        row("normal", "regular", 0, 0.1) | {"data": "mnist"},
    ])  # fmt: skip
    found = supplement.beside("variants", table).set_index(["model", "recipe", "attack", "n"])
    theirs = printed("variants").query("data == 'fonts' and n == 1000")
    theirs = theirs.set_index(["recipe", "attack"]).value
    assert list(found.index) == [
        ("CNN", "normal", "regular", 1000), ("CNN", "regular-full", "error", 1000),
    ]  # fmt: skip
    assert found.value.tolist() == pytest.approx([0.8, 0.5])
    assert found.seeds.tolist() == [2, 1]
    assert found.printed.tolist() == [
        theirs["normal", "regular"], theirs["regular-full", "error"],
    ]  # fmt: skip


def test_beside_tells_points_of_other_sizes_apart() -> None:
    """A trial on few images next to the whole run."""
    whole, trial = row("normal", "regular", 0, 0.9), row("normal", "regular", 0, 0.5)
    found = supplement.beside("variants", pd.DataFrame([whole, trial | {"images": 2, "epochs": 1}]))
    assert found[["images", "restarts", "epochs", "value"]].to_numpy().tolist() == [
        [10, 1, 20, 0.9], [2, 1, 1, 0.5],
    ]  # fmt: skip


def test_beside_l2_takes_models_trained_in_l2() -> None:
    table = pd.DataFrame([
        row("regular-l2", "regular-l2", 0, 0.6), row("regular", "regular-l2", 0, 0.9),
    ])  # fmt: skip
    (found,) = supplement.beside("l2", table).itertuples()
    assert (found.recipe, found.value) == ("regular-l2", 0.6)
    theirs = printed("l2").query("data == 'fonts' and n == 1000 and recipe == 'regular'")
    assert found.printed == theirs.set_index("attack").value["regular-l2"]


def test_what_ships_is_the_default() -> None:
    ships = pd.concat([shipped("fonts"), shipped("supplement")])
    assert not ships.key.duplicated().any()
    for figure in FIGURES:
        pd.testing.assert_frame_equal(supplement.beside(figure), supplement.beside(figure, ships))


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--figure names the cells, --n, --seed and the rest narrow them down."""
    asked: list[list[Cell]] = []

    def run(cells: list[Cell], **_: object) -> pd.DataFrame:
        asked.append(cells)
        return pd.DataFrame([{**vars(cell), "value": 0.5, "error": ""} for cell in cells])

    monkeypatch.setattr("advnb.curves.run", run)
    assert main(["sweep", "fonts", "--figure", "l2", "-n", "1000", "--seed", "1"]) == 0
    assert asked == [supplement.cells("l2", n=[1000], seeds=[1])]
    narrow = ["--recipe", "normal", "--attack", "error"]
    assert main(["sweep", "fonts", "--figure", "l2", *narrow]) == 0
    assert {(c.recipe, c.attack) for c in asked[1]} == {("normal", "error")}
    assert main(["sweep", "fonts", "--figure", "models", "--model", "cnn"]) == 2
    assert "figure models has no model cnn" in capsys.readouterr().err
    for wrong, told in (
        (["--recipe", "normal", "regullar"], "no recipe regullar"),  # however many others match
        (["--attack", "eror", "error"], "no attack eror"),
        (["--recipe", "normal", "--attack", "regular-cw", "--model", "CNN"], ""),
    ):
        assert main(["sweep", "fonts", "--figure", "l2", *wrong]) == (2 if told else 0)
        assert told in capsys.readouterr().err
    assert main(["sweep", "mnist", "--figure", "l2"]) == 2
    assert "--figure is of fonts" in capsys.readouterr().err


@pytest.mark.parametrize("figure", ["long", "celeba"])
def test_figures_of_other_runs(figure: str) -> None:
    for act in (supplement.cells, supplement.beside):
        with refused(f"figure {figure} is not of these cells"):
            act(figure)


def test_another_network_s_error_is_another_place() -> None:
    table = pd.DataFrame([
        row("normal", attack, seed, value, model)
        for model, error in (("CNN", 0.2), ("MLP", 0.4))
        for attack, value in (("error", error), ("regular", 2 * error))
        for seed in (0, 1)
    ])  # fmt: skip
    found = plots.strategies._measures(summary(table), "regular", "error")
    assert len(found) == 2
    assert found.value.tolist() == (2 * found.x).tolist()


def test_the_picture_has_every_point() -> None:
    tables = {name: supplement.beside(name).query("n == 1000") for name in ("variants", "transfer")}
    (axes,) = plots.beside(tables, alt="measured over printed").axes
    drawn = sum(len(line.get_xdata()) for line in axes.lines[1:])
    assert drawn == sum(map(len, tables.values()))
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert told == [*tables, "test error", "success rate"]
    circles, squares = axes.lines[1:3]
    errors = tables["variants"].query("attack == 'error'")
    assert circles.get_xdata().tolist() == errors.printed.tolist()
    assert circles.get_ydata().tolist() == errors.value.tolist()
    assert len(squares.get_xdata()) == len(tables["variants"]) - len(errors)
