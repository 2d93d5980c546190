"""Can a scaled and shifted image be told from an untouched one? Zhang et al. 2019, section 4.4,
figure 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..attacks import Attack
from ..checks import brief
from ..embedding import Features, distance_to_training_set
from ..models import checked, logits
from ..splits import Split
from ..stats import Estimate, Rate, wilson
from .shift import shifted
from .tables import on_images


@dataclass(frozen=True)
class Detection:
    """What detectors say of the same n images, untouched and scaled and shifted.

    `original` and `transformed`: a detector's scores, [n] on the CPU; larger is more suspicious.
    `success_before` and `success`: how often an attack fools the model on the n images and on the
    transformed ones; None where there was none. `right`: which images of the split these are, bool
    [N]: those that the model classifies correctly, both untouched and transformed.
    """

    alpha: float
    beta: float
    right: Tensor
    original: dict[str, Tensor]
    transformed: dict[str, Tensor]
    success_before: Rate | None = None
    success: Rate | None = None

    @property
    def auc(self) -> dict[str, Estimate]:
        """The `auc` of each detector."""
        return {name: auc(self.original[name], self.transformed[name]) for name in self.original}


def detect(
    model: nn.Module,
    train: Split | Tensor,
    split: Split,
    alpha: float,
    beta: float,
    *,
    attack: Attack | None = None,
    features: Mapping[str, Features] | None = None,
    k: int = 5,
) -> Detection:
    """How well detectors tell the images of `split` from themselves scaled and shifted, and, with
    `attack`, how much robustness the same change takes.

    The detectors: the distance to `train` over `k` neighbours (Z eq. 2) in each of the `features`,
    names and functions of images, by default the model's own (Z's figure 5); how far the largest
    softmax probability stays below 1; and two plain cheats that know the transform, the darkest
    pixel and the contrast that is missing, 1 - (max - min).

    ValueError where no two images are right before and after the transform.
    """
    checked(model, split)
    if attack is not None and not isinstance(attack, Attack):
        raise ValueError(f"attack must be an Attack or None; got {brief(attack)}")
    if attack is not None:
        on_images(attack)
    if features is None:
        if not callable(getattr(model, "features", None)):
            raise ValueError(
                "the model has no features of its own: name some, features={'pixels': pixels}"
            )
        features = {"own features": model.features}  # type: ignore[dict-item]
    elif not isinstance(features, Mapping):
        raise ValueError(f"features must be a dict of names and functions; got {brief(features)}")
    moved = shifted(split, alpha, beta)
    outputs = [logits(model, images) for images in (split, moved)]
    right = (outputs[0].argmax(1) == split.y) & (outputs[1].argmax(1) == split.y)
    if right.sum() < 2:
        raise ValueError(
            f"the model has {int(right.sum())} of {len(split)} images right both before and after "
            "the transform, and 2 are needed: take more images, or a trained model"
        )
    before, after = split[right], moved[right]
    both = torch.cat([before.x, after.x])  # together: the training images are embedded once
    scores = {
        f"distance, {name}": distance_to_training_set(function, train, both, k)
        for name, function in features.items()
    }
    sure = torch.cat([output[right] for output in outputs]).cpu().double().softmax(1).amax(1)
    pixels = both.flatten(1).round(decimals=6)  # the transform's own rounding is no evidence
    scores |= {
        "1 - max probability": 1 - sure,
        "darkest pixel": pixels.amin(1),
        "missing contrast": 1 - (pixels.amax(1) - pixels.amin(1)),
    }
    n = len(before)
    original = {name: score[:n].cpu() for name, score in scores.items()}
    transformed = {name: score[n:].cpu() for name, score in scores.items()}
    found = Detection(alpha, beta, right, original, transformed)
    if attack is None:
        return found
    rates = [attack(model, images).success_rate("images") for images in (before, after)]
    return replace(found, success_before=rates[0], success=rates[1])


def auc(original: Tensor, transformed: Tensor) -> Estimate:
    """The area under the ROC curve: how often a transformed image scores higher than an untouched
    one, over all pairs, ties counted half. 0.5 is chance; below, transformed images look *less*
    suspicious than untouched ones.

    Scores [n] each, of the same n images in the same order. They are not independent: the variance
    is that of clusters of two (Obuchowski, Biometrics 1997), and the interval Wilson's for the
    sample size that it implies, so that it stays in [0, 1].
    """
    for scores in (original, transformed):
        if not isinstance(scores, Tensor) or scores.ndim != 1 or scores.isnan().any():
            raise ValueError(f"scores must be a tensor [n] without NaN; got {brief(scores)}")
    if len(original) != len(transformed) or len(original) < 2:
        raise ValueError(
            "both must be scores of the same 2 images or more; got "
            f"{len(original)} and {len(transformed)}"
        )
    a, b = original.cpu().double(), transformed.cpu().double()
    n, above = len(a), _share_below(a, b)
    value = above.mean().item()
    variance = (above - _share_below(b, a)).var().item() / n  # of an image's two parts together
    if variance > 0:
        effective = value * (1 - value) / variance
    else:  # parted fully by these n images, or the transform changes no rank at all
        effective = n if value in (0, 1) else math.inf
    return Estimate(value, *wilson(value, effective), n)


def _share_below(a: Tensor, b: Tensor) -> Tensor:
    """Share of a [n] below each of b [m], equal ones counted half, [m]."""
    a = a.sort().values
    below = torch.searchsorted(a, b) + torch.searchsorted(a, b, right=True)
    return below.double() / (2 * len(a))
