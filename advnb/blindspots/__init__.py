"""Blind spots (Zhang et al. 2019, section 3.3): scaled and shifted images that a robust model
still classifies correctly, and no longer defends."""

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
    "EPS", "PRINTED", "Defence", "Printed", "columns", "printed", "radius", "scale_shift",
    "shifted", "table", "valid_shift",
]  # fmt: skip
