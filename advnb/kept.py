"""Finished cells of a sweep in a folder, each a small file with its own checksum."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from .files import DamagedFileError, write

Fields = dict[str, Any]  # of a cell, or of what was found for it: names to plain values


def path_of(folder: Path, k: str) -> Path:
    return folder / f"{k}.json"


def keep(folder: Path, k: str, row: Fields) -> None:
    """Write a cell's row under its key, with a checksum of both; a warning where that fails."""
    text = json.dumps(row)
    kept = json.dumps({"row": row, "sha256": hashlib.sha256((k + text).encode()).hexdigest()})
    try:
        write(path_of(folder, k), lambda path: path.write_text(kept))
    except OSError as error:  # the result is in the table all the same
        warnings.warn(f"a result is not kept: {error}", stacklevel=2)


def read(folder: Path, k: str) -> Fields | None:
    """A finished cell; None where there is none, or, with a warning, where it is damaged."""
    path = path_of(folder, k)
    try:
        kept = json.loads(path.read_text())
        text = json.dumps(kept["row"])
        if kept["sha256"] != hashlib.sha256((k + text).encode()).hexdigest():
            raise DamagedFileError(str(path))
        return kept["row"]
    except FileNotFoundError:
        return None
    except OSError as error:
        warnings.warn(f"{path} cannot be read ({error.strerror}): that cell runs", stacklevel=2)
        return None
    except (ValueError, TypeError, LookupError, RecursionError):
        warnings.warn(f"{path} is damaged: that cell runs again", stacklevel=2)
        return None
