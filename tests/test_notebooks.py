"""The notebooks: how they are built, and that each of their checks fails where it should.

A new notebook with a check needs a row in BREAKS: something in the package, the model or the data
that goes wrong, and the lines of the notebook that must then say so.
"""

from __future__ import annotations

import ast
import copy
import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from torch import Tensor, nn

import advnb
import advnb.curves
import advnb.divergence
import advnb.manifolds
import advnb.neighbours
from advnb import attribution
from advnb.fonts import KnownManifold
from advnb.manifolds import LearnedManifold
from advnb.perturbations import Region
from advnb.relaxations import Box
from advnb.search import LOSSES, Search
from advnb.toys import Tsipras

from .conftest import ROOT
from .notebooks import BAR, FOLDER, VIEW, clean, navigation, prepare

PATHS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in PATHS]
OFFLINE = [
    path for path in PATHS if "offline=" in path.read_text()
]  # FONTS take other data's place
CHECK = "# NBVAL_CHECK_OUTPUT"
ABSOLUTE = re.compile(
    r"(?<![\w.])/(home|root|tmp|usr|opt|var|mnt|Users)/|\b[A-Z]:\\|" + re.escape(str(ROOT))
)
SIZES = r"\.(test|train)\(\d{2,}|\b(restarts|epochs)=\d|\bsmoke\b|ADVNB_PROFILE|profile\(\)\.name"

every = pytest.mark.parametrize("path", PATHS, ids=NAMES)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook: nbformat.NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in code(notebook) for output in cell.outputs]


def words(output: nbformat.NotebookNode) -> str:
    """All text of an output; pictures left out."""
    data = output.get("data", {})
    return output.get("text", "") + "".join(v for k, v in data.items() if k.startswith("text/"))


def committed(path: Path) -> dict[int, str]:
    """What the check cells of a notebook say on the page, by the cells' numbers."""
    cells = (cell for cell in code(read(path)) if CHECK in cell.source)
    return {cell.execution_count: "".join(map(words, cell.outputs)) for cell in cells}


# how a notebook is built --------------------------------------------------------------------------


@every
def test_a_notebook_asks_and_answers(path: Path) -> None:
    notebook = read(path)
    title = notebook.cells[0].source.splitlines()[0]
    assert re.fullmatch(rf"# {path.stem[:2]} · .+\?", title), "the title is a question"
    first, text = notebook.cells[0].source, prose(notebook)
    for part in (
        r"\*\*You will\*\*",
        r"\*\*Before you start:\*\*",
        r"\*\*Time:\*\*.*(second|minute)",
    ):
        assert re.search(part, first), f"the first cell tells {part}"
    for part in ("**Predict", "## Exercise", "## Summary", "**Reference"):
        assert part in text
    hints, folded = (text.count(f"<summary>{word}</summary>") for word in ("Hint", "Solution"))
    assert hints == folded > 0, "an exercise has a hint and a folded solution"
    assert text.count("<details>") == text.count("</details>") == hints + folded


@every
def test_the_bars_and_all_links_lead_somewhere(path: Path) -> None:
    cells = read(path).cells
    assert cells[1].source == cells[-1].source == navigation(path.stem, NAMES)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(read(path))):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        linked = (path.parent / file).resolve()
        assert linked.is_file(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", t).strip().lower().replace(" ", "-") for t in titles]
            assert heading in anchors, target


@every
def test_a_notebook_is_executed_and_clean(path: Path) -> None:
    notebook = read(path)
    assert [cell.execution_count for cell in code(notebook)] == [*range(1, len(code(notebook)) + 1)]
    assert clean(copy.deepcopy(notebook)) == notebook, "run `python -m tests.notebooks`"
    assert [c.source for c in prepare(path, NAMES).cells] == [c.source for c in notebook.cells]
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert VIEW not in output.get("data", {})
        assert not re.search(r"\d+%\|", words(output)), "a progress bar"
        assert not ABSOLUTE.search(words(output)), "a path of the machine that ran it"
    for cell in notebook.cells:
        assert not ABSOLUTE.search(cell.source)


@every
def test_pictures_come_early_and_are_told_in_words(path: Path) -> None:
    pictures = [
        (position, output.data)
        for position, cell in enumerate(code(read(path)))
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 3
    assert pictures[0][0] <= 2, "a picture by the third code cell"
    for _, data in pictures:
        alt = data.get("text/plain", "").removeprefix("Picture: ")
        assert len(alt) > 20, f"{alt!r} is no description"
        assert "<" not in alt


@every
def test_code_is_short_and_leaves_sizes_to_the_profile(path: Path) -> None:
    cells = code(read(path))
    for cell in cells:
        assert len(cell.source.splitlines()) <= 20, cell.source
        found = re.search(SIZES, cell.source)
        assert not found, f"{found}: advnb.profile() decides that"
    assert cells[-1].source == "advnb.live.close_all()"


@every
def test_a_notebook_checks_at_least_three_claims(path: Path) -> None:
    cells = [cell for cell in code(read(path)) if CHECK in cell.source]
    assert len(cells) >= 3
    for cell in cells:
        assert cell.source.startswith(CHECK), "visible: it is the first line"
        assert [output.get("name") for output in cell.outputs] == ["stdout"]
    for text in committed(path).values():
        assert text.strip()
        assert "DOES NOT HOLD" not in text


# the tool that commits them -----------------------------------------------------------------------


def dirty() -> nbformat.NotebookNode:
    """A notebook as a run leaves it."""
    view, warned = {VIEW: {"model_id": "1"}}, "/a/b.py:3: AttackWarning: flat\n  warn(text)\n"
    kept = view | {"image/png": "abc", "text/plain": "alt"}
    made = [
        new_output("display_data", data=view | {"text/plain": " 50%|#####  | 1/2"}),
        new_output(
            "display_data", data=view | {"text/plain": "seen: 7 images [00:01, ? images/s]"}
        ),
        new_output("execute_result", data=kept, metadata={"image/png": {"width": 9}}),
        new_output("display_data", data=dict(view)),
        new_output("stream", name="stderr", text="epochs:  10%|#  | 1/10 [00:01]"),
        new_output("stream", name="stderr", text=warned),
        new_output("stream", name="stdout", text="82% of 10|20\n"),
    ]
    notebook = new_notebook(cells=[new_markdown_cell("# A?"), new_code_cell("1", outputs=made)])
    notebook.cells[1].metadata["execution"] = {"iopub.status.busy": "now"}
    notebook.metadata["widgets"] = {"state": {}}
    notebook.metadata["language_info"] = {"name": "python", "version": "3.11.2"}
    return notebook


def test_clean_drops_what_a_page_cannot_show_and_keeps_the_rest() -> None:
    notebook = clean(dirty())
    assert "widgets" not in notebook.metadata
    assert notebook.metadata.language_info == {"name": "python"}
    assert all(not cell.metadata for cell in notebook.cells)
    picture, warned, printed = notebook.cells[1].outputs
    assert picture.data == {"image/png": "abc", "text/plain": "alt"}
    assert picture.metadata == {}
    assert warned.text == "AttackWarning: flat\n"
    assert printed.text == "82% of 10|20\n"
    nbformat.validate(notebook)


def test_clean_and_prepare_change_nothing_the_second_time(tmp_path: Path) -> None:
    once = clean(dirty())
    assert clean(copy.deepcopy(once)) == once
    path = tmp_path / "b.ipynb"
    nbformat.write(once, path)
    names = ["a", "b", "c"]
    first = prepare(path, names)
    nbformat.write(first, path)
    assert prepare(path, names) == first
    assert [cell.source.startswith(BAR) for cell in first.cells] == [False, True, False, True]


def test_the_bar_names_the_neighbours_and_the_contents() -> None:
    names = ["a", "b", "c"]
    contents = "[contents](../README.md#the-course)"
    assert navigation("a", names) == f"{BAR}\n{contents} · [b →](b.ipynb)"
    assert navigation("b", names) == f"{BAR}\n[← a](a.ipynb) · {contents} · [c →](c.ipynb)"
    assert navigation("c", names) == f"{BAR}\n[← b](b.ipynb) · {contents}"
    assert navigation("a", ["a"]) == f"{BAR}\n{contents}"


# what its checks say ------------------------------------------------------------------------------


class Names(ast.NodeVisitor):
    """What a cell makes, and what it takes from the cells above it."""

    def __init__(self, source: str) -> None:
        self.made: set[str] = set()
        self.taken: set[str] = set()
        self.visit(ast.parse(source))

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.made.add(node.id)
        elif node.id not in self.made:
            self.taken.add(node.id)

    def visit_alias(self, node: ast.alias) -> None:
        self.made.add((node.asname or node.name).split(".")[0])

    def in_order(self, *nodes: ast.AST | list | None) -> None:
        """What is read comes before what is written, as it runs."""
        for node in nodes:
            for part in node if isinstance(node, list) else [node]:
                if part is not None:
                    self.visit(part)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.in_order(node.value, node.targets)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name) and node.target.id not in self.made:
            self.taken.add(node.target.id)
        self.in_order(node.value, node.target)

    def visit_For(self, node: ast.For) -> None:
        self.in_order(node.iter, node.target, node.body, node.orelse)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.in_order(node.iter, node.target, node.ifs)

    def local(self, *nodes: ast.AST | list) -> None:
        """Names that are made in here are gone afterwards."""
        made = self.made.copy()
        self.in_order(*nodes)
        self.made = made

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> None:
        self.local(node.generators, node.elt)

    visit_SetComp = visit_GeneratorExp = visit_ListComp

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self.local(node.generators, node.key, node.value)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.local(node.args, node.body)

    def visit_arg(self, node: ast.arg) -> None:
        self.made.add(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.made.add(node.name)
        self.local(node.args, node.decorator_list, node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.made.add(node.name)
        self.local(node.bases, node.decorator_list, node.body)


@pytest.mark.parametrize(
    ("source", "made", "taken"),
    [
        ("import a.b as c, d.e", "c d", ""),
        ("x = f(x)", "x", "f x"),
        ("x = 1; y = x", "x y", ""),
        ("x += y", "x", "x y"),
        ("for k, v in k.items(): print(k, v, w)", "k v", "k print w"),
        ("[k for k in j if k]; k", "", "j k"),
        ("{k: v for k, v in d.items()}; f = lambda z: z + q", "f", "d q"),
        ("def f(a, b=c):\n    d = a\n    return d + e", "f", "c e"),
        ("class A(B):\n    x = 1", "A", "B"),
        ("x[0] = y; z.w = 1", "", "x y z"),
    ],
)
def test_what_a_cell_makes_and_takes(source: str, made: str, taken: str) -> None:
    names = Names(source)
    assert names.made == set(made.split())
    assert names.taken == set(taken.split())


def needed(
    cells: list[nbformat.NotebookNode], checks: Collection[int]
) -> list[nbformat.NotebookNode]:
    """Check cells, by their numbers, and what they stand on: the nearest cells above that make
    the names they take."""
    kept: list[nbformat.NotebookNode] = []
    wanted: set[str] = set()
    for cell in reversed(cells):
        names = Names(cell.source)
        if cell.execution_count in checks or names.made & wanted:
            kept.insert(0, cell)
            wanted = (wanted - names.made) | names.taken
    return kept


def run(cells: list[nbformat.NotebookNode]) -> dict[int, str]:
    """What the check cells say, by number, when these cells run here from top to bottom."""
    names: dict[str, Any] = {"__name__": "__main__"}
    texts = {}
    for cell in cells:
        printed = io.StringIO()
        with (
            warnings.catch_warnings(action="ignore"),
            redirect_stdout(printed),
            redirect_stderr(io.StringIO()),
        ):
            exec(compile(cell.source, f"cell {cell.execution_count}", "exec"), names)
        if CHECK in cell.source:
            texts[cell.execution_count] = printed.getvalue()
    return texts


@pytest.fixture(autouse=True)
def _nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advnb.downloads, "reachable", lambda addresses: False)


@pytest.mark.parametrize("path", OFFLINE, ids=lambda path: path.stem)
def test_a_run_without_data_says_the_same(path: Path, unkept: Path) -> None:
    cells = [cell for cell in code(read(path)) if "Panel(" not in cell.source]  # the slowest
    assert run(cells) == committed(path)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A reader's images: 20x24 in colour, four classes that differ in colour and place."""
    stream = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 600), ("test", 200)):
        y = np.arange(n) % 4
        x = stream.normal(110, 30, (n, 20, 24, 3))
        for kind, (row, column) in enumerate(((0, 0), (0, 12), (10, 0), (10, 12))):
            x[y == kind, row : row + 10, column : column + 12, kind % 3] += 70
        arrays |= {f"{part}_x": x.clip(0, 255).astype(np.uint8), f"{part}_y": y}
    np.savez(tmp_path / "my.npz", **arrays)
    return tmp_path / "my.npz"


def solution(path: Path, word: str) -> str:
    """The code of the exercise's solution that holds the word."""
    blocks = re.findall(r"```python\n(.*?)```", prose(read(path)), re.DOTALL)
    (found,) = (block for block in blocks if word in block)
    return found


def test_own_images_go_through_the_whole_blind_spot_notebook(own: Path) -> None:
    path = FOLDER / "08_blindspots.ipynb"
    cells = code(read(path))
    lines = cells[0].source.splitlines(keepends=True)
    (first,) = (i for i, line in enumerate(lines) if line.startswith("data ="))
    assert lines[first + 1].startswith("model =")
    mine = solution(path, "my.npz").replace("my.npz", str(own))
    cells[0].source = "".join([*lines[:first], mine, *lines[first + 2 :]])
    assert len(run(cells)) == len(committed(path))


@pytest.mark.parametrize("name", ["00_start_here", "01_adversarial_examples"])
def test_own_images_go_through_the_first_notebooks(
    name: str, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = advnb.load(own)

    def fitted(named: str) -> nn.Module:
        recipe = advnb.recipes.normal()
        if "adversarial" in named:
            recipe = advnb.recipes.adversarial(advnb.Attack(advnb.Pixels(0.1), steps=5), 1.0)
        model = advnb.models.CNN(shape=data.shape, classes=len(data.classes))
        return advnb.fit(model, data.train(), recipe, epochs=4, progress=False)

    monkeypatch.setattr(advnb, "load", lambda *_, **__: data)
    monkeypatch.setattr(advnb.zoo, "load", fitted)
    path = FOLDER / f"{name}.ipynb"
    texts = run(code(read(path)))
    assert len(texts) == len(committed(path))
    bounds = [text for text in texts.values() if "eps" in text or "radius" in text]
    assert bounds
    assert not any("DOES NOT HOLD" in text for text in bounds)


Patch = pytest.MonkeyPatch


def outside_the_ball(patch: Patch) -> None:
    patch.setattr(Region, "project_", lambda self, code: code.clamp_(0, 1))


def only_linf_is_projected(patch: Patch) -> None:
    patch.setattr(Region, "project_", lambda self, code: code.clamp_(self.low, self.high))


def radius_scaled_to_nothing(patch: Patch) -> None:
    patch.setattr(advnb.Pixels, "scaled", lambda self, factor: advnb.Pixels(1e-3))


def rounding_outward(patch: Patch) -> None:
    patch.setattr(torch, "nextafter", lambda at, towards: at)


def search_that_stays_at_its_start(patch: Patch) -> None:
    patch.setattr(Search, "_update", lambda *_: None)


def starts_in_the_box_that_are_the_image(patch: Patch) -> None:
    start, update = Region.start, Search._update
    patch.setattr(
        Region, "start",
        lambda self, kind, *rest: self.origin.clone() if kind == "uniform" else
        start(self, kind, *rest),
    )  # fmt: skip
    patch.setattr(
        Search, "_update",
        lambda self, *rest: None if self.attack.start == "uniform" else update(self, *rest),
    )  # fmt: skip


def success_turned_round(patch: Patch) -> None:
    finish = Search.finish

    def inverted(self: Search) -> tuple[Tensor, Tensor, Tensor]:
        kept, fooled, first = finish(self)
        return kept, ~fooled, first

    patch.setattr(Search, "finish", inverted)


def result_without_the_images_found(patch: Patch) -> None:
    unmoved = property(lambda self: self.split.x.expand(len(self.success), *self.split.x.shape))
    patch.setattr(advnb.AttackResult, "x", unmoved)


def images_counted_that_were_wrong_before(patch: Patch) -> None:
    rate, of_pairs = advnb.stats.rate, advnb.AttackResult.success_rate

    def wrong(self: advnb.AttackResult, over: str = "pairs") -> advnb.Rate:
        if over == "pairs":
            return of_pairs(self)
        return rate((self.success & self.correct).any(0))

    patch.setattr(advnb.AttackResult, "success_rate", wrong)


def loss_whose_name_lies(patch: Patch) -> None:
    patch.setitem(LOSSES, "margin", LOSSES["ce"])


def both_names_one_model(patch: Patch) -> None:
    load = advnb.zoo.load
    patch.setattr(advnb.zoo, "load", lambda name: load(name.replace("adversarial", "normal")))


class Around(nn.Module):
    """A model of the zoo with something done to its output."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.model(x))


def around(patch: Patch, change: Callable[[Tensor], Tensor]) -> None:
    load = advnb.zoo.load
    patch.setattr(advnb.zoo, "load", lambda name: Around(load(name), change).eval())


def model_that_knows_one_class(patch: Patch) -> None:
    around(patch, lambda output: output * 0.001 + torch.arange(10.0, 0, -1))


def model_that_answers_at_random(patch: Patch) -> None:
    stream = torch.Generator().manual_seed(0)
    around(patch, lambda output: output + 100 * torch.randn(output.shape, generator=stream))


def transform(patch: Patch, change: Callable[[Tensor, float, float], Tensor]) -> None:
    patch.setattr(advnb, "scale_shift", change)
    patch.setattr(advnb.blindspots.shift, "scale_shift", change)


def transform_that_does_nothing(patch: Patch) -> None:
    transform(patch, lambda x, alpha, beta: x)


def transform_of_pixels_read_from_0_to_1(patch: Patch) -> None:
    transform(patch, lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1))


def transform_that_only_lightens(patch: Patch) -> None:
    right = advnb.blindspots.shift.scale_shift
    transform(patch, lambda x, alpha, beta: right(x, alpha, abs(beta)))


def transform_that_blackens_every_other_image(patch: Patch) -> None:
    kept = lambda x: (torch.arange(len(x)) % 2).view(-1, 1, 1, 1)  # noqa: E731
    transform(patch, lambda x, alpha, beta: x if alpha == 1 else x * kept(x))


def shift_half_as_wide(patch: Patch) -> None:
    patch.setattr(advnb, "valid_shift", lambda alpha: (-(1 - alpha) / 4, (1 - alpha) / 4))


def distance_that_is_always_one(patch: Patch) -> None:
    ones = lambda self, x, split, **_: torch.ones(len(x))  # noqa: E731
    patch.setattr(advnb.fonts.KnownManifold, "distance", ones)


def projection_on_black(patch: Patch) -> None:
    patch.setattr(
        advnb.fonts.KnownManifold, "project", lambda self, x, split, **_: x - x.mean() * 0.1
    )


def plane_that_nothing_leaves(patch: Patch) -> None:
    patch.setattr(advnb.manifolds.NeighbourManifold, "project", lambda self, x, split: x)
    patch.setattr(
        advnb.manifolds.NeighbourManifold, "_project", lambda self, x, split: (x, split.x)
    )


def box_three_times_as_wide(patch: Patch) -> None:
    region = advnb.OnManifold.region
    patch.setattr(
        advnb.OnManifold, "region", lambda self, split: region(replace(self, eta=0.9), split)
    )


def letters_mixed_up(patch: Patch) -> None:
    found = attribution.attribute

    def mixed(*args: Any, **named: Any) -> attribution.Attribution:
        right = found(*args, **named)
        return replace(right, letter=(right.letter + 1) % 10, distance=right.distance.roll(1, 1))

    patch.setattr(attribution, "attribute", mixed)


def samples_of_another_class(patch: Patch) -> None:
    sample = LearnedManifold.sample

    def other(self: LearnedManifold, labels: Tensor, **named: Any) -> advnb.Split:
        made = sample(self, (labels + 1) % 10, **named)
        return advnb.Split(made.x, labels)

    patch.setattr(LearnedManifold, "sample", other)


def kinds_that_changed_places(patch: Patch) -> None:
    load = LearnedManifold.load
    turned = {"flow": "vaegan", "vaegan": "flow"}
    patch.setattr(LearnedManifold, "load", lambda data, kind="flow": load(data, turned[kind]))


def renamed(patch: Patch, names: dict[str, str]) -> None:
    """The shipped curves under other strategies' names."""
    shipped = advnb.sweeps.shipped
    patch.setattr(
        advnb.sweeps, "shipped",
        lambda name: shipped(name).assign(recipe=lambda t: t.recipe.replace(names)),
    )  # fmt: skip


def strategies_that_changed_places(patch: Patch) -> None:
    renamed(patch, {"normal": "on-true", "on-true": "normal"})


def normal_and_regular_that_changed_places(patch: Patch) -> None:
    renamed(patch, {"normal": "regular", "regular": "normal"})


def both_at_once_that_changed_places(patch: Patch) -> None:
    renamed(patch, {"regular": "regular+on-true", "regular+on-true": "regular"})


def success_of_other_models(patch: Patch) -> None:
    shipped = advnb.sweeps.shipped

    def mixed(name: str) -> pd.DataFrame:
        table, rows = shipped(name), np.random.default_rng(0)
        for attack in ("on-true", "regular"):
            these = table.attack == attack
            table.loc[these, "value"] = rows.permutation(table.value[these].to_numpy())
        return table

    patch.setattr(advnb.sweeps, "shipped", mixed)


def smallest_changes_along_the_manifold_that_leave_it(patch: Patch) -> None:
    made = advnb.CarliniWagner

    def other(set: Any = None) -> advnb.CarliniWagner:
        return made(set=None if isinstance(set, advnb.OnManifold) else set)

    patch.setattr(advnb, "CarliniWagner", other)


def toy_that_nobody_attacks(patch: Patch) -> None:
    patch.setattr(Tsipras, "attacked", lambda toy, x, y, eps: x)


def training_that_learns_nothing(patch: Patch) -> None:
    patch.setenv("ADVNB_CACHE", tempfile.mkdtemp(dir=os.environ["ADVNB_CACHE"]))
    patch.setattr(advnb.curves, "trained", advnb.curves.trained.__wrapped__)
    patch.setattr("advnb.trained.fit", lambda model, *run, **settings: model.eval())


def neighbours_that_come_first(patch: Patch) -> None:
    first = lambda values, count: torch.arange(count).expand(len(values), -1)  # noqa: E731
    patch.setattr(advnb.neighbours, "_smallest", first)


def divergence_the_other_way(patch: Patch) -> None:
    right = advnb.divergence.integrate_kl

    def swapped(log_p: Any, log_q: Any, *rest: Any, **settings: Any) -> Tensor:
        return right(log_q, log_p, *rest, **settings)

    patch.setattr(advnb.divergence, "integrate_kl", swapped)


def bias_that_does_not_fall(patch: Patch) -> None:
    alike = lambda *points, repeats=20, **settings: torch.full((repeats,), 0.1)  # noqa: E731
    patch.setattr(advnb.divergence, "shuffled", alike)


def fooled_when_near(patch: Patch) -> None:
    shipped, slope = advnb.sweeps.shipped, advnb.stats.logistic

    def turned(name: str) -> pd.DataFrame:
        table = shipped(name)
        if name == "distances":
            table["slope_low"], table["slope_high"] = -table.slope_high, -table.slope_low
        return table

    def the_other_way(x: list[float], *rest: list[float]) -> advnb.stats.Estimate:
        return slope([-value for value in x], *rest)

    patch.setattr(advnb.sweeps, "shipped", turned)
    patch.setattr(advnb.stats, "logistic", the_other_way)


def density_of_other_letters(patch: Patch) -> None:
    right = KnownManifold.log_density
    mixed = lambda self, split: right(self, split).flip(0)  # noqa: E731
    patch.setattr(KnownManifold, "log_density", mixed)


def certificates_for_all_that_is_right(patch: Patch) -> None:
    def all_right(model: nn.Module, split: advnb.Split, *_: Any, **__: Any) -> Tensor:
        return advnb.models.logits(model, split).argmax(1) == split.y

    patch.setattr(sys.modules["advnb.blindspots.certificates"], "certified", all_right)


def box_half_as_wide(patch: Patch) -> None:
    around = Box.around
    patch.setattr(Box, "around", staticmethod(lambda x, eps: around(x, eps / 2)))


def cure_that_was_never_taken(patch: Patch) -> None:
    load = advnb.zoo.load
    patch.setattr(advnb.zoo, "load", lambda name: load(re.sub("cured.*", "adversarial", name)))


def cure_that_forgot_its_letters(patch: Patch) -> None:
    load, new = advnb.zoo.load, advnb.models.CNN(1).eval()
    patch.setattr(advnb.zoo, "load", lambda name: new if name.endswith("cured") else load(name))


def contrast_that_counts_twice(patch: Patch) -> None:
    right = advnb.blindspots.robust_limits
    half = lambda split, ratios: right(split, [ratio / 2 for ratio in ratios])  # noqa: E731
    patch.setattr(advnb.blindspots, "robust_limits", half)


def images_that_all_meet(patch: Patch) -> None:
    right = advnb.blindspots.robust_limits
    grey = lambda split, ratios: right(split, [1.0 for _ in ratios])  # noqa: E731
    patch.setattr(advnb.blindspots, "robust_limits", grey)


BREAKS: list[tuple[str, Callable[[Patch], None], list[str]]] = [
    (
        "00_start_here",
        outside_the_ball,
        ["no pixel moved by more than eps"],
    ),
    (
        "00_start_here",
        search_that_stays_at_its_start,
        ["the attack fools more images than noise"],
    ),
    (
        "00_start_here",
        model_that_knows_one_class,
        ["the attack fools more images than noise"],
    ),
    (
        "00_start_here",
        success_turned_round,
        ["the model misreads every image that counts", "the attack fools more images than noise"],
    ),
    (
        "00_start_here",
        result_without_the_images_found,
        ["the model misreads every image that counts"],
    ),
    (
        "01_adversarial_examples",
        outside_the_ball,
        ["every change is within its radius"],
    ),
    (
        "01_adversarial_examples",
        only_linf_is_projected,
        ["every change is within its radius"],
    ),
    (
        "01_adversarial_examples",
        rounding_outward,
        ["every change is within its radius"],
    ),
    (
        "01_adversarial_examples",
        both_names_one_model,
        ["the normal model is fooled more often"],
    ),
    (
        "01_adversarial_examples",
        images_counted_that_were_wrong_before,
        ["counting by hand"],
    ),
    (
        "01_adversarial_examples",
        model_that_answers_at_random,
        ["masking changed no prediction"],
    ),
    (
        "01_adversarial_examples",
        loss_whose_name_lies,
        ["another loss breaks the masked model"],
    ),
    (
        "01_adversarial_examples",
        search_that_stays_at_its_start,
        ["at 0.5 the attack fools every image"],
    ),
    (
        "02_distance_to_the_manifold",
        distance_that_is_always_one,
        ["from a random start regular examples lie", "the search finds at least 80 %"],
    ),
    (
        "02_distance_to_the_manifold",
        projection_on_black,
        ["the distance is nearly the length"],
    ),
    (
        "02_distance_to_the_manifold",
        plane_that_nothing_leaves,
        ["regular changes leave the subspace more", "leave it more than on-learned ones"],
    ),
    (
        "03_on_manifold_attacks",
        search_that_stays_at_its_start,
        [
            "the attack beats one random code",
            "in a box of 0.05 the paper's settings beat 41",
            "real letters still fool the robust network",
        ],
    ),
    (
        "03_on_manifold_attacks",
        box_three_times_as_wide,
        ["every code is within eta"],
    ),
    (
        "03_on_manifold_attacks",
        result_without_the_images_found,
        ["the network misreads every example that counts"],
    ),
    (
        "03_on_manifold_attacks",
        starts_in_the_box_that_are_the_image,
        [
            "41 random codes beat the paper's settings",
            "so does the same search, spread over the box",
        ],
    ),
    (
        "03_on_manifold_attacks",
        letters_mixed_up,
        ["most on-manifold examples still look like their own letter"],
    ),
    (
        "04_learned_manifolds",
        samples_of_another_class,
        ["most new letters are taken for what they are"],
    ),
    (
        "04_learned_manifolds",
        kinds_that_changed_places,
        ["the flow reconstructs better than the VAE-GAN"],
    ),
    (
        "04_learned_manifolds",
        search_that_stays_at_its_start,
        ["10 spread starts fool more than 41 random codes"],
    ),
    (
        "04_learned_manifolds",
        distance_that_is_always_one,
        ["on-learned examples lie farther from their face's manifold"],
    ),
    (
        "05_generalization_curves",
        strategies_that_changed_places,
        [
            "on-true training lowers the error",
            "at N = 5,000 on-true training at least halves",
            "training along the learned manifold lowers the error",
        ],
    ),
    (
        "05_generalization_curves",
        success_of_other_models,
        [
            "error and on-manifold success fall together over N",
            "and nearly so over the strategies, at every N",
            "but not one thing: at one error these two are fooled less",
        ],
    ),
    (
        "05_generalization_curves",
        training_that_learns_nothing,
        ["your model trained along the manifold errs less"],
    ),
    (
        "06_robustness_and_generalization",
        training_that_learns_nothing,
        ["your regularly trained model is fooled less often"],
    ),
    (
        "06_robustness_and_generalization",
        normal_and_regular_that_changed_places,
        ["success stays at its ceiling", "error and success both fall from every N to the next"],
    ),
    (
        "06_robustness_and_generalization",
        search_that_stays_at_its_start,
        ["with the margin as its loss the attack fools"],
    ),
    (
        "06_robustness_and_generalization",
        smallest_changes_along_the_manifold_that_leave_it,
        ["is longer than along six random ones"],
    ),
    (
        "06_robustness_and_generalization",
        toy_that_nobody_attacks,
        ["most attacked points belong to the other class"],
    ),
    (
        "06_robustness_and_generalization",
        both_at_once_that_changed_places,
        ["training for both errs less than for pixels alone"],
    ),
    (
        "07_distance_to_the_training_set",
        neighbours_that_come_first,
        ["the neighbours are the nearest"],
    ),
    (
        "07_distance_to_the_training_set",
        divergence_the_other_way,
        ["the integral is within 1 % of the divergence"],
    ),
    (
        "07_distance_to_the_training_set",
        bias_that_does_not_fall,
        ["what the estimate says where the truth is 0 falls"],
    ),
    (
        "07_distance_to_the_training_set",
        fooled_when_near,
        [
            "on MNIST success grows with the distance",
            "also on Fashion-MNIST and FONTS; on CIFAR-10 it falls",
            "on FONTS success grows with the distance at equal margin",
        ],
    ),
    (
        "07_distance_to_the_training_set",
        density_of_other_letters,
        ["distance follows the known density", "in pixels at equal ink as well"],
    ),
    (
        "08_blindspots",
        shift_half_as_wide,
        ["beta in [-0.15, 0.15]"],
    ),
    (
        "08_blindspots",
        transform_that_does_nothing,
        [
            "background from 0.00 to 0.30",
            "makes the attack succeed",
            "within the stricter radius",
            "the darkest pixel tells",
        ],
    ),
    (
        "08_blindspots",
        transform_of_pixels_read_from_0_to_1,
        ["background from 0.00 to 0.30"],
    ),
    (
        "08_blindspots",
        transform_that_only_lightens,
        [
            "it is blind where black stays black",
            "more images withstand the attack where black stays black",
        ],
    ),
    (
        "08_blindspots",
        both_names_one_model,
        ["makes the attack succeed more often", "in its own features hardly tells"],
    ),
    (
        "08_blindspots",
        radius_scaled_to_nothing,
        ["within the stricter radius"],
    ),
    (
        "08_blindspots",
        transform_that_blackens_every_other_image,
        ["the transform alone changes accuracy by at most 3 points"],
    ),
    (
        "08_blindspots",
        success_turned_round,
        ["makes the attack succeed more often", "within the stricter radius"],
    ),
    (
        "09_certified_defences",
        certificates_for_all_that_is_right,
        ["no image is both certified and fooled"],
    ),
    (
        "09_certified_defences",
        box_half_as_wide,
        ["no attack gets below a bound"],
    ),
    (
        "09_certified_defences",
        transform_that_blackens_every_other_image,
        ["every image certified at x is read correctly at x'"],
    ),
    (
        "09_certified_defences",
        transform_that_does_nothing,
        ["at most a fifth of the certificates is left", "the transform takes certificates away"],
    ),
    (
        "09_certified_defences",
        transform_that_only_lightens,
        ["where black stays black at least half are left"],
    ),
    (
        "10_closing_blindspots",
        cure_that_was_never_taken,
        ["in the last column, alpha * eps, the cured loses less than half"],
    ),
    (
        "10_closing_blindspots",
        cure_that_forgot_its_letters,
        ["it costs at most 2 points of accuracy"],
    ),
    (
        "10_closing_blindspots",
        contrast_that_counts_twice,
        ["at eps = alpha / 2 only the largest class can be held"],
    ),
    (
        "10_closing_blindspots",
        images_that_all_meet,
        ["at the table's pairs the distances between images forbid nothing"],
    ),
]


@pytest.mark.parametrize(
    ("name", "spoil", "claims"),
    BREAKS,
    ids=[f"{name[:2]}-{spoil.__name__}" for name, spoil, _ in BREAKS],
)
def test_a_check_fails_where_it_should(
    name: str, spoil: Callable, claims: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = FOLDER / f"{name}.ipynb"
    told = [
        (number, line)
        for claim in claims
        for number, text in committed(path).items()
        for line in text.splitlines()
        if claim in line
    ]
    assert len(told) == len(claims)
    spoil(monkeypatch)
    after = run(needed(code(read(path)), [number for number, _ in told]))
    for number, line in told:
        lines = after[number].splitlines()
        assert line not in lines
        if line.startswith("holds:"):
            assert line.replace("holds:", "DOES NOT HOLD:", 1) in lines


@every
def test_every_check_has_a_break(path: Path) -> None:
    claims = [claim for name, _, claims in BREAKS for claim in claims if name == path.stem]
    for text in committed(path).values():
        for line in text.splitlines():
            assert any(claim in line for claim in claims), f"nothing breaks {line!r}"
