"""Live panels: move a control, and the newest values win."""

from .attack import AttackPanel
from .blindspot import BlindspotPanel
from .panel import Panel, close_all

__all__ = ["AttackPanel", "BlindspotPanel", "Panel", "close_all"]
