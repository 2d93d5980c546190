"""The smallest harmless change that takes a model's robustness away, and how models stand under
changes side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from ..attacks import Attack
from ..checks import brief, number
from ..models import accuracy, checked
from ..splits import Split
from ..stats import Rate, rate
from .changes import FAMILIES, Change, Scaled
from .landscape import one_start
from .shift import radius

if TYPE_CHECKING:
    import pandas as pd

SCREEN = 50  # images that a change is tried on first
PRECISION = 0.01  # of the size found
ROUNDING = 1e-9
GRID = np.linspace(0, 1, 9)  # strengths at which a path's size is known


@dataclass(frozen=True)
class Blindspot:
    """What `find_blindspot` found: `transform`, a change of images; its `size`, the mean L2 norm
    of T(x) - x; the model's `accuracy` on T(x); and the attack's `success` on those that are right.

    Where nothing tried is a blind spot, `transform` is None, `size` infinite, and the two rates
    are those of the images as they were. `table` holds everything that was attacked, in order:
    `family`, `transform`, `parameters`, `size`, `accuracy`, `success`, and `images`, how many of
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

    Success is taken to grow along a path. So the size is bisected, to 1 %, for all paths at once:
    at each size they are asked, the likeliest first, until one of them is a blind spot; one that
    fails at a size where another does not is out of the race. A path fails as well where
    the 95 % interval of its success on the first 50 images says so. The same arguments give
    the same result.
    """
    from tqdm.auto import tqdm

    checked(model, split)
    number("accuracy_drop", accuracy_drop, "a number from 0 to 1", lambda v: 0 <= v <= 1)
    number("success", success, "a number above 0, at most 1", lambda v: 0 < v <= 1)
    ends = list(named(sum(FAMILIES.values(), ()) if changes is None else changes).values())
    trials = _Trials(model, split, checked_attack(attack, split))
    before = trials.whole(Scaled())
    if before["success"].value >= success:  # no change is needed
        return trials.result(before)
    least = before["accuracy"].value - accuracy_drop
    race = [path for end in ends if (path := _Path.until(end, model, split, least)).sizes[-1] > 0]
    low = 0.0
    size = high = max((path.sizes[-1] for path in race), default=0.0)
    found, bar = None, tqdm(desc="blind spots", unit=" attacks", disable=not progress)
    while race and high - low > PRECISION * high:
        asked = [(trials.screen(change := path.at(size, split)), path, change) for path in race]
        asked.sort(key=lambda trial: -trial[0]["success"].value)  # stable: the same each time
        failed, passed = [], None
        for screened, path, change in asked:
            if screened["success"].high < success:
                failed.append(path)
            elif not passed:
                row = trials.whole(change)
                if row["success"].value < success:
                    failed.append(path)
                elif row["accuracy"].value >= least - ROUNDING:
                    passed = row
            bar.update(len(trials.rows) - bar.n)
        if passed:
            found, high = passed, passed["size"]
            race = [path for path in race if path not in failed]
            bar.set_postfix_str(f"{found['transform']}: {high:.3g}")
        else:  # what failed at its end is out, what failed before may do so later
            low = size
            race = [path for path in race if path not in failed or path.sizes[-1] > size]
        size = (low + high) / 2
    bar.close()
    return trials.result(found or before, found is not None)


def defences(
    models: Mapping[str, nn.Module],
    split: Split,
    changes: Iterable[Change] | Mapping[str, Change],
    attack: Attack | None = None,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """How models stand under changes: a row a model and a change, columns `defence`, `transform`
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
    pairs = [(*a, *b) for a in models.items() for b in named(changes).items()]
    rows = []
    for name, model, told, change in tqdm(pairs, desc="defences", disable=not progress):
        row = _Trials(model, split, attack).whole(change)
        kept = {key: row[key] for key in ("size", "accuracy", "success")}
        rows.append({"defence": name, "transform": told, **kept})
    return pd.DataFrame(rows)


def named(changes: Any) -> dict[str, Change]:
    """Changes by name; ValueError unless there are some and they are changes."""
    try:
        found = dict(changes) if isinstance(changes, Mapping) else {str(c): c for c in changes}
    except TypeError:
        found = {}
    if not found or not all(isinstance(change, Change) for change in found.values()):
        raise ValueError(f"changes must be a list of changes, [Gamma(2)] say; got {brief(changes)}")
    return found


def checked_attack(attack: Attack | None, split: Split) -> Attack:
    """The attack, or the usual one if None; ValueError for anything else."""
    if attack is not None and not isinstance(attack, Attack):
        raise ValueError(f"an Attack is needed, Attack(Pixels(0.3)) say; got {brief(attack)}")
    return attack or one_start(radius(split))


def size_of(change: Change, x: Tensor) -> float:
    """Mean L2 norm of the change of images x [N, C, H, W]."""
    return (change(x) - x).flatten(1).double().norm(dim=1).mean().item()


@dataclass(frozen=True)
class _Path:
    """The changes from none to `end`, and their `sizes` at the strengths GRID."""

    end: Change
    sizes: Sequence[float]

    @staticmethod
    def until(end: Change, model: nn.Module, split: Split, least: float) -> _Path:
        """The path as far as the model's accuracy is at least `least`, to a sixteenth of it."""

        def kept(strength: float) -> bool:
            images = split.with_x(end.part(strength)(split.x))
            return accuracy(model, images).value >= least - ROUNDING

        low, high = (1.0, 1.0) if kept(1.0) else (0.0, 1.0)
        while high - low > 1 / 16:
            middle = (low + high) / 2
            low, high = (middle, high) if kept(middle) else (low, middle)
        end = end.part(low)
        sizes = [size_of(end.part(strength), split.x) for strength in GRID.tolist()]
        return _Path(end, np.maximum.accumulate(sizes).tolist())

    def at(self, size: float, split: Split) -> Change:
        """The change of about that size and no more; the end where the path is shorter."""
        if size >= self.sizes[-1]:
            return self.end
        strength = float(np.interp(size, self.sizes, GRID))
        while (really := size_of(self.end.part(strength), split.x)) > size:
            strength *= size / really * (1 - 1e-6)
        return self.end.part(strength)


class _Trials:
    """Changes, each attacked once, and what came of it."""

    def __init__(self, model: nn.Module, split: Split, attack: Attack) -> None:
        self.model, self.split, self.attack = model, split, attack
        self.rows: dict[tuple[Change, int], dict[str, Any]] = {}

    def screen(self, change: Change) -> dict[str, Any]:
        return self._try(change, min(SCREEN, len(self.split)))

    def whole(self, change: Change) -> dict[str, Any]:
        return self._try(change, len(self.split))

    def _try(self, change: Change, images: int) -> dict[str, Any]:
        if (change, images) not in self.rows:
            split = self.split[:images]
            result = self.attack(self.model, split.with_x(change(split.x)))
            family = (name for name, ends in FAMILIES.items() if type(change) is type(ends[0]))
            self.rows[change, images] = {
                "family": next(family, type(change).__name__.lower()),
                "transform": change,
                "parameters": change.parameters,
                "size": size_of(change, self.split.x),
                "accuracy": rate(result.correct),
                "success": result.success_rate("images"),
                "images": images,
            }
        return self.rows[change, images]

    def result(self, row: dict[str, Any], found: bool = True) -> Blindspot:
        import pandas as pd

        transform, size = (row["transform"], row["size"]) if found else (None, np.inf)
        table = pd.DataFrame(list(self.rows.values()))
        return Blindspot(transform, row["success"], row["accuracy"], size, table)
