"""Live panels: move a control, and the newest values win."""

from .attack import AttackPanel
from .blindspot import BlindspotPanel
from .certificate import CertificatePanel
from .curves import CurvePanel
from .embedding import EmbeddingPanel
from .latent import LatentPanel
from .panel import Panel, close_all
from .steps import StepPanel

__all__ = [
    "AttackPanel", "BlindspotPanel", "CertificatePanel", "CurvePanel", "EmbeddingPanel",
    "LatentPanel", "Panel", "StepPanel", "close_all",
]  # fmt: skip
