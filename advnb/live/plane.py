"""What the embedding panel shows: the points in the plane, and what lies behind one of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib import colormaps
from torch import Tensor

from ..embedding import Method
from ..plots import COLOURS, PASTEL, amplified, caption
from ..splits import Split
from .pieces import Attacked, Space
from .runner import Frame, Params
from .scatter import NEAR, TEXT, Group, Map, ScatterFigure, Scene, Side

AGE = 2.0  # seconds until outcomes that have come in meanwhile are drawn: it takes a while
TITLES: dict[Method, str] = {"umap": "UMAP", "tsne": "t-SNE", "pca": "PCA"}
STRONG = colormaps["tab10"].colors  # type: ignore[attr-defined]  # the hues of PASTEL
OUTCOMES = {  # later ones lie on top
    "not attacked yet": ("#bbbbbb", "o"),
    "right, withstood": (COLOURS["accuracy"], "o"),
    "wrong before": ("#6b6b6b", "^"),
    "fooled": (COLOURS["success"], "X"),
}


@dataclass(frozen=True)
class EmbeddingFrame(Frame):
    """A frame with the places of its test points."""

    map: Map | None = None


class Plane:
    """Draws training and test points with what is known of them: `guess`, the predictions for the
    test images, in pieces, and how they were `attacked`."""

    def __init__(self, train: Split, test: Split, guess: list[Tensor], attacked: Attacked) -> None:
        self._train, self._test = train, test
        self._guess, self._attacked = guess, attacked
        self._scene: _Seen | None = None
        self._artist = ScatterFigure()

    def frame(
        self, params: Params, space: Space, words: str = "", complete: bool = False
    ) -> EmbeddingFrame:
        """What is known so far; `space` has the points' places. `words` begin the line below."""
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
            f"{at} shows {true}, classified as {guess[0]}; {outcome}; {mean} training images in "
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
