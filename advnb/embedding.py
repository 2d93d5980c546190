"""Images as points: the features h(x) of a network, and how far an image lies from the training
set in them (Zhang et al. 2019, section 3.1)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from .checks import brief, whole, widest
from .models import device_of, lent
from .neighbours import BLOCK, Nearest, nearest_rows
from .splits import Split

Features = Callable[[Tensor], Tensor]  # images [N, C, H, W] -> [N, d]
Method = Literal["umap", "tsne", "pca"]
BATCH = 200  # images a forward pass: more are no faster on a CPU, and take more memory
METHODS: tuple[Method, ...] = get_args(Method)


def embed(features: Features, images: Split | Tensor, batch_size: int = BATCH) -> Tensor:
    """h(x) of every image, float [N, d], on the device where it was computed.

    `features` is any function of images: a network's own (`model.features`, which is then lent in
    eval mode), `pixels`, a `PCA`, or yours. ValueError where it does not answer with finite
    numbers [N, d].
    """
    return torch.cat(list(_batches(features, images, whole("batch_size", batch_size, 1))))


def _batches(features: Features, images: Split | Tensor, size: int) -> Iterator[Tensor]:
    if not callable(features):
        raise ValueError(f"features must be a function, model.features say; got {brief(features)}")
    if not isinstance(images, Split) and not (isinstance(images, Tensor) and images.ndim == 4):
        raise ValueError(f"images must be a Split or a tensor [N, C, H, W]; got {brief(images)}")
    owner = features if isinstance(features, nn.Module) else getattr(features, "__self__", None)
    model = owner if isinstance(owner, nn.Module) else nn.Identity()
    with lent(model), torch.no_grad():
        for start in range(0, len(images), size):
            part = images[start : start + size]
            x = part.x if isinstance(part, Split) else part
            x = x.clone()  # features that change their input in place are not to change the split
            try:
                found = features(x if model is not owner else x.to(device_of(model)))
            except RuntimeError as error:
                shape = "x".join(map(str, x.shape[1:]))
                raise ValueError(
                    f"the features cannot be had of images of {shape} ({brief(str(error))[1:-1]}): "
                    "give them the images that they were made for"
                ) from None
            right = isinstance(found, Tensor) and found.ndim == 2 and len(found) == len(x)
            if not right or not found.is_floating_point() or not found.isfinite().all():
                what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(
                    f"features must answer with finite floats [{len(x)}, d]; these gave {what}"
                )
            yield found.to(_exact(found))


def _exact(numbers: Tensor) -> torch.dtype:
    return torch.float64 if numbers.dtype == torch.float64 else torch.float32


def nearest(
    features: Features,
    train: Split | Tensor,
    test: Split | Tensor,
    k: int = 5,
    *,
    by_class: bool = False,
) -> Nearest:
    """The k training images nearest to each test image in feature space, nearest first: `.index`
    int64 [N, k], positions in `train`, and `.distance` float32 [N, k], both on the device of
    `test`. Exact. With `by_class` only images of its own class are looked at (both must be Splits).

    Features of the training images are computed in blocks, so that memory does not grow with
    their number. ValueError for images of two sizes, or where there are fewer than k.
    """
    for name, images in (("train", train), ("test", test)):
        if not isinstance(images, Split if by_class else Split | Tensor) or not len(images):
            what = "a Split" if by_class else "a Split or a tensor of images"
            raise ValueError(f"{name} must be {what} that is not empty; got {brief(images)}")
    a, b = (tuple(i.shape if isinstance(i, Split) else i.shape[1:]) for i in (train, test))
    if a != b:
        raise ValueError(f"train and test must be images of one size; got {a} and {b}")
    device = test.y.device if isinstance(test, Split) else test.device
    if by_class:
        assert isinstance(train, Split)
        assert isinstance(test, Split)
        return _by_class(features, train, test, k)
    rows = embed(features, test)
    blocks = (embed(features, train[at : at + BLOCK]) for at in range(0, len(train), BLOCK))
    found = nearest_rows(rows, blocks, k)
    return Nearest(found.index.to(device), found.distance.float().to(device))


def _by_class(features: Features, train: Split, test: Split, k: int) -> Nearest:
    home = test.y.device
    index = torch.empty(len(test), whole("k", k, 1), dtype=torch.int64, device=home)
    distance = torch.empty(index.shape, device=home)
    for label in test.y.unique().tolist():
        rows, among = (test.y == label).nonzero()[:, 0], (train.y == label).nonzero()[:, 0]
        if len(among) < k:
            raise ValueError(f"class {label} has {len(among)} training images: k is {k}, take more")
        near = nearest(features, train[among], test[rows], k)
        index[rows], distance[rows] = among.to(home)[near.index], near.distance
    return Nearest(index, distance)


def distance_to_training_set(
    features: Features,
    train: Split | Tensor,
    test: Split | Tensor,
    k: int = 5,
    *,
    by_class: bool = False,
) -> Tensor:
    """How far each test image lies from the training set, float32 [N] (Z eq. 2): the mean of the
    Euclidean distances to its k nearest training images in feature space,

        D(x) = 1/k * sum over i <= k of ||h(x) - h(x_i)||_2.

    Distances under two `features` are not comparable, unless both are `standardised`.
    `by_class`: to the training images of its own class. Errors as in `nearest`.
    """
    return nearest(features, train, test, k, by_class=by_class).distance.mean(1)


def pixels(x: Tensor) -> Tensor:
    """The image itself as its features, [N, C * H * W]."""
    return x.flatten(1)


class PCA:
    """Principal components of the training images' pixels as features [N, d], for `d` of them."""

    def __init__(self, train: Split | Tensor, d: int = 40) -> None:
        flat = embed(pixels, train)
        most = min(flat.shape[1], len(flat) - 1)
        if whole("d", d, 1) > most:
            raise ValueError(
                f"there are at most {most} components, fewer than images and no more than pixels; "
                f"got {d}"
            )
        self.mean = flat.mean(0)
        spread = torch.cov(flat.T).view(flat.shape[1], -1)
        self.basis = torch.linalg.eigh(spread)[1][:, -d:]

    def __call__(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - self.mean.to(x)) @ self.basis.to(x)

    def __repr__(self) -> str:
        return f"PCA to {self.basis.shape[1]} of {self.basis.shape[0]} pixels"


class Standardised:
    """Features of mean 0 and variance 1 over the training images, over the root of their number
    d: distances in them can be compared between data sets and networks (Z section 4.3, table 1).

    A feature that is the same for all training images (a dead unit) counts for nothing, and not
    in d.
    """

    def __init__(self, features: Features, train: Split | Tensor) -> None:
        found = embed(features, train)
        found = found.to(widest(found.device))
        self.features, self.mean, spread = features, found.mean(0), found.std(0)
        alive = spread > 1e-6 * spread.max()
        if not alive.any():
            raise ValueError("all features are constant on the training images: take others")
        self.scale = torch.where(alive, 1 / spread, 0) / alive.sum() ** 0.5

    def __call__(self, x: Tensor) -> Tensor:
        found = embed(self.features, x)
        return (found - self.mean.to(found)) * self.scale.to(found)

    def __repr__(self) -> str:
        return f"Standardised({self.features})"


class Unit:
    """Features over their length, so that only their direction counts. Where a network's sureness
    shows in the length, what it is sure of lies far from everything."""

    def __init__(self, features: Features) -> None:
        self.features = features

    def __call__(self, x: Tensor) -> Tensor:
        return normalize(embed(self.features, x))

    def __repr__(self) -> str:
        return f"Unit({self.features})"


def project(
    train: Tensor,
    test: Tensor,
    method: Method = "umap",
    *,
    seed: int = 0,
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """Features of training and test images, [N, d] and [M, d], in the plane: float32 [N, 2] and
    [M, 2] on the CPU. Both are embedded together: t-SNE has no map for later points.

    `settings` go to the method: umap.UMAP's (n_neighbors 15, min_dist 0.1), scikit-learn's
    TSNE's (perplexity 30, both start from PCA) or PCA's. On one thread the same seed gives the
    same points. ValueError for fewer than 5 points, and for a setting that the method refuses.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {brief(method)}")
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1]:
        raise ValueError(
            "train and test must be features [N, d] and [M, d]; got "
            f"{list(train.shape)} and {list(test.shape)}"
        )
    points = torch.cat([part.detach().cpu().to(_exact(part)) for part in (train, test)]).numpy()
    if len(points) < 5:
        raise ValueError(f"a projection needs 5 points or more; got {len(points)}")
    try:
        with warnings.catch_warnings():  # of threads that a fixed seed rules out, and the like
            warnings.simplefilter("ignore")
            plane = torch.from_numpy(_METHODS[method](points, whole("seed", seed), settings))
    except TypeError as error:
        raise ValueError(f"{method} has no such setting: {brief(str(error))}") from None
    return plane[: len(train)].float(), plane[len(train) :].float()


def _umap(points: np.ndarray, seed: int, settings: dict[str, Any]) -> np.ndarray:
    import umap

    few, threads = min(15, len(points) - 1), torch.get_num_threads()
    try:
        made = umap.UMAP(**{"n_neighbors": few, "n_jobs": 1} | settings, random_state=seed)
        return np.asarray(made.fit_transform(points))
    finally:  # numba sets the number that torch uses on this thread as well
        torch.set_num_threads(threads)


def _tsne(points: np.ndarray, seed: int, settings: dict[str, Any]) -> np.ndarray:
    from sklearn.manifold import TSNE

    few = min(30.0, (len(points) - 1) / 3)
    made = TSNE(**{"perplexity": few, "init": "pca"} | settings, random_state=seed)
    return np.asarray(made.fit_transform(points))


def _pca(points: np.ndarray, seed: int, settings: dict[str, Any]) -> np.ndarray:
    from sklearn.decomposition import PCA as Components

    return Components(2, **settings, random_state=seed).fit_transform(points)


_METHODS: dict[str, Callable[[np.ndarray, int, dict[str, Any]], np.ndarray]] = {
    "umap": _umap,
    "tsne": _tsne,
    "pca": _pca,
}
