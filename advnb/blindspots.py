"""Blind spots (Zhang et al. 2019, section 3.3): scaled and shifted images that a robust model
still classifies correctly, and no longer defends."""

from __future__ import annotations

import torch
from torch import Tensor

SLACK = 1e-6  # what rounding may add to a pixel that lies exactly on the edge


def scale_shift(x: Tensor, alpha: float, beta: float) -> Tensor:
    """x' = alpha * x + beta with pixels read in [-0.5, 0.5] (Z eq. 4), for images in [0, 1]:

        x' = alpha * x + (1 - alpha) / 2 + beta.

    Even with beta = 0 a black background becomes (1 - alpha) / 2. Raises ValueError where a
    pixel would leave [0, 1]; `valid_shift(alpha)` is the range of beta that never does.
    """
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha must be a positive number; got {alpha!r}")
    moved = alpha * x + ((1 - alpha) / 2 + beta)
    low, high = moved.detach().amin().item(), moved.detach().amax().item()
    if not (low >= -SLACK and high <= 1 + SLACK):
        raise ValueError(
            f"alpha = {alpha:g}, beta = {beta:g} moves pixels to [{low:.3g}, {high:.3g}], outside "
            "[0, 1]: choose beta within valid_shift(alpha)"
        )
    return moved.clamp(0, 1)


def valid_shift(alpha: float) -> tuple[float, float]:
    """The (low, high) range of beta for which any image stays valid: +-(1 - alpha) / 2."""
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must lie in (0, 1]: no shift is valid for {alpha!r}")
    return -(1 - alpha) / 2, (1 - alpha) / 2
