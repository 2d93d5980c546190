"""How far images lie from the data: the plane through nearby training images, where the generator
is unknown; on FONTS, the nearest letter and face of all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .checks import brief, whole
from .fonts import N_FONTS, read_atlas, slopes, transform
from .projection import STAGES, View, nearest
from .splits import Split

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
        self._basis: Tensor | None = None
        if pca is not None:
            side = self._pixels.shape[1]
            most = min(side, len(train) - 1)
            if whole("pca", pca, 1) > most:
                raise ValueError(
                    f"pca must be at most {most}: fewer than images, no more than pixels"
                )
            spread = torch.cov(self._pixels.T).view(side, side)
            self._basis = torch.linalg.eigh(spread)[1][:, -pca:]
        self._keys = self._key(self._pixels)
        self._lengths = torch.einsum("np,np->n", self._keys, self._keys)

    def _key(self, flat: Tensor) -> Tensor:
        return flat if self._basis is None else flat @ self._basis

    def neighbours(self, x: Tensor) -> Tensor:
        """Positions of the k nearest training images of x [N, C, H, W], nearest first, [N, k]."""
        key = self._key(self._checked(x))
        parts = [  # |a - b|^2 without |a|^2, which moves no neighbour before another
            torch.addmm(self._lengths, part, self._keys.T, alpha=-2)
            .topk(self.k, largest=False)
            .indices
            for part in key.split(CHUNK)
        ]
        return torch.cat(parts)

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


@dataclass(frozen=True)
class Attribution:
    """Whose manifold an image lies nearest to, if letter and face are free: `letter` and `face`
    int64 [N], and the L2 `distance` [N, 10] to the nearest image found of each letter."""

    letter: Tensor
    face: Tensor
    distance: Tensor


TURNS = (0.0, -math.pi / 4, math.pi / 4)  # poses that another letter is tried in


def attribute(
    x: Tensor, split: Split, *, without: Tensor | None = None, refine: int = 2
) -> Attribution:
    """The nearest letter and face of FONTS for images x [N, 1, 28, 28] that were made from those
    of `split` (S definition 1: an on-manifold example is valid while its own letter stays the
    likeliest).

    All 10,000 glyphs are compared in the pose that x has on its own glyph's manifold and turned by
    45 degrees, slightly blurred; the `refine` nearest of each letter and turn are then projected
    on. `without` (faces, int64 [N]) leaves one face an image out, its own say: an on-manifold
    example lies on its own face's manifold, and only the other faces tell what it looks like.
    """
    manifold = split.dataset.manifold if split.dataset else None
    if manifold is None:
        raise ValueError("only FONTS have known letters and faces: load a 'fonts' data set")
    if without is not None and (
        not isinstance(without, Tensor)
        or without.shape != x.shape[:1]
        or not 0 <= int(without.min()) <= int(without.max()) < N_FONTS
    ):
        raise ValueError(
            f"without must be a face an image, [{len(x)}], from 0 to {N_FONTS - 1}; got "
            f"{brief(without)}"
        )
    if whole("refine", refine, 1) >= N_FONTS:
        raise ValueError(f"refine must be less than the {N_FONTS} faces; got {refine}")
    glyphs = torch.from_numpy(read_atlas()["glyphs"][:N_FONTS]).to(x) / 255
    low, high = (edge.to(x) for edge in manifold.bounds)
    poses = manifold.nearest(x, split)[:, None] + x.new_tensor([[0, 0, 0, 0, 0, t] for t in TURNS])
    poses = poses.clamp(low, high)  # [N, turns, 6]
    faces = torch.stack([
        _likeliest(image, glyphs, pose, refine, None if without is None else int(without[row]))
        for row, (image, pose) in enumerate(zip(x, poses))
    ])  # fmt: skip
    n, turns, letters, _ = faces.shape
    letter = torch.arange(letters, device=x.device)[None, None, :, None].expand_as(faces)
    start = poses[:, :, None, None].expand(-1, -1, letters, refine, -1).flatten(0, 3)
    face_of, letter_of, many = faces.flatten(), letter.flatten(), turns * letters * refine
    parts = []
    for row, image in enumerate(x):  # one at a time: each is compared with many glyphs
        part = slice(row * many, (row + 1) * many)
        found = _nearest_of(image, glyphs[face_of[part], letter_of[part]], start[part], low, high)
        parts.append(found.view(turns, letters, refine).transpose(0, 1).flatten(1))
    away = torch.stack(parts)
    distance, best = away.min(2)
    winner = distance.argmin(1)
    rows = torch.arange(n, device=x.device)
    face = faces.transpose(1, 2).flatten(2)[rows, winner, best[rows, winner]]
    return Attribution(winner, face, distance)


def _nearest_of(x: Tensor, glyphs: Tensor, start: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Distances of one image [1, H, W] to the manifolds of glyphs [m, H, W], from starts [m, 6]."""
    with torch.no_grad():
        return nearest(
            lambda z, rows: slopes(glyphs[rows][:, None], z),
            x.expand(len(glyphs), -1, -1, -1), [start], low, high,
        ).distance  # fmt: skip


def _likeliest(x: Tensor, glyphs: Tensor, poses: Tensor, count: int, without: int | None) -> Tensor:
    """For one image [1, H, W] the `count` nearest faces of each letter in each pose, slightly
    blurred: [poses, letters, count]."""
    view, parts = View(*STAGES[2][:2], x.shape[-2:], like=x), []
    for pose in poses:
        images = transform(glyphs.flatten(0, 1)[None], pose[None])[0]  # [faces * letters, H, W]
        away = (view(images[:, None]) - view(x[None])).square().sum(1).view(len(glyphs), -1)
        if without is not None:
            away[without] = math.inf
        parts.append(away.T.topk(count, largest=False).indices)
    return torch.stack(parts)
