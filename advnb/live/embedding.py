"""The embedding panel: training and test points in the plane, and what lies behind each of them."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib import colormaps
from torch import Tensor, nn

from ..attacks import Attack
from ..blindspots import radius
from ..checks import brief, whole
from ..embedding import METHODS, Features, Method, pixels
from ..models import checked, logits
from ..plots import COLOURS, PASTEL, amplified, caption
from ..profiles import profile
from ..splits import Split
from ..zoo import pgd
from .controls import WRAP, button, chooser
from .panel import Panel
from .pieces import PIECE, Attacked, Space, grow
from .pointer import PointedImage
from .runner import Frame, Params
from .scatter import NEAR, TEXT, Group, Map, ScatterFigure, Scene, Side

AGE = 2.0  # seconds until outcomes that have come in meanwhile are drawn: it takes a while
OFFERED = (1, 5, 10, 100)  # k
TITLES: dict[Method, str] = {"umap": "UMAP", "tsne": "t-SNE", "pca": "PCA"}
STRONG = colormaps["tab10"].colors  # type: ignore[attr-defined]  # the hues of PASTEL
OUTCOMES = {  # later ones lie on top
    "not attacked yet": ("#bbbbbb", "o"),
    "right, withstood": (COLOURS["accuracy"], "o"),
    "wrong before": ("#6b6b6b", "^"),
    "fooled": (COLOURS["success"], "X"),
}
HINT = (
    "Pointing shows the nearest test point; a click holds it, another lets go; arrow keys step "
    "through the test points."
)


@dataclass(frozen=True)
class EmbeddingFrame(Frame):
    """A frame with the places of its test points."""

    map: Map | None = None


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
        self._scene: _Seen | None = None
        self._artist = ScatterFigure()
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
        if method not in space.planes or not attacked.done(own):
            yield self._frame(params, space)
        if not attacked.done(own):
            yield from attacked.search(own)
            yield self._frame(params, space)
        if method not in space.planes:
            yield self._frame(
                params, space, f"{TITLES[method]} is being computed, which nothing can cut short. "
            )
            space.project(method)
            yield self._frame(params, space)
        drawn = time.monotonic()
        for piece in range(attacked.pieces):
            yield from attacked.search(piece)
            if params["colour"] == "outcome" and time.monotonic() - drawn > AGE:
                yield self._frame(params, space)
                drawn = time.monotonic()
        yield self._frame(params, space, complete=True)

    def _frame(
        self, params: Params, space: Space, words: str = "", complete: bool = False
    ) -> EmbeddingFrame:
        at, k, features = params["image"], params["k"], params["features"]
        near, one = space.near, self._test[params["image"]]
        index, away = near.index[at, :k], near.distance[at, :k]
        far = near.distance[:, :k].mean(1)
        scene = self._see(params, space, far, complete)
        shown = self._train[index[: NEAR[0] * NEAR[1]]]
        names = [name for name, _ in shown.named(shown.y)]
        ((true, _),) = one.named(one.y)
        guess = one.named(torch.cat(self._guess)[at : at + 1])[0]
        found, known = self._attacked, bool(self._attacked.known[at])
        bad = found.x[at] if known else one.x[0]
        after = one.named(found.guess[at : at + 1])[0] if known else ("being searched", True)
        moved = bad - one.x[0]
        most = moved.abs().max().item()
        part = f" of {k}" if k > len(shown) else ""
        side = Side(
            torch.stack([one.x[0], bad, amplified(moved, max(most, 1e-3))]).cpu(),
            shown.x.cpu(),
            [caption(*guess), caption(*after) if known else {"text": after[0], "color": TEXT},
             {"text": f"at most {most:.3f}" if known else "", "color": TEXT}],
            [_told(name, name == true, d) for name, d in zip(names, away.tolist())],
            f"test image {at}: {true}",
            f"{len(shown)} nearest training images{part} (✗ another class)",
        )  # fmt: skip
        png = self._artist.draw(scene, at, index, params["hold"], side)
        share = (far < far[at]).double().mean().item()
        mean = f"mean distance to the {k} nearest" if k > 1 else "distance to the nearest"
        told = f"{mean} {_short(far[at].item())}, farther than {share:.0%} of the test images"
        left = len(found.known) - int(found.known.sum())
        todo = f"{left:,} test images are still to be attacked. " if left and not complete else ""
        if known:
            outcome = f"its adversarial example is classified as {after[0]}"
        else:
            outcome = "its adversarial example is being searched"
        alt = (
            f"{scene.title.replace(chr(10), ', ')}, coloured by {params['colour']}. Test image "
            f"{at} of {true}, classified as {guess[0]}; {outcome}; {mean} training images in "
            f"{features} features {_short(far[at].item())}; the nearest are {', '.join(names)}."
        )
        status = f"{words or todo}Test image {at}{', held' * params['hold']}: {told}."
        return EmbeddingFrame(params, png, alt, status, complete, self._artist.map())

    def _see(self, params: Params, space: Space, far: Tensor, complete: bool) -> Scene:
        """The points as the parameters want them; the last scene where nothing in it differs, or
        nothing but outcomes since a moment."""
        method, colour, k = params["projection"], params["colour"], params["k"]
        shown: Method = method if method in space.planes else "pca"
        known = int(self._attacked.known.sum())
        key = params["features"], shown, method, colour, k if colour == "distance" else 0
        last = self._scene
        if last is not None and last.key == key:
            young = not complete and time.monotonic() - last.drawn < AGE
            if colour != "outcome" or last.known == known or young:
                return last.scene
        data = self._test.dataset.title if self._test.dataset else "images"
        follows = "" if shown == method else f" ({TITLES[method]} follows)"
        title = (
            f"{TITLES[shown]}{follows} of {params['features']} features\n{len(self._train):,} "
            f"training points (small, pale) and {len(self._test):,} test points of {data}"
        )
        train, test = space.planes[shown]
        if colour == "distance":
            scale = "mean distance to the nearest training images, k = " + f"{k:,}"
            scene = Scene(title, train, test, values=far, scale=scale)
        elif colour == "outcome":
            scene = Scene(title, train, test, groups=self._outcomes())
        else:
            labels = self._test.y.cpu()
            kinds = labels.unique()
            names = [n for n, _ in self._test[:1].named(kinds.to(self._test.y))]
            groups = [
                Group(name, labels == kind, STRONG[kind % len(STRONG)])
                for name, kind in zip(names, kinds.tolist())
            ]
            pale = [PASTEL[label % len(PASTEL)] for label in self._train.y.tolist()]
            scene = Scene(title, train, test, pale, groups)
        self._scene = _Seen(key, known, time.monotonic(), scene)
        return scene

    def _outcomes(self) -> list[Group]:
        right = (torch.cat(self._guess) == self._test.y).cpu()
        known, fooled = self._attacked.known, self._attacked.fooled
        rows = (right & ~known, right & known & ~fooled, ~right, right & fooled)
        return [
            Group(f"{name}: {int(mask.sum()):,}", mask, *OUTCOMES[name])
            for name, mask in zip(OUTCOMES, rows)
            if mask.any()
        ]


@dataclass(frozen=True)
class _Seen:
    """The scene that was made last, of what, of how many outcomes, and when."""

    key: tuple[Any, ...]
    known: int
    drawn: float
    scene: Scene


def _told(name: str, same: bool, distance: float) -> dict[str, str]:
    text = caption(name, same)
    return text | {"text": f"{text['text']}\n{_short(distance)}"}


def _short(value: float) -> str:
    """Three digits."""
    return f"{float(value):#.3g}".rstrip(".")


def _pick(name: str, value: Any, options: Sequence[tuple[str, Any]]) -> widgets.Dropdown:
    """A labelled choice; ValueError for a value that is not offered."""
    values = [v for _, v in options]
    if value not in values:
        known = ", ".join(map(str, values))
        raise ValueError(f"{name} must be one of {known}; got {brief(value)}")
    return widgets.Dropdown(
        options=options, value=value, description=name, layout=widgets.Layout(width="17em")
    )
