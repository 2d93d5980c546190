"""Certificates: lower bounds on the margin that hold for every image within eps of x.

Networks of convolutions, linear layers and ReLU are relaxed in two ways. Intervals (IBP; Gowal et
al. 2018): every neuron lies between two numbers, which are passed on layer by layer. Lines (CROWN;
Zhang et al. 2018): every ReLU lies between two lines, so that a margin is at least a linear
function of the pixels, which is found from the logits backwards and is smallest in a corner of the
box. With parallel lines that is the feasible dual solution of Wong and Kolter (2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from .affine import affine_stages, forward
from .checks import brief, number, whole
from .models import device_of, full_precision, logits
from .relaxations import Box, Inner, Method, margin_bounds, rounding
from .splits import Split

FLOOR = 2.0**-44  # 512 float64 roundings: the least that a rounding counts for


def margins(
    model: nn.Module,
    split: Split,
    eps: float = 0.1,
    *,
    method: Method = "crown",
    inner: Inner = "backward",
    batch_size: int = 50,
    progress: bool = False,
) -> Tensor:
    """Lower bounds, float64 [N], on the smallest margin (true logit minus the best other one) over
    all images within `eps` of x in L-infinity with pixels in [0, 1].

    method="ibp": intervals. "dual": Wong and Kolter's bound (theorem 1), for the box in place of
    the ball. "crown": the line below a ReLU is 0 or the identity, whichever is nearer, and no
    bound is looser than its interval. With inner="backward" the bounds of hidden neurons come
    from the same backward pass (a row a neuron: slow), with "ibp" from intervals (fast).

    The bounds are of the network in real arithmetic, computed in float64 from its weights; what
    rounding adds is for `certified` to count. Raises ValueError for layers other than those above,
    batch normalisation (its running statistics are used, whatever the mode) and flattening.
    """
    return _certificates(model, split, eps, method, inner, batch_size, progress)[0]


def certified(
    model: nn.Module,
    split: Split,
    eps: float = 0.1,
    *,
    method: Method = "crown",
    inner: Inner = "backward",
    batch_size: int = 50,
    progress: bool = False,
) -> Tensor:
    """Whether each image is right and no change within `eps` can alter that, bool [N]: changes in
    L-infinity that leave pixels in [0, 1], bounds as in `margins`.

    Said of the model as it computes in its own precision, not only of the function it stands for:
    a margin counts if its bound exceeds what rounding can take, with sums in any order and without
    underflow (Higham 2002, eq. 3.5). Convolutions by Winograd's or Fourier's transforms are not
    such sums.
    """
    bound, slack, right = _certificates(model, split, eps, method, inner, batch_size, progress)
    return (right & (bound > slack)).to(split.y.device)


def _certificates(
    model: nn.Module,
    split: Split,
    eps: float,
    method: Method,
    inner: Inner,
    batch_size: int,
    bar: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(lower bounds on margins, what rounding can take of them, whether x is right), each [N]."""
    check(eps, method, inner)
    whole("batch_size", batch_size, 1)
    output = logits(model, split)
    if any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
        raise ValueError("the model has hooks, which may change what it computes: remove them")
    device = device_of(model)
    device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
    stages = affine_stages(model, split.shape, device, torch.float64)
    unit = max([torch.finfo(p.dtype).eps / 2 for p in model.parameters()] + [FLOOR])
    bounds, slacks = [], []
    with torch.no_grad(), full_precision(device):
        for start in tqdm(range(0, len(split), batch_size), "certifying", disable=not bar):
            part = split[start : start + batch_size].to(device)
            x = part.x.to(torch.float64)
            box = Box.around(x, eps)
            bounds.append(margin_bounds(stages, box, part.y, method, inner).scatter(
                1, part.y[:, None], math.inf).amin(1))  # fmt: skip
            slack = rounding(stages, box, unit)
            off = (forward(stages, x) - output[start : start + batch_size].to(x)).abs().amax(1)
            if (off > slack).any():
                raise ValueError(
                    f"the model's logits are up to {off.max():.2g} away from what its layers "
                    "compute: is a forward() not their own?"
                )
            slacks.append(2 * slack)
    home = device if split.y.device.type == "mps" else split.y.device
    bound, slack = (torch.cat(parts).to(home) for parts in (bounds, slacks))
    return bound, slack, (output.argmax(1) == split.y).to(home)


def check(eps: float, method: str, inner: str) -> None:
    """ValueError unless these can be the arguments of a bound."""
    number("eps", eps, "a number in [0, 1]", lambda v: 0 <= v <= 1)
    for name, value, known in (
        ("method", method, ("ibp", "crown", "dual")),
        ("inner", inner, ("backward", "ibp")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}; got {brief(value)}")


@dataclass(frozen=True)
class RobustLoss:
    """(1 - w) * cross-entropy of the logits + w * cross-entropy of the worst logits, which are 0
    for the true class and minus the margin's lower bound for another (Wong and Kolter 2018,
    theorem 2; with intervals and a mixture, Gowal et al. 2018).

    `eps` and w are (at the start, after the recipe's warm-up), linear in between.
    """

    eps: tuple[float, float]
    weight: tuple[float, float]
    method: Method = "ibp"
    inner: Inner = "ibp"

    def __post_init__(self) -> None:
        for eps in self.eps:
            check(eps, self.method, self.inner)
        for weight in self.weight:
            number("weight", weight, "a number in [0, 1]", lambda v: 0 <= v <= 1)

    def __call__(
        self, model: nn.Module, x: Tensor, output: Tensor, y: Tensor, growth: float
    ) -> Tensor:
        """The loss of images x with logits `output` and labels y, `growth` in [0, 1] of the way
        through the warm-up."""
        eps, weight = (a + (b - a) * growth for a, b in (self.eps, self.weight))
        stages = affine_stages(model, tuple(x.shape[1:]))
        worst = -margin_bounds(stages, Box.around(x, eps), y, self.method, self.inner)
        return (1 - weight) * cross_entropy(output, y) + weight * cross_entropy(worst, y)
