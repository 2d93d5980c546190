"""The smallest harmless change that takes a model's robustness away, and how models stand under
changes side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from ..attacks import Attack
from ..checks import brief, number, widest
from ..models import accuracy, checked
from ..splits import Split
from ..stats import Rate, rate
from .changes import FAMILIES, Change, Scaled
from .landscape import one_start
from .shift import radius
from .tables import on_images

if TYPE_CHECKING:
    import pandas as pd

SCREEN = 50  # images that a change is tried on first
PRECISION = 0.02  # of the size found
ROUNDING = 1e-9
GRID = np.linspace(0, 1, 9)  # strengths at which a path's size is known


@dataclass(frozen=True)
class Blindspot:
    """What `find_blindspot` found: `transform`, a change of images; its `size`, the mean L2 norm
    of T(x) - x; the model's `accuracy` on T(x); and the attack's `success` on those that are right.

    Where nothing tried is a blind spot, `transform` is None, `size` infinite, and the two rates
    are those of the images as they were. `table` holds everything that was attacked, in order:
    `family`, `change`, `parameters`, `size`, `accuracy`, `success`, and `images`, how many of
    the split's first it was tried on.
    """

    transform: Change | None
    success: Rate
    accuracy: Rate
    size: float
    table: pd.DataFrame = field(repr=False, compare=False)

    def __bool__(self) -> bool:
        return self.transform is not None

    def __str__(self) -> str:
        what = f"{self.transform}, a change of {self.size:.3g} (L2)" if self else "no blind spot"
        return f"{what}: accuracy {self.accuracy}, success {self.success}"


def find_blindspot(
    model: nn.Module,
    split: Split,
    accuracy_drop: float = 0.01,
    *,
    attack: Attack | None = None,
    success: float = 0.5,
    changes: Iterable[Change] | None = None,
    progress: bool = True,
) -> Blindspot:
    """The smallest change of all images under which `attack` fools `success` or more of those that
    are still right, while accuracy on the same images falls by no more than `accuracy_drop`.

    A change's size is the mean L2 norm of T(x) - x over the split. `changes` are the furthest of
    as many paths from no change (`Change.part`), by default all of `FAMILIES`; a path ends early
    where accuracy is lost. `attack` starts from T(x); by default PGD, 40 steps from one uniform
    start, within the paper's radius for the data set.

    Success is taken to grow along a path, so that the smallest size on it is bisected, to 2 %.
    The other paths are then asked, the likeliest first, whether they do with less: they do not
    where the 95 % interval of success on the first 50 images says so, and else all images decide.
    The same arguments give the same result.
    """
    from tqdm.auto import tqdm

    checked(model, split)
    number("accuracy_drop", accuracy_drop, "a number from 0 to 1", lambda v: 0 <= v <= 1)
    number("success", success, "a number above 0, at most 1", lambda v: 0 < v <= 1)
    wanted = named(sum(FAMILIES.values(), ()) if changes is None else changes)
    ends = [from_none(end, split.x[:1]) for _, end in wanted]
    with tqdm(desc="blind spots", unit=" attacks", disable=not progress) as bar:
        trials = _Trials(model, split, checked_attack(attack, split), success, bar)
        found = before = trials.whole(Scaled())
        if not before["success"].n:
            raise ValueError("the model gets none of these images right: look at labels and model")
        if before["success"].value >= success:  # no change is needed
            return trials.result(before)
        trials.least = before["accuracy"].value - accuracy_drop - ROUNDING
        waiting, limit = [trials.path(end) for end in ends], math.inf
        while waiting:
            better = trials.smallest(waiting.pop(0), limit)
            if not better:
                continue
            first, limit = math.isinf(limit), better["size"] * (1 - PRECISION)
            found = better
            bar.set_postfix_str(f"{found['change']}: {found['size']:.3g}")
            if first:
                asked = [(path, trials.screen(path.at(limit))) for path in waiting]
                asked.sort(key=lambda one: -one[1].high)  # never NaN
                waiting = [path for path, seen in asked if seen.high >= success]
    return trials.result(found, found is not before)


def defences(
    models: Mapping[str, nn.Module],
    split: Split,
    changes: Iterable[Change] | Mapping[str, Change],
    attack: Attack | None = None,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """How models stand under changes: a row a model and a change, columns `defence`, `change`
    (the change's name, or its text where it has none), `size` (mean L2 norm of T(x) - x),
    `accuracy` and `success`, Rates, the latter over the images that are right under the change.

    `attack` is the same for all, by default PGD within the paper's radius for the data set.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    if not isinstance(models, Mapping) or not models:
        raise ValueError(f"models must be a mapping of names to models; got {brief(models)}")
    for model in models.values():
        checked(model, split)
    attack = checked_attack(attack, split)
    sized = [(told, change, size_of(change, split.x)) for told, change in named(changes)]
    pairs = [(*a, *b) for a in models.items() for b in sized]
    rows = []
    for name, model, told, change, size in tqdm(pairs, desc="defences", disable=not progress):
        row = {"defence": name, "change": told, "size": size}
        rows.append(row | attacked(model, split, change, attack))
    return pd.DataFrame(rows)


def named(changes: Any) -> list[tuple[str, Change]]:
    """Changes with their names; ValueError unless there are some and they are changes."""
    listed = changes if isinstance(changes, Iterable) else ()
    found = list(listed.items() if isinstance(listed, Mapping) else ((str(c), c) for c in listed))
    if not found or not all(isinstance(change, Change) for _, change in found):
        raise ValueError(f"changes must be a list of changes, [Gamma(2)] say; got {brief(changes)}")
    return found


def from_none(change: Change, x: Tensor) -> Change:
    """The change; ValueError unless it grows from no change of images x."""
    try:
        none = size_of(change.part(0), x)
    except TypeError:  # a field has no default
        none = math.inf
    if none > 1e-6:
        raise ValueError(f"the defaults of {type(change).__name__} must be no change at all")
    return change


def checked_attack(attack: Attack | None, split: Split) -> Attack:
    """The attack, or the usual one if None; ValueError for anything else."""
    if attack is None:
        return one_start(radius(split))
    if not isinstance(attack, Attack):
        raise ValueError(f"an Attack is needed, Attack(Pixels(0.3)) say; got {brief(attack)}")
    on_images(attack)
    return attack


def attacked(model: nn.Module, split: Split, change: Change, attack: Attack) -> dict[str, Rate]:
    """Accuracy on changed images, and success on those that are right."""
    result = attack(model, split.with_x(change(split.x)))
    return {"accuracy": rate(result.correct), "success": result.success_rate("images")}


def size_of(change: Change, x: Tensor) -> float:
    """Mean L2 norm of the change of images x [N, C, H, W]."""
    return (change(x) - x).flatten(1).to(widest(x.device)).norm(dim=1).mean().item()


class _Path:
    """The changes from none to `end` of images x."""

    def __init__(self, end: Change, x: Tensor) -> None:
        self.end, self.x = end, x
        sizes = [size_of(end.part(strength), x) for strength in GRID.tolist()]
        self.sizes = np.maximum.accumulate(sizes)

    def at(self, size: float) -> Change:
        """The change of about that size and no more; the end where the path is shorter."""
        if size >= self.sizes[-1]:
            return self.end
        strength = float(np.interp(size, self.sizes, GRID))
        while (really := size_of(self.end.part(strength), self.x)) > size:
            strength *= size / really * (1 - 1e-6)
        return self.end.part(strength)


class _Trials:
    """Changes, each attacked once, and what came of it."""

    def __init__(
        self, model: nn.Module, split: Split, attack: Attack, success: float, bar: Any
    ) -> None:
        self.model, self.split, self.attack, self.bar = model, split, attack, bar
        self.success, self.least = success, 0.0
        self.rows: dict[tuple[Change, int], dict[str, Any]] = {}

    def screen(self, change: Change) -> Rate:
        """Success on the split's first images."""
        return self._tried(change, min(SCREEN, len(self.split)))["success"]

    def whole(self, change: Change) -> dict[str, Any]:
        return self._tried(change, len(self.split))

    def path(self, end: Change) -> _Path:
        """The way to `end`, or a sixteenth of it beyond where accuracy is lost."""

        def kept(strength: float) -> bool:
            images = self.split.with_x(end.part(strength)(self.split.x))
            return accuracy(self.model, images).value >= self.least

        low, high = (1.0, 1.0) if kept(1.0) else (0.0, 1.0)
        while high - low > 1 / 16:
            middle = (low + high) / 2
            low, high = (middle, high) if kept(middle) else (low, middle)
        return _Path(end.part(high), self.split.x)

    def smallest(self, path: _Path, limit: float) -> dict[str, Any] | None:
        """The smallest blind spot on a path, of at most a size of `limit`; None where none is."""
        low, high, found = 0.0, min(limit, path.sizes[-1]), None
        size, step = high, 0.5 if math.isinf(limit) else PRECISION  # little less is to be expected
        while low < (1 - PRECISION) * high:
            change, row = path.at(size), None
            if self.screen(change).high >= self.success:
                row = self.whole(change)
            if row and row["success"].value >= self.success:
                high = row["size"]
                found = row if row["accuracy"].value >= self.least else found
            else:
                low = size
            size = (low + high) / 2 if low else (1 - step) * high
            step = min(2 * step, 0.5)
        return found

    def _tried(self, change: Change, images: int) -> dict[str, Any]:
        if (change, images) not in self.rows:
            family = (name for name, ends in FAMILIES.items() if type(change) is type(ends[0]))
            self.rows[change, images] = {
                "family": next(family, type(change).__name__.lower()),
                "change": change,
                "parameters": change.parameters,
                "size": size_of(change, self.split.x),
                **attacked(self.model, self.split[:images], change, self.attack),
                "images": images,
            }
            self.bar.update()
        return self.rows[change, images]

    def result(self, row: dict[str, Any], found: bool = True) -> Blindspot:
        import pandas as pd

        transform, size = (row["change"], row["size"]) if found else (None, math.inf)
        table = pd.DataFrame(list(self.rows.values()))
        return Blindspot(transform, row["success"], row["accuracy"], size, table)
