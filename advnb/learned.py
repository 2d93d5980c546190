"""`LearnedManifold`: where the generator of the data is unknown, generative models stand in for it
(S section 3.2)."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .autoencoders import LATENTS, Autoencoder
from .checks import brief, number, watched, whole
from .data import Dataset
from .decoders import Decoders
from .files import DamagedFileError, digest, load_tensors, packed, save_tensors
from .projection import STAGES, nearest
from .splits import Split
from .stats import generator

FOLDER = Path(__file__).parent / "zoo"
STEP = 0.01  # of the differences that stand in for derivatives, in a decoder of float32
KINDS = ("flow", "vaegan")  # the first is the default
FEW = 500  # codes that are decoded with all classes side by side; more, class after class
SHARED = "flow-shared"  # one model for all classes
ABOUT = {"kind", "title", "classes", "shape", "width", "kernel", "couplings", "shared", "networks"}
SHIPPED = {"fonts": (*KINDS, SHARED), "mnist": KINDS, "fashion": KINDS}


class LearnedManifold:
    """The images that generative models make, one model a class, or one for all of them (S's
    class-agnostic form). Codes z [N, 10] are standard normal under the model.

    `bounds` are the range that the codes of the training images take (S's code, which attacks test
    images in the range of theirs), or [-limit, limit] (`within(2.0)`: S's text). The models'
    weights are never trained here: that is `advnb.vaegan`'s work.
    """

    def __init__(
        self, networks: Sequence[Autoencoder], low: Tensor, high: Tensor, about: dict[str, Any]
    ) -> None:
        self.low, self.high, self.about = low.detach().cpu(), high.detach().cpu(), about
        # codes of unseen images may lie a little outside of those of the training images
        room = self.high - self.low
        self._least, self._most = self.low - room, self.high + room
        home = [network.requires_grad_(False).eval() for network in networks]
        self._networks: dict[tuple[torch.device, torch.dtype], list[Autoencoder]] = {
            (torch.device("cpu"), torch.float32): home
        }
        self._decoders: dict[tuple[torch.device, torch.dtype], list[Decoders]] = {}

    @classmethod
    def load(cls, data: Dataset | str, kind: str = KINDS[0]) -> LearnedManifold:
        """The manifold that ships for a data set: `kind` "flow" (a variational autoencoder with a
        flow as prior) or "vaegan" (S's), of each class, or "flow-shared", one flow of all classes.
        ValueError for a set that has none."""
        name = data.name if isinstance(data, Dataset) else data
        if not isinstance(name, str) or kind not in SHIPPED.get(name, ()):
            have = ", ".join(f"{n} ({', '.join(kinds)})" for n, kinds in SHIPPED.items())
            raise ValueError(
                f"no learned manifold {brief(kind)} of {brief(name)} ships, only of {have}: make it"
                " by `python -m advnb vaegan train` and read it"
            )
        return cls.read(FOLDER / f"{name}-{kind}.safetensors")

    @classmethod
    def read(cls, path: str | os.PathLike) -> LearnedManifold:
        """What `save` wrote. DamagedFileError for anything else."""
        tensors, about = load_tensors(path)
        try:
            if lacking := ABOUT - about.keys():
                raise KeyError(str(lacking))
            stacked = {k: t.float() for k, t in tensors.items() if k not in ("low", "high")}
            networks = []
            for row in range(about["networks"]):
                network = Autoencoder(
                    shape=tuple(about["shape"]), width=about["width"], kernel=about["kernel"],
                    couplings=about["couplings"], normalised=False,
                )  # fmt: skip
                state = {k: t[row] for k, t in stacked.items()}
                missing, odd = network.load_state_dict(state, strict=False)
                if odd or any(not name.startswith("spread.") for name in missing):
                    raise KeyError(str(missing))
                networks.append(network)
            return cls(networks, tensors["low"], tensors["high"], about)
        except (LookupError, TypeError, ValueError, RuntimeError):
            raise DamagedFileError(f"{path} holds no learned manifold: train it again") from None

    def save(self, path: str | os.PathLike) -> Path:
        """Write the weights, in 8 bits (`files.packed`), and `about`. What is not needed after
        training (the encoders' variances) stays behind."""
        states = [network.state_dict() for network in self._on(self.low)]
        tensors = {
            name: torch.stack([state[name] for state in states])
            for name in states[0]
            if not name.startswith("spread.")
        }
        tensors = {**packed(tensors), "low": self.low, "high": self.high}
        return save_tensors(path, tensors, **self.about)

    @property
    def shared(self) -> bool:
        """Whether one model serves all classes."""
        return bool(self.about["shared"])

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """(low, high), float32 [10] each."""
        return self.low, self.high

    def within(self, limit: float) -> LearnedManifold:
        """The same manifold with codes bounded by [-limit, limit] (S's text: 2)."""
        limit = number("limit", limit, "a positive number", lambda v: 0 < v < math.inf)
        new = copy.copy(self)
        new.low, new.high = torch.full((LATENTS,), -limit), torch.full((LATENTS,), limit)
        new._least = torch.minimum(self._least, new.low)
        new._most = torch.maximum(self._most, new.high)
        return new

    def encode(self, split: Split) -> Tensor:
        """Codes [N, 10] of the split's images: the mean of what their class's encoder answers.
        ValueError for images of another data set, size or number of classes."""
        self._check(split)
        with torch.no_grad():
            return self._by_class([net.encode for net in self._on(split.x)], split.x, split.y)

    def decode(self, z: Tensor, split: Split) -> Tensor:
        """Images [N, C, H, W] of codes z [N, 10], each by the model of its class. ValueError for
        another split, as in `encode`, and for codes where no image's lie."""
        self._check(split)
        if not isinstance(z, Tensor) or not z.is_floating_point() or z.shape != (
            len(split), LATENTS,
        ):  # fmt: skip
            what = f"{z.dtype} {list(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(
                f"z must be floats [{len(split)}, {LATENTS}], one row an image; got {what}"
            )
        if watched() and not ((z >= self._least.to(z)) & (z <= self._most.to(z))).all():
            raise ValueError("z lies far outside the manifold's bounds: see manifold.bounds")
        return self._decode(z, split.y)

    def reconstruct(self, split: Split) -> Split:
        """decode(encode(split)) with the labels of `split`."""
        with torch.no_grad():
            return split.with_x(self.decode(self.encode(split), split))

    def sample(self, labels: Tensor, *, seed: int = 0, limit: float = 2.0) -> Split:
        """New images of the classes `labels` int64 [N], from normal codes truncated to [-limit,
        limit] (S, appendix: 2)."""
        number("limit", limit, "a positive number", lambda v: 0 < v < math.inf)
        whole("seed", seed)
        if not isinstance(labels, Tensor):
            raise ValueError(f"labels must be a tensor int64 [N]; got {brief(labels)}")
        blank = torch.zeros(labels.numel(), *self.about["shape"])
        split = Split(blank, labels.cpu())
        self._check(split)
        z = torch.empty(len(split), LATENTS)
        nn.init.trunc_normal_(z, a=-limit, b=limit, generator=generator(seed))
        with torch.no_grad():
            return split.with_x(self._decode(z, split.y))

    def interpolate(self, first: Split, last: Split, steps: int = 7) -> Tensor:
        """Images [N, steps, C, H, W] on the straight lines between the codes of two splits, whose
        classes must be the same, image by image."""
        self._check(first)
        self._check(last)
        if not torch.equal(first.y, last.y):
            raise ValueError("an interpolation needs images of the same classes, row by row")
        whole("steps", steps, 2)
        a, b = self.encode(first), self.encode(last)
        with torch.no_grad():
            rows = [self.decode(a.lerp(b, t), first) for t in torch.linspace(0, 1, steps).tolist()]
        return torch.stack(rows, 1)

    def nearest(self, x: Tensor, split: Split) -> Tensor:
        """The codes [N, 10] of `project`."""
        self._check(split)
        if not isinstance(x, Tensor) or x.shape != split.x.shape or not x.isfinite().all():
            what = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be finite images {list(split.x.shape)}; got {what}")
        x = x if x.dtype == torch.float64 else x.float()  # half precision would not do
        low, high = (edge.to(x) for edge in self.bounds)
        codes = [self.encode(split.with_x(x.clamp(0, 1))), self.encode(split)]
        starts = [torch.minimum(torch.maximum(code.to(x), low), high) for code in codes]
        # central differences: each code moved both ways along every coordinate
        moves = torch.cat([torch.zeros(1, LATENTS), STEP * torch.eye(LATENTS),
                           -STEP * torch.eye(LATENTS)]).to(x)  # fmt: skip

        def linearise(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            many = (z[:, None] + moves).flatten(0, 1)
            y = split.y[rows].repeat_interleave(len(moves))
            images = self._decode(many, y)
            image, up, down = images.unflatten(0, (len(z), -1)).split([1, LATENTS, LATENTS], 1)
            return image[:, 0], (up - down) / (2 * STEP)

        with torch.no_grad():  # a decoder is smooth: no need to begin with blurred images
            return nearest(linearise, x, starts, low, high, STAGES[-1:]).code

    def project(self, x: Tensor, split: Split) -> Tensor:
        """The nearest images found on the manifold (L2), [N, C, H, W], of the split's classes with
        codes inside the bounds. The search starts from the codes of x and of the split."""
        with torch.no_grad():
            return self.decode(self.nearest(x, split), split).to(x)

    def distance(self, x: Tensor, split: Split) -> Tensor:
        """L2 norm of x - project(x, split), pixels in [0, 1], [N]."""
        return (x - self.project(x, split)).flatten(1).norm(dim=1)

    def _on(self, like: Tensor) -> list[Autoencoder]:
        """The networks on the device and in the type of `like`."""
        key = (like.device, like.dtype)
        if key not in self._networks:
            home = next(iter(self._networks.values()))
            self._networks[key] = [copy.deepcopy(network).to(like) for network in home]
        return self._networks[key]

    def _by_class(
        self, models: Sequence[Callable[[Tensor], Tensor]], rows: Tensor, y: Tensor
    ) -> Tensor:
        """The class's model of its rows, for every class, put back in the rows' order."""
        if self.shared:
            return models[0](rows)
        order = y.argsort(stable=True)
        counts = torch.bincount(y, minlength=len(models)).tolist()
        parts = zip(models, rows[order].split(counts))
        found = torch.cat([model(part) for model, part in parts if len(part)])
        return found[order.argsort()]

    def _decode(self, z: Tensor, y: Tensor) -> Tensor:
        """The images of codes, each by the model of its class. A few codes of many classes cost
        more in calls than in arithmetic: they are decoded side by side, as many of each class as
        there are of the most frequent one."""
        *each, together = self._quick(z)
        classes, at = len(each), torch.arange(len(y), device=y.device)
        if not self.shared and not watched():
            # how many rows a class has is not to be asked: all, and then a choice
            return together(z[:, None].expand(-1, classes, -1))[at, y]
        counts = torch.bincount(y, minlength=classes)
        most = int(counts.max())
        if self.shared or len(z) > FEW or most * classes > 3 * len(z):
            return self._by_class([one.alone for one in each], z, y)
        order = y.argsort(stable=True)
        rank = torch.empty_like(y)
        rank[order] = at - (counts.cumsum(0) - counts)[y[order]]
        padded = z.new_zeros(most, classes, LATENTS).index_put((rank, y), z)
        return together(padded)[rank, y]

    def _quick(self, like: Tensor) -> list[Decoders]:
        """Each class's decoder, and all as one, on the device and in the type of `like`."""
        key = (like.device, like.dtype)
        if key not in self._decoders:
            networks = self._on(like)
            each = [Decoders([network]) for network in networks]
            self._decoders[key] = [*each, Decoders(networks)]
        return self._decoders[key]

    def _check(self, split: Split) -> None:
        if not isinstance(split, Split):
            raise ValueError(f"split must be a Split; got {brief(split)}")
        title, shape = self.about["title"], tuple(self.about["shape"])
        if split.dataset is not None and split.dataset.title != title:
            raise ValueError(
                f"this manifold was learned from {title}, and the images are of "
                f"{split.dataset.title}: load theirs"
            )
        if split.shape != shape:
            raise ValueError(f"this manifold makes images {shape}; got {split.shape}")
        if watched() and split.y.max() >= self.about["classes"]:
            raise ValueError(
                f"this manifold knows {self.about['classes']} classes; a label is {split.y.max()}"
            )

    def __repr__(self) -> str:
        form = "one model" if self.shared else f"{self.about['classes']} models"
        tensors = {"low": self.low, "high": self.high}
        for row, network in enumerate(self._on(self.low)):
            tensors |= network.state_dict(prefix=f"{row}.")
        # bounds and weights in short: a checkpoint tells runs apart by this text
        told = f"{self.about['kind']} of {self.about['title']}, {form}, {digest(tensors)[:8]}"
        return f"LearnedManifold({told})"
