"""What would make an attack's numbers meaningless: told before a search, or refused."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from .models import NO_STACK, checked, device_of, lent, probe
from .perturbations import PerturbationSet
from .search import AttackWarning
from .splits import Split
from .stacks import Stack


def check(model: nn.Module, split: Split) -> None:
    """Warn about what would make an attack's numbers meaningless; raise where they cannot be."""
    checked(model, split)
    if isinstance(model, Stack):
        raise ValueError(NO_STACK)
    if torch.is_inference_mode_enabled():
        raise ValueError("an attack needs gradients: call it outside of torch.inference_mode()")
    if model.training:
        warn("the model is in train mode; it is attacked in eval mode and given back as it was")
    output, x = probe(model, split), split[:8].x.to(device_of(model))
    if (output >= 0).all() and torch.allclose(output.sum(1), torch.ones_like(output[:, 0])):
        warn(
            "the model's outputs are probabilities already: a loss on top of them has vanishing "
            "gradients, so take the softmax out"
        )
    with lent(model), torch.no_grad():
        twice = model(x), model(x)
    if not torch.equal(*twice):
        warn(
            "the model is stochastic: two looks at the same images differ, so a flip may be luck; "
            "attack the mean of its outputs"
        )
        return
    with lent(model), torch.no_grad():
        alone, among = model(x[:1])[0], twice[0][0]
    if (alone - among).abs().max() > 0.01 * (1 + among.abs().max()):  # more than rounding
        warn(
            "an image's output depends on the others of its batch, so success depends on "
            "batch_size: use running statistics, or whatever looks at one image alone"
        )


def check_set(set: PerturbationSet, model: nn.Module, split: Split) -> None:
    """ValueError where a set or a model cannot be searched; a warning where images are left."""
    few = split[:8].to(device_of(model))
    code = set.region(few).origin.clone().requires_grad_()
    with lent(model), torch.enable_grad():
        x = set.decode(code, few)
        if not isinstance(x, Tensor) or x.shape != few.x.shape:
            what = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"the set must make images {list(few.x.shape)}; its decode gave {what}"
            )
        output = model(x.to(few.dtype))
    if not x.isfinite().all():
        raise ValueError("the set's images hold NaN or infinity: check its decode")
    if not x.requires_grad or not output.requires_grad:
        cut = "the set's images are cut off from the code" if not x.requires_grad else (
            "the model's output is cut off from the image")  # fmt: skip
        raise ValueError(f"{cut}: remove detach() or no_grad()")
    if x.min() < -1e-3 or x.max() > 1 + 1e-3:
        warn("the set's images leave [0, 1]: whatever is found there is no image")


def warn(text: str) -> None:
    warnings.warn(text, AttackWarning, stacklevel=4)
