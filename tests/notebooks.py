"""Execute the notebooks in the course profile and commit-clean them: `python -m tests.notebooks`.

A cleaned notebook keeps text and PNG. Views of widgets go (without a kernel a page would show
"model not found"), and so do progress bars, paths and all metadata that a run leaves behind.
"""

from __future__ import annotations

import base64
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from advnb.data import cache_folder, folders
from advnb.doctor import attack_seconds

FOLDER = Path(__file__).parent.parent / "notebooks"
VIEW = "application/vnd.jupyter.widget-view+json"
BAR = "<!-- navigation -->"
PROGRESS = r"\d+%\||\d ?\w+ \[\d+:\d\d"  # with a known end, and without


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what does not belong in a committed notebook, in place."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_output, cell.outputs) if output]
    return notebook


def _output(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    output.pop("metadata", None)
    if "data" in output:
        output["metadata"] = {}
        output.data.pop(VIEW, None)
        bar = set(output.data) == {"text/plain"} and re.search(PROGRESS, output.data["text/plain"])
        return output if output.data and not bar else None
    if output.output_type == "stream":
        lines = re.split(r"(?<=[\r\n])", output.text)
        output.text = "".join(line for line in lines if not re.search(PROGRESS, line))  # bars
        # warnings: keep what they say, not where the file lies
        path = r"^.*?(\w+Warning: .*)(?:\n|$)(?:  .*(?:\n|$))?"
        output.text = re.sub(path, r"\1\n", output.text, flags=re.M)
        return output if output.text.strip() else None
    return output


def navigation(name: str, names: list[str]) -> str:
    """The line at the top and the bottom: previous, contents, next."""
    at = names.index(name)
    parts = [f"[← {names[at - 1]}]({names[at - 1]}.ipynb)"] if at else []
    parts.append("[contents](../README.md#the-course)")
    parts += [f"[{names[at + 1]} →]({names[at + 1]}.ipynb)"] if at + 1 < len(names) else []
    return f"{BAR}\n{' · '.join(parts)}"


def prepare(path: Path, names: list[str]) -> nbformat.NotebookNode:
    """A notebook with its navigation made anew."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if not cell.source.startswith(BAR)]
    bar = navigation(path.stem, names)
    top, bottom = (nbformat.v4.new_markdown_cell(bar, id=f"nav-{at}") for at in ("top", "bottom"))
    notebook.cells = [cells[0], top, *cells[1:], bottom]
    return notebook


# the README's pictures: (notebook, what the cell's source contains) -> file
PICTURES = {("08_blindspots", "plots.columns("): "blindspot_table.png"}


def keep_picture(notebook: nbformat.NotebookNode, name: str) -> None:
    """Write the outputs that the README shows into notebooks/pictures."""
    for (book, source), file in PICTURES.items():
        for cell in notebook.cells if book == name else ():
            for output in cell.get("outputs", ()) if source in cell.source else ():
                png = base64.b64decode(output.data["image/png"])
                (FOLDER / "pictures" / file).write_bytes(png)


def main(chosen: list[str]) -> None:
    """Execute and clean the notebooks whose names contain one of `chosen`; all without any."""
    os.environ.setdefault("ADVNB_PROFILE", "course")
    # data that was downloaded is found, and nothing that somebody has trained
    os.environ["ADVNB_DATA"] = os.pathsep.join(map(str, [*folders(), cache_folder()]))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ADVNB_CACHE"] = cache
        _execute(chosen)


def _execute(chosen: list[str]) -> None:
    paths = sorted(FOLDER.glob("*.ipynb"))
    names = [path.stem for path in paths]
    for path in paths:
        if chosen and not any(part in path.stem for part in chosen):
            continue
        notebook = prepare(path, names)
        began = time.monotonic()
        NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": FOLDER}}).execute()
        seconds = round(time.monotonic() - began, 1)
        # `python -m advnb doctor` scales the time by the speed of the machine it runs on
        attack = round(attack_seconds(), 3)
        notebook.metadata["advnb"] = {"seconds": seconds, "attack_seconds": attack}
        nbformat.write(clean(notebook), path)
        keep_picture(notebook, path.stem)
        print(f"{path.name}: {seconds:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
