"""The embedding panel's picture: points that are drawn once, and what changes under the pointer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..plots import mosaic
from .figures import LiveFigure

TEXT, LINK, TRAIN = "#222222", "#222222", "#cfcfcf"
NEAR = (2, 5)  # rows and columns of nearest images


@dataclass(frozen=True)
class Map:
    """Where the test points lie in a picture, in pixels from its top left."""

    places: Tensor  # [M, 2]
    box: tuple[float, float, float, float]  # left, top, right and bottom of the plane
    size: tuple[int, int]  # width and height of the picture

    def nearest(self, x: float, y: float) -> int | None:
        """The test point nearest to a place given in fractions of width and height; None for a
        place outside the plane."""
        at = torch.tensor([x, y], dtype=torch.float64) * torch.tensor(self.size)
        left, top, right, bottom = self.box
        if not (left <= at[0] <= right and top <= at[1] <= bottom):
            return None
        return int((self.places - at).square().sum(1).argmin())


@dataclass(frozen=True)
class Group:
    """Test points that are drawn alike."""

    label: str
    rows: Tensor  # bool [M]
    colour: Any
    marker: str = "o"


@dataclass(frozen=True, eq=False)
class Scene:
    """The points of a picture: training points `train` [N, 2] in `pale` colours, test points [M, 2]
    in groups, or on a scale by their `values` [M]."""

    title: str
    train: Tensor
    test: Tensor
    pale: Any = TRAIN
    groups: Sequence[Group] = ()
    values: Tensor | None = None
    scale: str = ""


@dataclass(frozen=True)
class Side:
    """What stands beside the points: the picked image, its adversarial version and the change, and
    the nearest training images; captions are keywords of a text."""

    trio: Tensor  # [3, C, H, W]
    near: Tensor  # [n, C, H, W]
    captions: Sequence[dict[str, str]]  # 3
    near_captions: Sequence[dict[str, str]]  # n
    title: str
    heading: str


class ScatterFigure(LiveFigure):
    """Points on the left, kept as pixels until the scene is another; on the right the images."""

    TRIO = ("", "adversarial", "change")

    def __init__(self) -> None:
        super().__init__(11.5, 5.2)
        self.scene: Scene | None = None
        self.stage: list[Any] = []  # the axes that belong to it

    def draw(self, scene: Scene, image: int, near: Tensor, held: bool, side: Side) -> bytes:
        """PNG with test point `image` and its nearest training points, positions `near`, marked."""
        self.fit(tuple(side.trio.shape))
        if self.scene is not scene:
            self._points(scene)
        here = scene.test[image].numpy()
        ends = scene.train[near].numpy()
        gaps = np.stack([np.broadcast_to(here, ends.shape), ends, np.full_like(ends, np.nan)], 1)
        self.links.set_data(*gaps.reshape(-1, 2).T)
        self.ends.set_data(*ends.T)
        self.ring.set_data([here[0]], [here[1]])
        self.ring.set_markeredgewidth(3.5 if held else 2)
        for axes, picture in zip(self.trio, side.trio):
            axes.set_data(mosaic([picture[None]]))
        for text, caption in zip(self.captions, side.captions):
            text.set(**caption)
        h, w = side.near.shape[2:]
        self.pixels[:] = 1
        for number, text in enumerate(self.near_captions):
            text.set_text("")
            if number < len(side.near):
                row, column = divmod(number, NEAR[1])
                top, left = self.pitch[0] * row, self.pitch[1] * column
                self.pixels[top : top + h, left : left + w] = mosaic([side.near[number][None]])
                text.set(**side.near_captions[number])
        self.near.set_data(self.pixels)
        self.title.set_text(side.title)
        self.heading.set_text(side.heading)
        return self.png()

    def map(self) -> Map:
        """Where the points of the last picture lie."""
        assert self.scene is not None
        width, height = self.canvas.get_width_height()
        places = torch.from_numpy(self.plane.transData.transform(self.scene.test.double().numpy()))
        places[:, 1] = height - places[:, 1]
        edge = self.plane.bbox
        return Map(places, (edge.x0, height - edge.y1, edge.x1, height - edge.y0), (width, height))

    def lay_out(self, size: tuple[int, ...]) -> None:
        self.scene, self.stage = None, []
        _, _, h, w = size
        self.trio: list[Any] = []
        self.captions: list[Any] = []
        for i, title in enumerate(self.TRIO):
            axes = self.figure.add_axes((0.515 + 0.165 * i, 0.635, 0.145, 0.29))
            axes.set_axis_off()
            axes.set_title(title, fontsize=10)
            self.trio.append(axes.imshow(np.zeros((h, w, 3)), vmin=0, vmax=1, animated=True))
            self.captions.append(
                axes.text(w / 2 - 0.5, h * 1.03, "", ha="center", va="top", animated=True)
            )
        rows, columns = NEAR
        self.pitch = round(1.42 * h), round(1.22 * w)  # room for a caption under each
        axes = self.figure.add_axes((0.505, 0.01, 0.49, 0.47))
        axes.set_axis_off()
        self.pixels = np.ones((rows * self.pitch[0], columns * self.pitch[1], 3), np.float32)
        self.near = axes.imshow(self.pixels, vmin=0, vmax=1, animated=True)
        self.near_captions = [
            axes.text(
                column * self.pitch[1] + w / 2, row * self.pitch[0] + 1.03 * h, "", ha="center",
                va="top", fontsize=8.5, animated=True,
            )
            for row in range(rows)
            for column in range(columns)
        ]  # fmt: skip
        self.title = self.figure.text(0.5875, 0.94, "", ha="center", fontsize=10, animated=True)
        self.heading = self.figure.text(0.75, 0.5, "", ha="center", fontsize=10, animated=True)
        self.beside = [*self.trio, self.near, *self.captions, *self.near_captions, self.title,
                       self.heading]  # fmt: skip

    def _points(self, scene: Scene) -> None:
        """The plane with its legend or scale, as pixels, and the marks that move in it."""
        for axes in self.stage:
            axes.remove()
        self.plane = plane = self.figure.add_axes((0.008, 0.135, 0.48, 0.76))
        self.stage = [plane]
        plane.set(xticks=[], yticks=[])
        plane.spines[:].set_color("#dddddd")
        plane.set_title(scene.title, fontsize=10)
        train, test = scene.train.numpy(), scene.test.numpy()
        plane.scatter(train[:, 0], train[:, 1], s=8, c=scene.pale, linewidths=0)
        dot = min(max(16_000 / len(test), 8), 24)  # the more points, the smaller
        style: dict[str, Any] = {"linewidths": 0.4, "edgecolors": "white"}
        for group in scene.groups:
            x, y = test[group.rows.numpy()].T
            size = dot if group.marker == "o" else 1.7 * dot
            plane.scatter(
                x, y, size, [group.colour], marker=group.marker, label=group.label, **style
            )
        if scene.values is not None:
            order = scene.values.argsort()  # the far ones on top
            high = scene.values.quantile(0.98).item()
            x, y = test[order.numpy()].T
            points = plane.scatter(x, y, dot, scene.values[order].numpy(), vmax=high, **style)
            bar = self.figure.add_axes((0.09, 0.085, 0.32, 0.022))
            self.stage.append(bar)
            self.figure.colorbar(points, cax=bar, orientation="horizontal", extend="max")
            bar.tick_params(labelsize=8)
            bar.set_xlabel(scene.scale, fontsize=9, labelpad=1)
        if scene.groups and len(scene.groups) <= 10:
            plane.legend(
                loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=min(5, len(scene.groups)),
                frameon=False, fontsize=9, handletextpad=0.1, columnspacing=1.0, markerscale=1.6,
            )  # fmt: skip
        (self.links,) = plane.plot([], [], color=LINK, lw=0.8, alpha=0.7, animated=True)
        (self.ends,) = plane.plot(
            [], [], "o", markersize=6, markerfacecolor="none", markeredgecolor=LINK, animated=True
        )
        (self.ring,) = plane.plot(
            [], [], "o", markersize=14, markerfacecolor="none", markeredgecolor="black",
            animated=True,
        )  # fmt: skip
        self.moving = [self.links, self.ends, self.ring, *self.beside]
        self.scene, self.still = scene, None
