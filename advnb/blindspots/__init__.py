"""Blind spots (Zhang et al. 2019, section 3.3): scaled and shifted images that a robust model
still classifies correctly, and no longer defends."""

from .certificates import certified_table
from .changes import FAMILIES, Blur, Change, Gamma, Gradient, Light, Scaled, Warp
from .corner import Separation, robust_limits, separation
from .detection import Detection, auc, detect
from .landscape import Landscape, landscape
from .search import Blindspot, defences, find_blindspot
from .shift import (
    EPS,
    PRINTED,
    Defence,
    Printed,
    columns,
    printed,
    radius,
    scale_shift,
    shifted,
    valid_shift,
)
from .tables import table

__all__ = [
    "EPS", "FAMILIES", "PRINTED", "Blindspot", "Blur", "Change", "Defence", "Detection", "Gamma",
    "Gradient", "Landscape", "Light", "Printed", "Scaled", "Separation", "Warp", "auc",
    "certified_table", "columns", "defences", "detect", "find_blindspot", "landscape", "printed",
    "radius", "robust_limits", "scale_shift", "separation", "shifted", "table", "valid_shift",
]  # fmt: skip
