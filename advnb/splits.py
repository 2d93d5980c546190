"""`Split`: images with their labels (and, for FONTS, codes) in a fixed order."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from . import checks
from .stats import generator

if TYPE_CHECKING:
    from .data import Dataset


class Split:
    """Images with their labels, in a fixed order; indexing gives a Split again.

    `x` float [N, C, H, W] in [0, 1]; `y` int64 [N]; `z` [N, 6] and `font` [N] for FONTS, else
    None; `dataset` where the images come from, or None. FONTS images are decoded when `x` is
    first read, so that a Split of a million of them costs only its latents; the bytes of a file
    become floats then, so that parts of a large set cost only themselves.

    Raises ValueError for wrong shapes or dtypes, NaN, pixels outside [0, 1], negative labels,
    parts on several devices, and where nothing is left.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        z: Tensor | None = None,
        font: Tensor | None = None,
        dataset: Dataset | None = None,
    ) -> None:
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
            what = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be a float tensor [N, C, H, W]; got {what}")
        if 0 in x.shape[1:]:
            raise ValueError(
                f"x holds images of no pixels, {list(x.shape)}: every side must be 1 or more"
            )
        if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != x.shape[:1]:
            what = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(f"y must be int64 [{len(x)}], one label an image; got {what}")
        if len(x) == 0:
            raise ValueError("a split needs at least one image; this one is empty")
        low, high = x.detach().amin().item(), x.detach().amax().item()
        if math.isnan(low + high):
            raise ValueError("x holds NaN: clean the images first")
        if low < 0 or high > 1:
            raise ValueError(f"pixels must lie in [0, 1]; these reach from {low:g} to {high:g}")
        for name, row in {"y": y, "z": z, "font": font}.items():
            if row is None:
                continue
            if not isinstance(row, Tensor):
                raise ValueError(f"{name} must be a tensor or None; got {type(row).__name__}")
            rows = len(row) if row.ndim else 0
            if rows != len(x):
                raise ValueError(f"{name} has {rows} rows for {len(x)} images: one each")
            if row.device != x.device:
                raise ValueError(f"{name} is on {row.device}: move it to {x.device}, as x is")
        if (y < 0).any():
            raise ValueError(f"labels must be 0 or more; the smallest here is {y.min().item()}")
        self.y, self.z, self.font, self.dataset = y, z, font, dataset
        self._x: Tensor | None = x
        self._gather: tuple[Tensor, Tensor] | None = None
        self._decoded = False  # whether the images are those of the codes

    @classmethod
    def _of(
        cls,
        y: Tensor,
        z: Tensor | None,
        font: Tensor | None,
        dataset: Dataset | None,
        x: Tensor | None = None,
        gather: tuple[Tensor, Tensor] | None = None,
    ) -> Split:
        """A split from parts that are known to be sound, without looking at every pixel."""
        split = cls.__new__(cls)
        split.y, split.z, split.font, split.dataset = y, z, font, dataset
        split._x, split._gather, split._decoded = x, gather, x is None and gather is None
        return split

    @property
    def x(self) -> Tensor:
        """Images [N, C, H, W] in [0, 1]; gathered, decoded or converted on first use, then kept."""
        gather, x = self._kept
        if x is None and gather is not None:
            pixels, rows = gather
            x = pixels[rows]
        elif x is None:
            assert self.dataset is not None
            assert self.dataset.manifold is not None
            manifold, n = self.dataset.manifold, 5000  # at a time: grids are larger than images
            parts = [self[start : start + n] for start in range(0, len(self), n)]
            with torch.no_grad():
                images = [manifold.decode(manifold.encode(part), part) for part in parts]
            x = torch.cat(images)
        if x.dtype == torch.uint8:
            # one float copy, never two: CIFAR-10's training set is 600 MB
            x = x.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        self._x = x
        self._gather = None
        return x

    @property
    def _kept(self) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
        """What is to be gathered, and what is there. Panels' threads read a split at once: in this
        order, as `x` sets the one before it clears the other, both cannot be missing."""
        gather = self._gather
        return gather, self._x

    @property
    def _stored(self) -> Tensor | None:
        """What `x` is a copy or a part of, [M, C, H, W]; None where it must be decoded."""
        gather, x = self._kept
        return x if gather is None else gather[0]

    @property
    def dtype(self) -> torch.dtype:
        """The type of `x`, without making it."""
        if self._stored is None:
            assert self.z is not None
            return self.z.dtype
        return torch.float32 if self._stored.dtype == torch.uint8 else self._stored.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images, without making them."""
        if self._stored is None:
            assert self.dataset is not None
            return self.dataset.shape
        channels, height, width = self._stored.shape[1:]
        return channels, height, width

    def content(self) -> dict[str, Tensor]:
        """What tells this split from another: pixels, or the codes that they are decoded from."""
        if self._decoded:  # whether or not somebody has looked at them
            assert self.z is not None
            assert self.font is not None
            return {"z": self.z, "font": self.font, "y": self.y}
        return {"x": self.x, "y": self.y}

    def with_x(self, x: Tensor) -> Split:
        """The same labels, codes and order with other images (transformed ones, say)."""
        return Split(x, self.y, z=self.z, font=self.font, dataset=self.dataset)

    def named(self, guess: Tensor) -> list[tuple[str, bool]]:
        """Predicted labels [N] as class names, each with whether it is right."""
        classes = self.dataset.classes if self.dataset else ()
        names = [classes[g] if g < len(classes) else str(g) for g in guess.tolist()]
        return list(zip(names, (guess == self.y).tolist()))

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, key: int | slice | Tensor | np.ndarray | list) -> Split:
        rows: slice | Tensor
        if isinstance(key, slice) and (key.step or 1) > 0:
            rows = key
        else:
            positions = list(range(len(self))[key]) if isinstance(key, slice) else key
            try:
                rows = torch.as_tensor(positions)
            except (TypeError, ValueError, RuntimeError):
                raise _odd(key) from None
            whole = not (rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool)
            empty = rows.ndim == 1 and not len(rows)  # an empty list is of floats
            if rows.ndim > 1 or not (whole or empty or (rows.ndim and rows.dtype == torch.bool)):
                raise _odd(key)
            if whole or empty:  # torch would take uint8 for a mask
                rows = rows.long().reshape(-1)
            elif len(rows) != len(self):
                raise IndexError(f"a mask of {len(rows)} does not fit a split of {len(self)}")
            rows = rows.to(self.y.device)
            if rows.dtype == torch.bool:  # as positions, so that a part of a part can be taken
                rows = rows.nonzero()[:, 0]
        try:
            y = self.y[rows]
        except IndexError:
            raise IndexError(
                f"{checks.brief(key)} does not lie in a split of {len(self)} images: they count "
                "from 0"
            ) from None
        if len(y) == 0:
            raise IndexError(
                f"{checks.brief(key)} selects nothing from a split of {len(self)} images: take "
                "one or more"
            )
        z = None if self.z is None else self.z[rows]
        font = None if self.font is None else self.font[rows]
        x, (gather, kept) = None, self._kept
        if kept is None:
            gather = gather and (gather[0], gather[1][rows])
        elif isinstance(rows, slice):
            x, gather = kept[rows], None
        else:  # copied only if somebody looks: an attack on FONTS codes never does
            gather = (kept, rows)
        part = Split._of(y, z, font, self.dataset, x, gather)
        part._decoded = self._decoded
        return part

    def shuffled(self, seed: int) -> Split:
        """The same images in a random order that `seed` decides."""
        return self[torch.randperm(len(self), generator=generator(seed))]

    def to(self, device: torch.device | str) -> Split:
        """The split on a device; itself where it is there already."""
        device = device if device == self.y.device else checks.device(device)
        if self.y.device == device:
            return self
        z = None if self.z is None else self.z.to(device)
        font = None if self.font is None else self.font.to(device)
        x = None if self._stored is None else self.x.to(device)
        moved = Split._of(self.y.to(device), z, font, self.dataset, x)
        moved._decoded = self._decoded
        return moved

    def __repr__(self) -> str:
        title = self.dataset.title if self.dataset else "images"
        return f"Split({len(self):,} of {title}, {self.y.device})"


def _odd(key: object) -> IndexError:
    return IndexError(f"a split is indexed by whole numbers or a mask; got {checks.brief(key)}")
