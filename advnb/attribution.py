"""Whose letter is it? On FONTS the nearest letter and face of all can be searched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from .checks import brief, whole
from .fonts import LETTERS, N_FONTS, SIZE, KnownManifold, matrices, read_atlas, slopes, transform
from .models import logits
from .projection import STAGES, Found, View, nearest
from .splits import Split


@dataclass(frozen=True)
class Attribution:
    """Whose manifold an image lies nearest to, if letter and face are free: `letter` and `face`
    int64 [N]. And of each letter the nearest image found: its L2 `distance` [N, 10], its face
    `faces` int64 [N, 10] and its `code` [N, 10, 6]."""

    letter: Tensor
    face: Tensor
    distance: Tensor
    faces: Tensor
    code: Tensor

    def lead(self, y: Tensor) -> Tensor:
        """How much nearer, [N], the letter `y` is than the best other one; negative where it is
        farther."""
        own = self.distance.gather(1, y[:, None])[:, 0]
        return self.distance.scatter(1, y[:, None], math.inf).amin(1) - own


FACES = 50  # whose glyphs are compared at a time
TURNS = (0.0, -math.pi / 4, math.pi / 4)  # poses that another letter is tried in


def attribute(
    x: Tensor,
    split: Split,
    *,
    without: Tensor | None = None,
    hints: Attribution | None = None,
    refine: int = 2,
) -> Attribution:
    """The nearest letter and face of FONTS for images x [N, 1, 28, 28] that were made from those
    of `split` (S definition 1: an on-manifold example is valid while its own letter stays the
    likeliest).

    All 10,000 glyphs are compared in the pose that x has on its own glyph's manifold and turned by
    45 degrees, slightly blurred; the `refine` nearest of each letter and turn are then projected
    on. `without` (faces, int64 [N]) leaves one face an image out, its own say: an on-manifold
    example lies on its own face's manifold, and only the other faces tell what it looks like.
    `hints`, found for images that resemble these row by row, are tried as well: no search sees
    every pose.
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
    x = x if x.dtype == torch.float64 else x.float()  # half precision would not do
    glyphs = torch.from_numpy(read_atlas()["glyphs"][:N_FONTS]).to(x) / 255
    low, high = (edge.to(x) for edge in manifold.bounds)
    poses = manifold.nearest(x, split)[:, None] + x.new_tensor([[0, 0, 0, 0, 0, t] for t in TURNS])
    poses = poses.clamp(low, high)  # [N, turns, 6]
    faces = torch.stack([
        _likeliest(image, glyphs, pose, refine, None if without is None else int(without[row]))
        for row, (image, pose) in enumerate(zip(x, poses))
    ])  # fmt: skip
    _, turns, letters, _ = faces.shape
    letter = torch.arange(letters, device=x.device)[None, None, :, None].expand_as(faces)
    start = poses[:, :, None, None].expand(-1, -1, letters, refine, -1).flatten(0, 3)
    face_of, letter_of, many = faces.flatten(), letter.flatten(), turns * letters * refine
    parts, codes = [], []
    for row, image in enumerate(x):  # one at a time: each is compared with many glyphs
        part = slice(row * many, (row + 1) * many)
        found = _nearest_of(image, glyphs[face_of[part], letter_of[part]], start[part], low, high)
        parts.append(found.distance.view(turns, letters, refine).transpose(0, 1).flatten(1))
        codes.append(found.code.view(turns, letters, refine, -1).transpose(0, 1).flatten(1, 2))
    faces, away, found_codes = (
        faces.transpose(1, 2).flatten(2),
        torch.stack(parts),
        torch.stack(codes),
    )
    if hints is not None:
        _same_rows(hints, x)
        names = torch.arange(letters, device=x.device)
        again = [
            _nearest_of(image, glyphs[face, names], code, low, high)
            for image, face, code in zip(x, hints.faces, hints.code)
        ]
        faces = torch.cat([faces, hints.faces[:, :, None]], 2)
        away = torch.cat([away, torch.stack([f.distance for f in again])[:, :, None]], 2)
        found_codes = torch.cat([found_codes, torch.stack([f.code for f in again])[:, :, None]], 2)
    distance, best = away.min(2)
    nearest_faces = faces.gather(2, best[:, :, None])[:, :, 0]
    code = found_codes.gather(2, best[:, :, None, None].expand(-1, -1, -1, start.shape[1]))
    winner = distance.argmin(1)
    face = nearest_faces.gather(1, winner[:, None])[:, 0]
    return Attribution(winner, face, distance, nearest_faces, code[:, :, 0])


def _same_rows(hints: Attribution, x: Tensor) -> None:
    if not isinstance(hints, Attribution) or len(hints.letter) != len(x):
        raise ValueError(f"hints must be an Attribution of {len(x)} images; got {brief(hints)}")


def _nearest_of(
    x: Tensor,
    glyphs: Tensor,
    start: Tensor,
    low: Tensor,
    high: Tensor,
    stages: tuple[tuple[float, int, int], ...] = STAGES,
) -> Found:
    """Where one image [1, H, W] lies nearest to the manifolds of glyphs [m, H, W], from starts
    [m, 6]."""
    with torch.no_grad():
        return nearest(
            lambda z, rows: slopes(glyphs[rows][:, None], z),
            x.expand(len(glyphs), -1, -1, -1), [start], low, high, stages,
        )  # fmt: skip


def _likeliest(x: Tensor, glyphs: Tensor, poses: Tensor, count: int, without: int | None) -> Tensor:
    """For one image [1, H, W] the `count` nearest faces of each letter in each pose, slightly
    blurred: [poses, letters, count]."""
    view, parts = View(*STAGES[2][:2], x.shape[-2:], like=x), []
    target = view(x[None])
    for pose in poses:
        away = torch.cat([  # some faces at a time: all of them would leave the caches
            (view(transform(some.flatten(0, 1)[None], pose[None])[0][:, None]) - target)
            .square().sum(1).view(len(some), -1)
            for some in glyphs.split(FACES)
        ])  # fmt: skip
        if without is not None:
            away[without] = math.inf
        parts.append(away.T.topk(count, largest=False).indices)
    return torch.stack(parts)


def to_letter(
    x: Tensor, letter: Tensor, manifold: KnownManifold, *, refine: int = 24, faces: int = N_FONTS
) -> Tensor:
    """L2 distances [N] of images x [N, 1, 28, 28] to the nearest image found of their `letter`
    int64 [N], over all faces and all codes of FONTS: how far a made-up A lies from every true A.

    Every face in 243 poses is compared, blurred and with its ink's centre where that of x is; the
    `refine` nearest are projected on.
    """
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1:] != (1, SIZE, SIZE):
        what = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be images [N, 1, {SIZE}, {SIZE}]; got {what}")
    if not x.is_floating_point() or not x.isfinite().all():
        raise ValueError("x must be finite floats in [0, 1]: clean the images first")
    if (
        not isinstance(letter, Tensor)
        or letter.shape != x.shape[:1]
        or not 0 <= int(letter.min()) <= int(letter.max()) < len(LETTERS)
    ):
        raise ValueError(f"letter must be a label of 0 to 9 an image, [{len(x)}]")
    if not isinstance(manifold, KnownManifold):
        raise ValueError(f"manifold must be that of FONTS, data.manifold; got {brief(manifold)}")
    if not whole("refine", refine, 1) <= whole("faces", faces, 1) <= N_FONTS:
        raise ValueError(f"faces must be {N_FONTS} at most and refine no more than faces")
    glyphs = torch.from_numpy(read_atlas()["glyphs"][:faces]).to(x) / 255
    low, high = (edge.to(x) for edge in manifold.bounds)
    poses = _poses(low, high)
    view, away = View(1.0, 2, x.shape[-2:], like=x), torch.empty(len(x), device=x.device)
    for name in letter.unique().tolist():
        rows = (letter == name).nonzero()[:, 0]
        own = glyphs[:, name, None]  # [faces, 1, H, W]
        ink = _middle(own)
        looks = []
        for pose in poses:
            code = pose.repeat(len(own), 1)
            code[:, :2] = ink  # what the image's centre shows: the glyph's ink, whatever the pose
            looks.append(view(transform(own, code)))
        targets = view(_centred(x[rows]))
        found = torch.cdist(targets, torch.cat(looks)).topk(refine, largest=False).indices
        face, start = found % len(own), poses[found // len(own)]
        # the glyph's ink is to lie where that of x does, at c: A c + t = ink
        turn = matrices(start.flatten(0, 1))[:, :, :2].view(*found.shape, 2, 2)
        start[..., :2] = ink[face] - (turn @ _middle(x[rows])[:, None, :, None])[..., 0]
        start = start.clamp(low, high)
        for row, which, code in zip(rows.tolist(), face, start):
            away[row] = _nearest_of(x[row], own[which, 0], code, low, high).distance.min()
    return away


def _poses(low: Tensor, high: Tensor) -> Tensor:
    """Shears, scales and rotations on a grid inside the bounds, [243, 6], unmoved."""
    counts = (1, 1, 3, 3, 3, 9)
    parts = [
        [(a + b) / 2 + (b - a) * ((i + 0.5) / n - 0.5) for i in range(n)]
        for a, b, n in zip(low.tolist(), high.tolist(), counts)
    ]
    return low.new_tensor(list(product(*parts)))


def _middle(images: Tensor) -> Tensor:
    """Centres of ink [N, 2], (x, y) in [-1, 1]; of a blank image its own."""
    weights = images[:, 0] + 1e-9
    v, u = (torch.linspace(-1, 1, side).to(images) for side in images.shape[-2:])
    total = weights.sum((1, 2))
    return torch.stack([weights.sum(1) @ u, weights.sum(2) @ v], 1) / total[:, None]


def _centred(images: Tensor) -> Tensor:
    """Images moved so that their ink's centre is the image's."""
    code = images.new_tensor([0, 0, 0, 0, 1.0, 0]).repeat(len(images), 1)
    code[:, :2] = _middle(images)
    return transform(images, code)


@dataclass(frozen=True)
class Slice:
    """Two looks at a plane of images through three: `guess` (the model's label) and `letter` (the
    nearest one) int64 [cells, cells], rows along the second axis; `ticks` [2, cells] where they
    lie on the two orthonormal axes and `marks` [3, 2] where the three images do, in L2 norm from
    the first."""

    guess: Tensor
    letter: Tensor
    ticks: Tensor
    marks: Tensor


def plane(model: nn.Module, one: Split, first: Tensor, second: Tensor, *, cells: int) -> Slice:
    """What a model, and FONTS themselves, say of the images in the plane through an image (a split
    of one), and two others made from it [1, 1, 28, 28] (S figure 1 (c)).

    The nearest letter leaves the image's own face out, which made the image; it is searched from
    the nearest images of each letter to the three.
    """
    whole("cells", cells, 2)
    made_from = isinstance(one, Split) and len(one) == 1 and one.font is not None
    if not made_from or any(getattr(x, "shape", 0) != one.x.shape for x in (first, second)):
        raise ValueError("plane needs a split of one FONTS image, and two images made from it")
    u, v = (first - one.x).flatten(), (second - one.x).flatten()
    across = u / u.norm()
    up = v - (v @ across) * across
    if not (u.norm() > 0 and up.norm() > 1e-4 * v.norm()):
        raise ValueError("the three images lie on a line: give others")
    up = up / up.norm()
    marks = torch.stack([torch.zeros_like(u[:2]), torch.stack([u @ across, u @ up]),
                         torch.stack([v @ across, v @ up])])  # fmt: skip
    low, high = marks.amin(0), marks.amax(0)
    room = 0.25 * (high - low)
    ticks = torch.stack([
        torch.linspace(float(a), float(b), cells) for a, b in zip(low - room, high + room)
    ]).to(u)  # fmt: skip
    places = ticks[0][None, :, None] * across + ticks[1][:, None, None] * up
    images = (one.x.flatten() + places.flatten(0, 1)).clamp(0, 1).view(-1, *one.x.shape[1:])
    many = one[torch.zeros(len(images), dtype=torch.int64)]
    guess = logits(model, many.with_x(images)).argmax(1)
    corners = one[[0, 0, 0]]
    made = torch.cat([one.x, first, second])
    near = attribute(made, corners, without=corners.font)
    glyphs = torch.from_numpy(read_atlas()["glyphs"][:N_FONTS]).to(made) / 255
    names = torch.arange(glyphs.shape[1], device=made.device).expand_as(near.faces)
    candidates = glyphs[near.faces.flatten(), names.flatten()]
    assert one.dataset is not None
    assert one.dataset.manifold is not None
    low, high = (edge.to(made) for edge in one.dataset.manifold.bounds)
    start = near.code.flatten(0, 1)
    away = torch.stack([
        _nearest_of(image, candidates, start, low, high, STAGES[-1:]).distance for image in images
    ]).view(len(images), 3, -1)  # fmt: skip
    letter = away.amin(1).argmin(1)
    return Slice(guess.view(cells, cells), letter.view(cells, cells), ticks, marks)
