"""Live panels: move a control, and the newest values win."""

from .blindspot import BlindspotPanel
from .panel import Panel, close_all

__all__ = ["BlindspotPanel", "Panel", "close_all"]
