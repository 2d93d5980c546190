"""Tables at full strength: cells that agree with `table`, and rows that ship for today's models."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd
import pytest

import advnb
from advnb import blindspots, sweeps, zoo
from advnb.__main__ import main
from advnb.blindspots import runs

from .conftest import real, refused

WEAK = partial(advnb.CarliniWagner, searches=3, steps=4)
FONTS = "fonts-cnn-adversarial"


@pytest.fixture
def weak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "CarliniWagner", WEAK)


@pytest.mark.usefixtures("weak")
def test_cells_agree_with_the_table(fonts: advnb.Dataset, tmp_path: Path) -> None:
    model, split = zoo.load(FONTS), fonts.test(12)
    done = runs.run(runs.wanted(FONTS, 12), cache=tmp_path, progress=False)
    found = runs.as_table(done)
    expected = blindspots.table(model, split, WEAK("linf"), progress=False)
    pd.testing.assert_frame_equal(found, expected)
    row = done.iloc[0]
    result = WEAK("linf")(model, split)
    sizes = result.distances[:, result.correct]
    assert row["success_noise"] == (sizes[0] <= 0.1).double().mean()
    assert row["success_gray"] == (sizes[1] <= 0.1).double().mean()
    assert row["success"] >= max(row["success_noise"], row["success_gray"])
    assert row["norm_50"] == pytest.approx(sizes.amin(0).quantile(0.5).item())
    assert row["n"] == int(result.correct.sum())


@pytest.mark.parametrize(("kind", "restarts"), [("pgd", 2), ("pgd-5", 5)])
def test_cells_of_pgd(fonts: advnb.Dataset, tmp_path: Path, kind: runs.Run, restarts: int) -> None:
    cells = runs.wanted(FONTS, 8, kind)[:2]
    found = runs.as_table(runs.run(cells, cache=tmp_path, progress=False))
    pairs = [(cell.alpha, cell.beta) for cell in cells]
    attack = zoo.pgd(0.1, restarts=restarts)
    expected = blindspots.table(zoo.load(FONTS), fonts.test(8), attack, pairs, progress=False)
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.usefixtures("weak")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.csv"
    command = ["blindspots", FONTS, "--images", "4", "--cache", str(tmp_path), "--out", str(out)]
    assert main(command) == 0
    assert len(pd.read_csv(out)) == 5
    assert FONTS in capsys.readouterr().out


def test_the_command_when_every_column_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*settings: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(runs, "shifted", broken)
    assert main(["blindspots", FONTS, "--images", "4", "--cache", str(tmp_path)]) == 2
    assert "5 of 5 columns failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [(("--images", "0"), "images must be a whole number >= 1"), (("--device", "tpu"), "'tpu'")],
)
def test_what_fits_no_column_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: tuple[str, ...], told: str
) -> None:
    assert main(["blindspots", FONTS, "--cache", str(tmp_path), *wrong]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert told in line


def test_which_table() -> None:
    assert {name: runs.defence(name) for name in ("mnist-wrm", "fashion-small-certified")} == {
        "mnist-wrm": "wrm", "fashion-small-certified": "certified",
    }  # fmt: skip
    assert runs.defence("mnist-madry") == runs.defence("mnist-cnn-cured") == "adversarial"
    assert set(runs.MODELS) <= set(zoo.ENTRIES)


def test_bad_input() -> None:
    with refused("cells must be a list of Column"):
        runs.run([1])  # type: ignore[list-item]
    with refused("did you mean 'mnist-wrm'"):
        runs.wanted("mnist-wmr")
    with refused("attack must be cw, pgd, pgd-5"):
        runs.wanted(FONTS, 4, "fgsm")  # type: ignore[arg-type]


def test_what_ships_is_of_the_models_that_ship() -> None:
    table = sweeps.shipped("blindspots")
    assert not table.duplicated(["model", "alpha", "beta", "images", "attack"]).any()
    for model, rows in table.groupby("model"):
        real(zoo.entry(str(model)).data)
        starts = rows[["success_noise", "success_gray"]].max(axis=1)  # C&W's; PGD has none
        assert list(starts.isna()) == list(rows.attack != "cw")
        assert (rows.success >= starts.fillna(0)).all()
        assert (rows.success_scaled <= rows.success).all()
        if zoo.made(str(model)):  # else a retrained model would show another's numbers
            fields = ["model", "alpha", "beta", "images", "attack"]
            for row in rows.to_dict("records"):
                cell = runs.Column(*(row[name] for name in fields))
                assert row["key"] == sweeps.key(cell, runs.Measure())
