"""advnb: adversarial robustness, live. See the notebooks, which begin at 00_start_here."""

from __future__ import annotations

import importlib
from typing import Any

try:
    from . import certify, models, recipes, zoo
    from .attacks import Attack, AttackResult
    from .blindspots import find_blindspot, scale_shift, valid_shift
    from .data import Dataset, load
    from .embedding import distance_to_training_set, nearest
    from .minimal import CarliniWagner
    from .models import accuracy
    from .perturbations import Affine, OnManifold, Pixels
    from .profiles import Profile, profile
    from .search import AttackWarning
    from .splits import Split
    from .stats import Rate
    from .sweeps import sweep
    from .training import fit
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed: run `pip install -e .` in the folder of advnb",
        name=error.name,
    ) from None

__version__ = "0.1.0"
__all__ = [
    "Affine",
    "Attack",
    "AttackResult",
    "AttackWarning",
    "CarliniWagner",
    "Dataset",
    "OnManifold",
    "Pixels",
    "Profile",
    "Rate",
    "Split",
    "accuracy",
    "blindspots",
    "certify",
    "comparisons",
    "curves",
    "distance_to_training_set",
    "distances",
    "divergence",
    "embedding",
    "find_blindspot",
    "fit",
    "live",
    "load",
    "models",
    "nearest",
    "plots",
    "profile",
    "quality",
    "recipes",
    "scale_shift",
    "sweep",
    "sweeps",
    "vaegan",
    "valid_shift",
    "zoo",
]  # fmt: skip


LAZY = {"comparisons", "curves", "distances", "divergence", "live", "plots", "quality", "vaegan"}


def __getattr__(name: str) -> Any:
    # matplotlib, pandas and ipywidgets load only where they are used
    if name in LAZY:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
