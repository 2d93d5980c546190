"""FONTS (Stutz et al. 2019, section 3.1): letters A to J whose data manifold is known exactly.

An image is a glyph, chosen by font and letter, moved by six numbers
z = (t_x, t_y, shear_x, shear_y, scale, rotation) with a differentiable sampler. The package
carries a glyph atlas; every image is made from it when it is looked at, none is stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from .checks import brief, number, watched, whole, widest
from .files import DamagedFileError, load_arrays
from .projection import nearest
from .stats import generator

LETTERS = "ABCDEFGHIJ"
SIZE = 28  # pixels a side
N_FONTS = 1000  # the first 1,000 faces of the atlas; the rest are unseen by every FONTS image
N_TRAIN, N_TEST = 960_000, 160_000
BLOCK = N_FONTS * len(LETTERS)  # images that share one draw of the random stream
ATLAS = Path(__file__).with_name("fonts.npz")
LATENTS = ("t_x", "t_y", "shear_x", "shear_y", "scale", "rotation")

# (low, high) of each latent in the units the decoder reads: half image widths, radians.
RANGES: dict[str, tuple[tuple[float, float], ...]] = {
    "easy": ((-0.1, 0.1),) * 2 + ((-0.2, 0.2),) * 2 + ((0.9, 1.1), (-math.pi / 6, math.pi / 6)),
    "moderate": (
        ((-0.2, 0.2),) * 2 + ((-0.4, 0.4),) * 2 + ((0.85, 1.15), (-math.pi / 3, math.pi / 3))
    ),
    "hard": (((-0.2, 0.2),) * 2 + ((-0.5, 0.5),) * 2 + ((0.75, 1.15), (-math.pi / 2, math.pi / 2))),
}


def matrices(z: Tensor) -> Tensor:
    """The 2x3 matrices of latents z [N, 6], as [N, 2, 3].

    They map *output* to *input* coordinates in [-1, 1]: scale 0.75 enlarges the letter, and a
    translation of 0.2 moves it by 2.7 pixels the other way.
    """
    offset, slope = _linear(z.dtype, z.device)
    factors, angles, terms = torch.addmm(offset, z, slope).split((3, 3, 18), 1)
    return ((factors * angles.sin())[:, None] @ terms.view(-1, 3, 6)).view(-1, 2, 3)


def transform(x: Tensor, z: Tensor) -> Tensor:
    """T(x; z): images x [N, C, H, W] moved by latents z [N, 6]; bilinear, black outside, [0, 1].

    Differentiable in both. `align_corners=True` is what the paper's PyTorch 0.4 did.
    """
    n, _, height, width = x.shape
    base = _places(height, width, z.dtype, z.device).expand(n, -1, -1)
    places = torch.bmm(matrices(z), base)  # image by image: what else is drawn changes no bit
    grid = places.view(n, 2, height, width).permute(0, 2, 3, 1)
    return grid_sample(x, grid, align_corners=True).clamp(0, 1)


def _terms(z: Tensor) -> Tensor:
    """Linear in the latents, [N, 24]: a matrix is the sum of three factor * sin(angle) * matrix."""
    t_x, t_y, shear_x, shear_y, scale, rotation = z.unbind(1)
    none, one, right = (torch.full_like(t_x, value) for value in (0, 1, math.pi / 2))
    sines = (scale, scale, one, rotation + right, rotation, right)  # factors, angles: cos, sin, 1
    cosine = (one, shear_x, none, shear_y, one, none)
    sine = (-shear_x, -one, none, one, -shear_y, none)
    return torch.stack([*sines, *cosine, *sine, none, none, t_x, none, none, t_y], 1)


@lru_cache(maxsize=8)
def _linear(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """(offset [24], slope [6, 24]) of `_terms`: one product for dozens of kernels on a GPU."""
    with torch.inference_mode(False):
        offset = _terms(torch.zeros(1, 6, dtype=torch.float64))
        slope = (_terms(torch.eye(6, dtype=torch.float64)) - offset).round()
        return offset[0].to(dtype).to(device), slope.to(dtype).to(device)


@lru_cache(maxsize=8)
def _places(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(u, v, 1) of every pixel, [3, height * width]: places in [-1, 1], row after row."""
    with torch.inference_mode(False):
        u, v = (torch.linspace(-1, 1, side, dtype=dtype, device=device) for side in (width, height))
        u, v = u.repeat(height), v.repeat_interleave(width)
        return torch.stack([u, v, torch.ones_like(u)])


def slopes(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """T(x; z) [N, C, H, W] and its derivatives by z, [N, 6, C, H, W], in closed form: the slope of
    the bilinear surface at each pixel, times how far that pixel's place moves with z."""
    n, channels, height, width = x.shape
    base = _places(height, width, x.dtype, x.device)
    half = z.new_tensor([(width - 1) / 2, (height - 1) / 2])[:, None]
    # places in an image with two black pixels around it, so that what lies outside reads as 0
    edge = z.new_tensor([width + 3, height + 3])[:, None]
    place = ((matrices(z) @ base + 1) * half + 2).clamp_min(0).minimum(edge)
    corner = place.floor().minimum(edge - 1)
    across, down = (place - corner)[:, None].unbind(2)
    row = width + 4
    first = (corner[:, 1] * row + corner[:, 0]).long()[:, None].expand(-1, channels, -1)
    flat = pad(x, (2, 2, 2, 2)).flatten(2)
    a, b, c, d = (flat.gather(2, first + step) for step in (0, 1, row, row + 1))
    top, bottom = a + (b - a) * across, c + (d - c) * across
    image = top + (bottom - top) * down
    by_place = torch.stack([(b - a) * (1 - down) + (d - c) * down, bottom - top], 2)
    moves = (_by_latent(z) @ base) * half  # [N, 6, 2, HW]
    changes = torch.einsum("nkip,ncip->nkcp", moves, by_place)
    return image.view_as(x), changes.view(n, 6, *x.shape[1:])


def _by_latent(z: Tensor) -> Tensor:
    """Derivatives of `matrices(z)` by each of the six latents, [N, 6, 2, 3]."""
    _, _, shear_x, shear_y, scale, rotation = z.unbind(1)
    cos, sin = rotation.cos(), rotation.sin()
    c, s, none, one = scale * cos, scale * sin, torch.zeros_like(cos), torch.ones_like(cos)
    rows = (
        (none, none, one, none, none, none),
        (none, none, none, none, none, one),
        (-s, c, none, none, none, none),
        (none, none, none, c, -s, none),
        (cos - sin * shear_x, cos * shear_x - sin, none, cos * shear_y + sin, cos - sin * shear_y,
         none),
        (-s - c * shear_x, -s * shear_x - c, none, c - s * shear_y, -s - c * shear_y, none),
    )  # fmt: skip
    return torch.stack([torch.stack(row, 1) for row in rows], 1).view(-1, 6, 2, 3)


@lru_cache(maxsize=128)
def _block(seed: int, number: int) -> np.ndarray:
    return np.random.default_rng([seed, number]).random((BLOCK, len(LATENTS)), np.float32)


def latents(start: int, stop: int, variant: str = "hard", seed: int = 0) -> Tensor:
    """Latents of images start..stop of the stream, float32 [stop - start, 6].

    The stream is cut in blocks that are drawn independently, so that any slice can be made
    without what comes before it.
    """
    low, high = np.array(RANGES[variant], np.float32).T
    parts = [
        _block(seed, number)[max(start - number * BLOCK, 0) : stop - number * BLOCK]
        for number in range(start // BLOCK, -(-stop // BLOCK))
    ]
    z = low + np.concatenate(parts) * (high - low)
    return torch.from_numpy(z.clip(low, high))


@cache
def read_atlas() -> dict[str, np.ndarray]:
    """The shipped atlas: `glyphs` uint8 [faces, 10, 28, 28] (ink = 255), `names`, `licences`."""
    arrays = load_arrays(ATLAS, ("glyphs", "names", "licences", "licence"))
    if len(arrays["glyphs"]) < N_FONTS:
        raise DamagedFileError(
            f"{ATLAS} holds {len(arrays['glyphs'])} faces and FONTS needs {N_FONTS:,}: install "
            "advnb again"
        )
    arrays["licences"] = arrays["licences"][arrays.pop("licence")]
    return arrays


@dataclass(frozen=True)
class KnownManifold:
    """The manifold that FONTS images lie on: decode(z, split) for the split's fonts and letters.

    `variant` is "hard" (the paper's FONTS), "moderate" or "easy"; it only sets the bounds.
    """

    variant: str = "hard"
    _glyphs: dict[Any, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.variant not in RANGES:
            raise ValueError(
                f"variant must be one of {', '.join(RANGES)}; got {brief(self.variant)}"
            )

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """(low, high), float32 [6] each: the ranges that the latents are drawn from."""
        low, high = torch.tensor(RANGES[self.variant]).T.contiguous()
        return low, high

    def encode(self, split: Any) -> Tensor:
        """The latents that the split's images were made from, [N, 6]."""
        if split.z is None or split.font is None:
            raise ValueError(
                "only FONTS images have known latents: load a 'fonts' data set, or use a "
                "LearnedManifold"
            )
        return split.z

    def decode(self, z: Tensor, split: Any) -> Tensor:
        """Images [N, 1, 28, 28] of latents z [N, 6], with the fonts and letters of `split`."""
        if z.shape != (len(split), len(LATENTS)):
            raise ValueError(f"z must be [{len(split)}, 6], one row an image; got {list(z.shape)}")
        if watched():
            self._check(z)
        return transform(self.glyphs(split.font, split.y, like=z), z)

    def _check(self, z: Tensor) -> None:
        low, high = (edge.to(z) for edge in self.bounds)
        outside = ~((z >= low - 1e-6) & (z <= high + 1e-6)).all(0)
        if outside.any():
            name = LATENTS[int(outside.int().argmax())]
            raise ValueError(
                f"{name} in z lies outside the bounds of the {self.variant} manifold, "
                f"{low[LATENTS.index(name)]:.4g} to {high[LATENTS.index(name)]:.4g}"
            )

    def project(
        self, x: Tensor, split: Any, *, starts: int = 4, radius: float = 0.3, seed: int = 0
    ) -> Tensor:
        """The nearest images found on the manifold (L2), [N, 1, 28, 28], of the split's own fonts
        and letters, with latents inside the bounds (S section 3.2).

        The search starts from the split's own latents and, where that does not meet x, from
        `starts` - 1 random ones within `radius` of them, the box of an on-manifold attack.
        """
        found = self.nearest(x, split, starts=starts, radius=radius, seed=seed)
        return self.decode(found, split).to(x)

    def distance(self, x: Tensor, split: Any, **search: Any) -> Tensor:
        """L2 norm of x - project(x, split), pixels in [0, 1], [N]."""
        return (x - self.project(x, split, **search)).flatten(1).norm(dim=1)

    def nearest(
        self, x: Tensor, split: Any, *, starts: int = 4, radius: float = 0.3, seed: int = 0
    ) -> Tensor:
        """The latents of `project`, [N, 6]."""
        if not isinstance(x, Tensor) or not x.is_floating_point() or not x.isfinite().all():
            what = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be a tensor of finite floats in [0, 1]; got {what}")
        x = x if x.dtype == torch.float64 else x.float()  # half precision would not do
        own = self.encode(split).to(x)
        if x.shape != (len(split), 1, SIZE, SIZE):
            raise ValueError(
                f"x must be [{len(split)}, 1, {SIZE}, {SIZE}], an image a row; got {list(x.shape)}"
            )
        whole("starts", starts, 1)
        number("radius", radius, "a positive number", lambda v: 0 < v < math.inf)
        low, high = (edge.to(x) for edge in self.bounds)
        stream = generator(seed)
        # the same shifts for every image: a result does not depend on the others
        shifts = [torch.rand(own.shape[1], generator=stream) * 2 - 1 for _ in range(starts - 1)]
        places = [own, *((own + radius * shift.to(x)).clamp(low, high) for shift in shifts)]
        glyphs = self.glyphs(split.font, split.y, like=x)
        with torch.no_grad():
            return nearest(lambda z, rows: slopes(glyphs[rows], z), x, places, low, high).code

    def log_density(self, split: Any) -> Tensor:
        """How densely FONTS lie around each of the split's images, float64 [N]: the logarithm of
        the images' density on the surface of their own letter and face, per unit of its area
        (pixels in [0, 1]). Latents are uniform in their ranges, of volume V, so that

            log p(x) = -log V - 1/2 log det(J^T J),

        J the derivatives of the image by its latents.
        """
        low, high = self.bounds
        z, found = self.encode(split), []
        z = z.to(widest(z.device))
        for rows in torch.arange(len(split), device=z.device).split(500):
            glyphs = self.glyphs(split.font[rows], split.y[rows], like=z)
            by_latent = slopes(glyphs, z[rows])[1].flatten(2)
            found.append(torch.logdet(by_latent @ by_latent.mT))
        return -(high - low).cpu().double().log().sum().to(z) - torch.cat(found) / 2

    def glyphs(self, font: Tensor, letter: Tensor, like: Tensor) -> Tensor:
        """Prototypes [N, 1, 28, 28] in the dtype and on the device of `like`.

        `font` and `letter` are indices int64 [N], or weights [N, faces] and [N, 10]: then the
        prototype is the weighted sum over both, and differentiable in them as well.
        """
        key = (like.device, like.dtype)
        if key not in self._glyphs:
            glyphs = torch.from_numpy(read_atlas()["glyphs"])
            self._glyphs[key] = glyphs.to(like.device).to(like.dtype).div_(255)
        atlas = self._glyphs[key]
        if font.is_floating_point():
            faces = torch.einsum("nf,flhw->nlhw", font, atlas[: font.shape[1]])
            return torch.einsum("nl,nlhw->nhw", letter, faces)[:, None]
        return atlas[font.to(like.device), letter.to(like.device)][:, None]


def unseen_faces(split: Any) -> Any:
    """The letters and latents of a FONTS split in faces that no image of FONTS has: the rest of the
    atlas, one after another. ValueError for other data, and for an atlas of FONTS' faces alone."""
    if split.font is None or split.z is None:
        raise ValueError("only FONTS has faces: load a 'fonts' data set")
    rest = len(read_atlas()["glyphs"]) - N_FONTS
    if rest < 1:
        raise ValueError("the atlas holds no further faces: build one from more folders of fonts")
    return type(split)._of(split.y, split.z, N_FONTS + split.font % rest, split.dataset)
