"""How far images lie from the data, without a model of it: the plane through nearby training
images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .checks import brief, whole
from .embedding import PCA, pixels
from .learned import LearnedManifold
from .neighbours import nearest_rows
from .splits import Split

__all__ = ["LearnedManifold", "NeighbourManifold"]

# S figure 3, FONTS, regular examples to the known manifold: 5 % point, median, 95 % point
PRINTED_DISTANCE = (0.3607, 1.0490, 1.8705)
CHUNK = 100  # images at a time: each needs its k neighbours' pixels


class NeighbourManifold:
    """The subspace through an image's k nearest training images (S section 3.2, 50-NN).

    `centre="x"`: it passes through the original image x (`split.x`) and is spanned by x_i - x, for
    the neighbours x_i of the image given, whose change from x is projected (S, main text).
    `centre="mean"`: it passes through the neighbours' mean and is spanned by x_i - mean (S,
    appendix), so that unchanged test images have a distance as well. Neighbours are the exact
    ones, in pixels or, with `pca=40`, in that many principal components of the training images,
    as S searches them. The projection is least squares by SVD.
    """

    def __init__(
        self,
        train: Split,
        k: int = 50,
        *,
        centre: Literal["x", "mean"] = "x",
        pca: int | None = None,
    ) -> None:
        if not isinstance(train, Split):
            raise ValueError(f"train must be a Split, use data.train(n); got {brief(train)}")
        if whole("k", k, 1) > len(train):
            raise ValueError(f"k must be at most the {len(train)} training images; got {k}")
        if centre not in ("x", "mean"):
            raise ValueError(f'centre must be "x" or "mean"; got {brief(centre)}')
        self.k, self.centre, self.train = k, centre, train
        self._pixels = train.x.flatten(1)
        self._key = pixels if pca is None else PCA(train, whole("pca", pca, 1))
        self._keys = self._key(train.x)

    def neighbours(self, x: Tensor) -> Tensor:
        """Positions of the k nearest training images of x [N, C, H, W], nearest first, [N, k]."""
        images = self._checked(x).view(x.shape)
        return nearest_rows(self._key(images), self._keys, self.k).index

    def project(self, x: Tensor, split: Split) -> Tensor:
        """The nearest point of the subspace through x's neighbours, [N, C, H, W]; `split` holds
        the original images."""
        return self._project(x, split)[0]

    def _project(self, x: Tensor, split: Split) -> tuple[Tensor, Tensor]:
        """The projections and the points that the subspaces pass through."""
        flat, parts = self._checked(x), []
        home = "cpu" if flat.device.type == "mps" else flat.device  # MPS has no float64
        if not isinstance(split, Split):
            raise ValueError(f"split must be the Split of the originals; got {brief(split)}")
        if x.shape != split.x.shape:
            raise ValueError(
                f"x must be {list(split.x.shape)}, as the split's images; got {list(x.shape)}"
            )
        for rows, near in zip(torch.arange(len(x)).split(CHUNK), self.neighbours(x).split(CHUNK)):
            points = self._pixels[near].to(home).double()  # [n, k, P]
            here, origin = flat[rows].to(points), split.x[rows].flatten(1).to(points)
            if self.centre == "mean":
                origin = points.mean(1)
            spread = points - origin[:, None]
            _, size, axes = torch.linalg.svd(spread, full_matrices=False)
            kept = size > size[:, :1] * 1e-6  # of a repeated image, or the mean, nothing is left
            along = (axes @ (here - origin)[:, :, None])[:, :, 0] * kept
            parts.append((origin + (along[:, None] @ axes)[:, 0], origin))
        near, origins = (torch.cat(part).to(x).view_as(x) for part in zip(*parts))
        return near, origins

    def distance(self, x: Tensor, split: Split, *, unit: bool = False) -> Tensor:
        """L2 norm of x - project(x), [N]; with `unit` over the norm of what was projected, x less
        the point that the subspace passes through: 1 means a right angle (NaN where x is it)."""
        near, origin = self._project(x, split)
        away = (x - near).flatten(1).norm(dim=1)
        return away / (x - origin).flatten(1).norm(dim=1) if unit else away

    def _checked(self, x: Tensor) -> Tensor:
        size = self.train.x.shape[1:]
        if not isinstance(x, Tensor) or x.shape[1:] != size or not len(x):
            what = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be images [N, {', '.join(map(str, size))}]; got {what}")
        if not x.is_floating_point() or not x.isfinite().all():
            raise ValueError("x must be finite floats in [0, 1]: clean the images first")
        return x.flatten(1).to(self._pixels)

    def __repr__(self) -> str:
        return f"NeighbourManifold({self.train}, k={self.k}, centre={self.centre!r})"
