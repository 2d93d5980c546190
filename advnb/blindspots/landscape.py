"""The landscape between the points that Z's tables print: accuracy and success over a whole grid of
scales and shifts."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..attacks import Attack
from ..checks import brief, number
from ..data import cache_folder
from ..files import DamagedFileError, digest, load_tensors, save_tensors
from ..models import checked, logits
from ..perturbations import Pixels
from ..splits import Split
from ..stats import rate
from .shift import radius, shifted

if TYPE_CHECKING:
    import pandas as pd

ALPHAS = tuple(round(0.5 + 0.025 * i, 6) for i in range(21))
SHIFTS = tuple(round(0.1 * i - 1, 6) for i in range(21))
VERSION = 1  # of what is kept: to change where the same attack comes to find something else


def one_start(eps: float, steps: int = 40) -> Attack:
    """PGD from one uniform start, in steps that can cross the ball, as Madry et al. advise."""
    lr = max(0.01, 2.5 * eps / max(steps, 1))
    return Attack(Pixels(eps), steps=steps, lr=lr, optimizer="sign", start="uniform")


def beta_of(alpha: float, shift: float) -> float:
    """The beta of a relative shift: 1 is the largest valid one, (1 - alpha) / 2."""
    return round(shift * (1 - alpha) / 2, 6) + 0.0


def shift_of(alpha: float, beta: float) -> float:
    """The relative shift of a beta, in [-1, 1]; 0 at alpha = 1, where nothing can be shifted."""
    most = (1 - alpha) / 2
    return min(max(beta / most, -1.0), 1.0) if most > 1e-9 else 0.0


class Landscape:
    """Accuracy of a model and success of an attack, as far as they are known, over `alphas` and
    relative shifts, beta / ((1 - alpha) / 2): of these every pair is valid. Both ascend.

    `right` and `fooled` are bool [alphas, shifts, images]: whether x' is classified correctly,
    and whether any restart of `attack`, by default PGD within the paper's radius for the data
    set, fools it. `known` is bool [alphas, shifts]. What an earlier landscape of the same weights,
    images and attack has found in the folder `cache` (default: the user's own) is known at once;
    of a loss or a step size that is a function nothing is kept.
    """

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        attack: Attack | None = None,
        *,
        alphas: Iterable[float] = ALPHAS,
        shifts: Iterable[float] = SHIFTS,
        cache: str | os.PathLike | None = None,
    ) -> None:
        checked(model, split)
        attack = one_start(radius(split)) if attack is None else attack
        if not isinstance(attack, Attack) or not isinstance(attack.set, Pixels):
            raise ValueError(
                f"an Attack on pixels is needed, Attack(Pixels(0.3)) say; got {brief(attack)}"
            )
        self.alphas, self.shifts = grid(alphas, shifts).values()
        self._model, self._split, self._attack = model, split, attack
        self.eps = attack.set.eps
        size = len(self.alphas), len(self.shifts), len(split)
        self.right = torch.zeros(size, dtype=torch.bool)
        self.fooled = self.right.clone()
        self.known = torch.zeros(size[:2], dtype=torch.bool)
        self._going: Iterator[None] | None = None
        self._began = self._weights()
        self._paths: list[Path | None] = [None] * size[0]
        if not callable(attack.loss) and not callable(attack.lr):
            folder = Path(cache) if cache is not None else cache_folder() / "landscape"
            about = self._about()
            for i, alpha in enumerate(self.alphas):
                decides = json.dumps([*about, alpha, self.shifts]).encode()
                self._paths[i] = folder / f"{hashlib.sha256(decides).hexdigest()[:24]}.safetensors"
        for i, path in enumerate(self._paths):
            self.known[i] = path is not None and self._read(i, path)

    def search(self) -> Iterator[None]:
        """Attack what is not known, one alpha after another from the largest down, and keep what
        is found; yields after every step. Begun again, it goes on where it was given up."""
        if self._going is None:
            self._going = self._search()
        try:
            for _ in self._going:  # not `yield from`, which would end it with this one
                yield
        except GeneratorExit:  # given up
            raise
        except BaseException:  # a search that has failed, or was interrupted, begins anew
            self._going = None
            raise

    def _search(self) -> Iterator[None]:
        for i in reversed(range(len(self.alphas))):
            if self.known[i].all():
                continue
            alpha = self.alphas[i]
            for j, shift in enumerate(self.shifts):
                if alpha < 1 or j == 0:  # at 1 all shifts are one
                    images = shifted(self._split, alpha, beta_of(alpha, shift))
                    right = logits(self._model, images).argmax(1) == images.y
                    ends: dict[int, Tensor] = {}
                    for state in self._attack.iterate(self._model, images):
                        ends[state.restart] = state.success
                        yield
                    fooled = torch.stack([*ends.values()]).any(0)
                self.right[i, j], self.fooled[i, j] = right.cpu(), fooled.cpu()
                self.known[i, j] = True
            self._keep(i)

    @property
    def accuracy(self) -> Tensor:
        """Share of the images that are classified correctly, float64 [alphas, shifts]; NaN where
        it is not known."""
        return self.right.double().mean(2).where(self.known, torch.nan)

    @property
    def success(self) -> Tensor:
        """Share of the correctly classified images that are fooled, float64 [alphas, shifts]."""
        hits = (self.fooled & self.right).sum(2).double() / self.right.sum(2)
        return hits.where(self.known, torch.nan)

    def table(self) -> pd.DataFrame:
        """What is known, a row a pair: `alpha`, `shift`, `beta`, and `accuracy` and `success` as
        `Rate`s; at alpha = 1 all shifts are one."""
        import pandas as pd

        rows = [
            {
                "alpha": alpha,
                "shift": shift,
                "beta": beta_of(alpha, shift),
                "accuracy": rate(self.right[i, j]),
                "success": rate(self.fooled[i, j][self.right[i, j]]),
            }
            for i, alpha in enumerate(self.alphas)
            for j, shift in enumerate(self.shifts)
            if self.known[i, j]
        ]
        return pd.DataFrame(rows, columns=["alpha", "shift", "beta", "accuracy", "success"])

    def _about(self) -> list[object]:
        """What decides the outcomes beside the grid. The weights do not tell what a model does
        with them: its layers and its predictions tell the rest."""
        model = self._model
        guess = logits(model, self._split).argmax(1)
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        content = digest(self._split.content() | {"guess": guess})
        attack = repr(replace(self._attack, batch_size=None))
        return [VERSION, kind, repr(model), self._began, content, attack]

    def _weights(self) -> str:
        return digest(dict(self._model.named_parameters()) | dict(self._model.named_buffers()))

    def _read(self, i: int, path: Path) -> bool:
        """Whether outcomes of this alpha are kept; now they are known."""
        try:
            kept = load_tensors(path)[0]
            for name, into in (("right", self.right[i]), ("fooled", self.fooled[i])):
                if kept[name].shape != into.shape or kept[name].dtype != torch.bool:
                    raise DamagedFileError(str(path))
                into.copy_(kept[name])
        except FileNotFoundError:
            return False
        except (DamagedFileError, KeyError):
            told = f"{path} is damaged: alpha = {self.alphas[i]:g} is attacked again"
            warnings.warn(told, stacklevel=4)
            return False
        return True

    def _keep(self, i: int) -> None:
        path = self._paths[i]
        if path is None:
            return
        if self._weights() != self._began:
            warnings.warn(
                "the model's weights have changed since this landscape was made: its outcomes are "
                "not kept, make another",
                stacklevel=4,
            )
            return
        try:
            save_tensors(
                path, {"right": self.right[i], "fooled": self.fooled[i]}, alpha=self.alphas[i]
            )
        except OSError as error:  # it is known all the same
            warnings.warn(f"outcomes are not kept: {error}", stacklevel=4)


def landscape(
    model: nn.Module,
    split: Split,
    attack: Attack | None = None,
    alphas: Iterable[float] = ALPHAS,
    shifts: Iterable[float] = SHIFTS,
    *,
    cache: str | os.PathLike | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Accuracy and success over a grid of scales and relative shifts, as `Landscape.table` gives
    them. What is killed goes on where it was, and what was once found is there at once."""
    from tqdm.auto import tqdm

    found = Landscape(model, split, attack, alphas=alphas, shifts=shifts, cache=cache)
    total = len(found.alphas) * len(found.shifts)
    with tqdm(total=total, desc="pairs", disable=not progress) as bar:
        for _ in found.search():
            bar.update(int(found.known.sum()) - bar.n)
        bar.update(total - bar.n)
    return found.table()


def grid(alphas: Iterable[float], shifts: Iterable[float]) -> dict[str, tuple[float, ...]]:
    """Both in ascending order, by name; ValueError unless all pairs of them are valid."""
    return {
        "alphas": _ascending("alphas", alphas, "in (0, 1]", lambda v: 0 < v <= 1),
        "shifts": _ascending("shifts", shifts, "in [-1, 1]", lambda v: -1 <= v <= 1),
    }


def _ascending(
    name: str, values: Iterable[float], what: str, holds: Callable[[float], bool]
) -> tuple[float, ...]:
    try:
        given = list(values)
    except TypeError:
        given = []
    if not given:
        raise ValueError(
            f"{name} must be a list of one or more numbers {what}; got {brief(values)}"
        )
    each = f"numbers {what}"
    return tuple(sorted({round(number(name, v, each, holds), 6) + 0.0 for v in given}))
