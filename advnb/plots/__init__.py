"""One visual vocabulary: the same colour and marker for the same thing in every figure."""

from .attacks import columns, curves, histograms, regions
from .base import (
    COLOURS,
    PASTEL,
    PRINTED,
    RIGHT,
    WRONG,
    Picture,
    amplified,
    bars,
    caption,
    gallery,
    mosaic,
)
from .blindspots import certificates, corner, defences, detection
from .bounds import margins
from .distances import densities, plane, scatter, success_by_distance
from .landscape import landscape
from .strategies import NAMES, beside, generalization

__all__ = [
    "COLOURS", "NAMES", "PASTEL", "PRINTED", "RIGHT", "WRONG", "Picture", "amplified", "bars",
    "beside", "caption", "certificates", "columns", "corner", "curves", "defences", "densities",
    "detection", "gallery", "generalization", "histograms", "landscape", "margins", "mosaic",
    "plane", "regions", "scatter", "success_by_distance",
]  # fmt: skip
