"""The embedding panel: training and test points in the plane, and what lies behind each of them."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ipywidgets as widgets
from torch import Tensor, nn

from ..attacks import Attack
from ..blindspots import radius
from ..checks import brief, whole
from ..embedding import METHODS, Features, Method, pixels
from ..models import checked, logits
from ..profiles import profile
from ..splits import Split
from ..zoo import pgd
from .controls import WRAP, button, chooser
from .panel import Panel
from .pieces import PIECE, Attacked, Space, grow
from .plane import AGE, TITLES, EmbeddingFrame, Plane
from .pointer import PointedImage
from .runner import Frame, Params

OFFERED = (1, 5, 10, 100)  # k
HINT = (
    "Pointing shows the nearest test point; a click holds it, another lets go; arrow keys step "
    "through the test points."
)


class EmbeddingPanel(Panel):
    """Training and test points together in the plane, coloured by class, by distance to the
    training set or by an attack's outcome (Z section 3.1, figures 1 to 3); of the test point under
    the pointer the image, its k nearest training images and its adversarial example.

    `features` are functions of images by name, by default the model's own and the pixels. The
    panel takes the first `points` of `train` and of `test`, by default the profile's. Of `attack`
    one start is run, by default of PGD at the paper's radius for the data set. `params`: features,
    k, colour ("class", "distance", "outcome"), projection ("umap", "tsne", "pca"), image (a
    position in `test`), hold. What was once computed is kept.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Split,
        test: Split,
        features: Mapping[str, Features] | None = None,
        *,
        attack: Attack | None = None,
        points: int | None = None,
        k: int = 5,
        colour: str = "class",
        projection: Method = "umap",
        image: int = 0,
    ) -> None:
        checked(model, train)
        checked(model, test)
        if train.shape != test.shape:
            raise ValueError(
                f"train and test must be images of one size; got {train.shape} and {test.shape}"
            )
        if features is None:
            own: Any = {"model": model.features} if hasattr(model, "features") else {}
            features = {**own, "pixels": pixels}
        named = isinstance(features, Mapping) and len(features) > 0
        if not named or not all(callable(function) for function in features.values()):
            raise ValueError(
                f'features must name functions, {{"model": model.features}} say; got '
                f"{brief(features)}"
            )
        eps = radius(test)  # steps as in `zoo.pgd`: 0.01, and 2/255 for 8/255
        attack = pgd(eps, min(0.01, eps / 4)) if attack is None else attack
        if not isinstance(attack, Attack):
            raise ValueError(
                f"attack must be an Attack, Attack(Pixels(0.3)) say; got {brief(attack)}"
            )
        many = profile().plane if points is None else whole("points", points, 1)
        self._train, self._test = train[:many], test[:many]
        most = len(self._train)
        if whole("k", k, 1) > most:
            raise ValueError(f"k must be at most the {most} training images there are; got {k}")
        offered = sorted({k, *(n for n in OFFERED if n <= most)})
        # the thread's own copies: somebody may train a model while the panel looks at it
        self._model, functions = copy.deepcopy((model, dict(features)))
        self._model.eval()
        self._spaces = {name: Space(f, max(offered)) for name, f in functions.items()}
        self._guess: list[Tensor] = []
        self._attacked = Attacked(replace(attack, restarts=1), self._model, self._test)
        self._plane = Plane(self._train, self._test, self._guess, self._attacked)
        self.controls = {
            "features": _pick("features", next(iter(functions)), [(n, n) for n in functions]),
            "k": _pick("k", k, [(f"{n:,}", n) for n in offered]),
            "colour": _pick("colour", colour, [(n, n) for n in ("class", "distance", "outcome")]),
            "projection": _pick("projection", projection, [(TITLES[m], m) for m in METHODS]),
            "image": chooser(self._test, image),
            "hold": widgets.Checkbox(False, description="hold the point", indent=False),
        }
        c = [*self.controls.values()]
        tools = [
            button("Stop", self.stop, "give up what is being computed"),
            button("Reset", self.reset, "back to the first values"),
        ]
        view = PointedImage(label=HINT)
        super().__init__(
            [
                widgets.HBox(c[:4], layout=WRAP),
                widgets.HBox([*c[4:], *tools], layout=WRAP),
                widgets.HTML(HINT),
            ],
            view,
        )
        view.observe(self._pointed, "spot")
        view.observe(self._clicked, "click")
        view.observe(self._stepped, "arrows")

    def constrain(self) -> None:
        self.controls["image"].value = min(self.controls["image"].value, len(self._test) - 1)

    def _pointed(self, change: Any) -> None:
        at = self._under(change["new"])
        if at is not None and not self.controls["hold"].value:
            self.controls["image"].value = at

    def _clicked(self, change: Any) -> None:
        at, now = self._under(change["new"]), self.params
        if at is not None:
            self.submit(image=at, hold=not (now["hold"] and now["image"] == at))

    def _stepped(self, change: Any) -> None:
        to = self.params["image"] + sum(change["new"]) - sum(change["old"])
        self.controls["image"].value = min(max(to, 0), len(self._test) - 1)

    def _under(self, spot: Sequence[float]) -> int | None:
        """The test point at a place in the picture that is on the page."""
        frame = self.frame
        if not isinstance(frame, EmbeddingFrame) or frame.map is None:
            return None
        return frame.map.nearest(spot[0], spot[1])

    def frames(self, params: Params) -> Iterator[Frame | None]:
        space, method = self._spaces[params["features"]], params["projection"]
        own, attacked = params["image"] // PIECE, self._attacked
        yield from grow(
            self._guess, len(self._test), PIECE,
            lambda part: logits(self._model, self._test[part]).argmax(1).to(self._test.y.device),
        )  # fmt: skip
        yield from space.fill(self._train, self._test)
        if "pca" not in space.planes:
            space.project("pca")
        frame = partial(self._plane.frame, params, space)
        if method not in space.planes or not attacked.done(own):
            yield frame()
        if not attacked.done(own):
            yield from attacked.search(own)
            yield frame()
        if method not in space.planes:
            yield frame(f"{TITLES[method]} is being computed, which nothing can cut short. ")
            space.project(method)
            yield frame()
        drawn = time.monotonic()
        for piece in range(attacked.pieces):
            yield from attacked.search(piece)
            if params["colour"] == "outcome" and time.monotonic() - drawn > AGE:
                yield frame()
                drawn = time.monotonic()
        yield frame(complete=True)


def _pick(name: str, value: Any, options: Sequence[tuple[str, Any]]) -> widgets.Dropdown:
    """A labelled choice; ValueError for a value that is not offered."""
    values = [v for _, v in options]
    if value not in values:
        known = ", ".join(map(str, values))
        raise ValueError(f"{name} must be one of {known}; got {brief(value)}")
    return widgets.Dropdown(
        options=options, value=value, description=name, layout=widgets.Layout(width="17em")
    )
