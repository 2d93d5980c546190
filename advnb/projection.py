"""The nearest point of a manifold: batched Levenberg-Marquardt inside a box, from coarse to fine.

Images of a moved glyph are rough functions of its code, and a descent gets stuck: the paper's 100
steps of Adam leave 14 % of 536 on-manifold examples of FONTS more than 0.05 away from the manifold
that they are on, and 2 % more than 3. So all stages but the last compare blurred images, whose
minima are wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

# codes [n, d] of the rows given -> images [n, C, H, W] and their derivatives [n, d, C, H, W]
Linearise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# (deviation of the blur in pixels, pixels a side that are then averaged, steps)
STAGES = ((3.5, 4, 12), (2.0, 2, 10), (1.0, 1, 10), (0.0, 1, 15))
CHUNK = 250  # images at a time: their derivatives are d times as large
EXACT = 1e-4  # a distance (L2, pixels in [0, 1]) that no further start can better


@dataclass
class Found:
    """The nearest points so far: codes [N, d] and their L2 distances [N]."""

    code: Tensor
    distance: Tensor


def nearest(
    linearise: Linearise,
    x: Tensor,
    starts: list[Tensor],
    low: Tensor,
    high: Tensor,
    stages: tuple[tuple[float, int, int], ...] = STAGES,
) -> Found:
    """Codes in [low, high] whose images are nearest to x [N, C, H, W] in L2, as found from each of
    `starts` ([N, d] each) in turn; an image that is met exactly is left alone from then on.

    The first start is tried without blur as well: never is the result farther than its own image.
    `stages` of another kind than `STAGES` suit other manifolds.
    """
    found = Found(starts[0].clone(), torch.full_like(x[:, 0, 0, 0], math.inf))
    first = [(starts[0], stages[-1:])] if len(stages) > 1 else []
    for start, plan in (*first, *((start, stages) for start in starts)):
        left = (found.distance > EXACT).nonzero()[:, 0]
        for rows in left.split(CHUNK) if len(left) else ():
            code = start[rows]
            for blur, pool, steps in plan:
                view = View(blur, pool, x.shape[-2:], like=x)
                code, distance = _descend(linearise, view, x[rows], rows, code, low, high, steps)
            better = distance < found.distance[rows]
            found.code[rows[better]] = code[better]
            found.distance[rows[better]] = distance[better]
    return found


class View:
    """Images [..., H, W] as a stage sees them: blurred, then averaged over pool x pool pixels."""

    def __init__(self, blur: float, pool: int, size: torch.Size, like: Tensor) -> None:
        self.pool = pool
        self.blurs = [self._matrix(n, blur).to(like) for n in size] if blur else []

    @staticmethod
    def _matrix(n: int, deviation: float) -> Tensor:
        place = torch.arange(n, dtype=torch.float64)
        weights = (-(((place[:, None] - place) / deviation) ** 2) / 2).exp()
        return weights / weights.sum(1, keepdim=True)

    def __call__(self, images: Tensor) -> Tensor:
        """Flat rows: [n, P'] of images [n, C, H, W], [n, d, P'] of derivatives."""
        lead = images.ndim - 3
        if self.blurs:
            images = self.blurs[0] @ images @ self.blurs[1].T
        if self.pool > 1:
            small = avg_pool2d(images.flatten(0, -3), self.pool, ceil_mode=True)
            images = small.view(*images.shape[:-2], *small.shape[-2:])
        return images.flatten(lead)


def _descend(
    linearise: Linearise,
    view: View,
    x: Tensor,
    rows: Tensor,
    code: Tensor,
    low: Tensor,
    high: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt with bounds: (codes, distances as this view measures them).

    A coordinate at its bound that wants to leave is held for the step (a projected Newton step).
    """
    target = view(x)

    def look(code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image, slopes = linearise(code, rows)
        residual = view(image) - target
        return residual, view(slopes), residual.square().sum(1)

    residual, slopes, cost = look(code)
    damping = torch.full_like(cost, 1e-2)
    for _ in range(steps):
        gradient = (slopes @ residual[:, :, None])[:, :, 0]
        held = ((code <= low) & (gradient > 0)) | ((code >= high) & (gradient < 0))
        free = (~held).to(code)
        normal = slopes @ slopes.transpose(1, 2) * free[:, :, None] * free[:, None]
        ridge = normal.diagonal(dim1=1, dim2=2) * damping[:, None] + 1e-4 + held.to(code)
        move = torch.linalg.solve(normal + torch.diag_embed(ridge), gradient * free)
        trial = torch.minimum(torch.maximum(code - move, low), high)
        new_residual, new_slopes, new_cost = look(trial)
        better = new_cost < cost
        code = torch.where(better[:, None], trial, code)
        residual = torch.where(better[:, None], new_residual, residual)
        slopes = torch.where(better[:, None, None], new_slopes, slopes)
        cost = torch.where(better, new_cost, cost)
        damping = torch.where(better, damping * 0.3, damping * 4).clamp(1e-6, 1e4)
    return code, cost.sqrt()
