"""FONTS: the decoder against a brute-force sampler, the order of the images, building an atlas."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import advnb
from advnb import fonts, glyphs
from advnb.fonts import transform

from .conftest import ROOT, refused

SIZE = 28


def oracle(glyph: np.ndarray, z: np.ndarray) -> np.ndarray:
    """One glyph [28, 28] moved by z, pixel by pixel in float64 (FACTS: output maps to input)."""
    t_x, t_y, a, b, s, r = (float(v) for v in z)
    c, q = math.cos(r), math.sin(r)
    row_1 = (c * s - q * s * a, -q * s + c * s * a, t_x)
    row_2 = (c * s * b + q * s, -q * s * b + c * s, t_y)
    out = np.zeros((SIZE, SIZE))
    for i in range(SIZE):
        for j in range(SIZE):
            x, y = 2 * j / (SIZE - 1) - 1, 2 * i / (SIZE - 1) - 1  # corners are at -1 and 1
            u = (row_1[0] * x + row_1[1] * y + row_1[2] + 1) / 2 * (SIZE - 1)
            v = (row_2[0] * x + row_2[1] * y + row_2[2] + 1) / 2 * (SIZE - 1)
            for m in (math.floor(v), math.floor(v) + 1):
                for n in (math.floor(u), math.floor(u) + 1):
                    if 0 <= m < SIZE and 0 <= n < SIZE:
                        out[i, j] += glyph[m, n] * (1 - abs(v - m)) * (1 - abs(u - n))
    return out


def glyphs_of(split: advnb.Split) -> np.ndarray:
    atlas = fonts.read_atlas()["glyphs"]
    return atlas[split.font.numpy(), split.y.numpy()].astype(float) / 255


@pytest.mark.parametrize("name", ["fonts", "fonts-moderate", "fonts-easy"])
def test_images_are_what_the_oracle_draws(name: str) -> None:
    split = advnb.load(name).test(1000)[torch.tensor([0, 7, 123, 999])]
    for image, glyph, z in zip(split.x, glyphs_of(split), split.z.double().numpy()):
        assert np.abs(image[0].numpy() - oracle(glyph, z)).max() < 2e-4


def test_decode_in_double_is_the_oracle(fonts: advnb.Dataset) -> None:
    split = fonts.train(30)[[3, 14, 28]]
    z = split.z.double() * 1.5  # also outside the ranges
    images = transform(fonts.manifold.glyphs(split.font, split.y, like=z), z)
    assert images.dtype == torch.float64
    for image, glyph, row in zip(images, glyphs_of(split), z.numpy()):
        assert np.abs(image[0].numpy() - oracle(glyph, row)).max() < 1e-12


def test_an_image_is_the_same_bits_whatever_is_drawn_with_it(fonts: advnb.Dataset) -> None:
    split = fonts.test(500)
    for start, stop in ((0, 1), (3, 10), (250, 351), (1, 500)):
        assert torch.equal(split[start:stop].x, split.x[start:stop])


def test_directions(fonts: advnb.Dataset) -> None:
    split = fonts.train(1)
    row = [0.0, 0, 0, 0, 1, 0]

    def centre(**latents: float) -> tuple[float, float, float]:
        z = torch.tensor([row])
        for name, value in latents.items():
            z[0, advnb.fonts.LATENTS.index(name)] = value
        x = fonts.manifold.decode(z, split)[0, 0]
        ink = x.sum()
        return (
            (x.sum(0) @ torch.arange(28.0) / ink).item(),
            (x.sum(1) @ torch.arange(28.0) / ink).item(),
            ink.item(),
        )

    rest = centre()
    assert rest[0] - centre(t_x=0.2)[0] == pytest.approx(2.7, abs=0.01)  # the other way
    assert rest[1] - centre(t_y=0.2)[1] == pytest.approx(2.7, abs=0.01)
    assert centre(scale=0.8)[2] > 1.3 * rest[2]  # smaller numbers, larger letters


def test_identity_gives_the_glyph_back(fonts: advnb.Dataset) -> None:
    split = fonts.train(2000)
    z = torch.tensor([[0.0, 0, 0, 0, 1, 0]]).expand(len(split), 6)
    x = fonts.manifold.decode(z, split)[:, 0]
    glyphs = torch.from_numpy(glyphs_of(split)).float()
    assert torch.allclose(x, glyphs, atol=1e-5)
    exact = fonts.manifold.decode(z.double(), split)[:, 0]
    assert torch.allclose(exact, torch.from_numpy(glyphs_of(split)), atol=1e-13)


def test_gradient_in_z(fonts: advnb.Dataset) -> None:
    split = fonts.train(20)[[2, 17]]
    z = split.z.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: fonts.manifold.decode(z, split), z)


def test_gradient_in_font_and_letter(fonts: advnb.Dataset) -> None:
    manifold, split = fonts.manifold, fonts.train(20)[[2, 17]]
    z = split.z.double()
    font = torch.rand(2, 3, dtype=torch.float64, generator=advnb.stats.generator(0)) / 9
    letter = torch.rand(2, 10, dtype=torch.float64, generator=advnb.stats.generator(1)) / 9

    def image(font: torch.Tensor, letter: torch.Tensor) -> torch.Tensor:
        return advnb.fonts.transform(manifold.glyphs(font, letter, like=z), z)

    inputs = font.requires_grad_(), letter.requires_grad_()
    assert torch.autograd.gradcheck(image, inputs, fast_mode=True)
    one = torch.nn.functional.one_hot
    hot = image(one(split.font, 30).double(), one(split.y, 10).double())
    assert torch.equal(hot, manifold.decode(z, split))


def test_order_of_fonts_and_letters(fonts: advnb.Dataset) -> None:
    for split in (fonts.train(25_000), fonts.test(25_000)):  # both begin at font 0, letter A
        i = torch.arange(len(split))
        assert torch.equal(split.font, i // 10 % 1000)
        assert torch.equal(split.y, i % 10)
    assert fonts.sizes == (960_000, 160_000)
    train, test = fonts.train(1000), fonts.test(1000)
    assert not torch.equal(train.z, test.z)
    assert (train.z[:, None] == test.z[None]).all(2).sum() == 0


WHOLE = advnb.load("fonts").train(25_000)


@settings(max_examples=30)
@given(start=st.integers(0, 24_990), length=st.integers(1, 12_000))
def test_any_slice_is_a_part_of_the_whole(start: int, length: int) -> None:
    stop = min(start + length, len(WHOLE))
    assert torch.equal(fonts.latents(start, stop), WHOLE.z[start:stop])
    smaller = advnb.load("fonts").train(stop)
    assert torch.equal(smaller[start : start + 3].x, WHOLE[start : min(start + 3, stop)].x)


def test_test_latents_go_on_where_training_ends(fonts: advnb.Dataset) -> None:
    z = advnb.fonts.latents(959_990, 960_010)
    assert torch.equal(z[:10], fonts.train().z[-10:])
    assert torch.equal(z[10:], fonts.test(10).z)


PI = math.pi
RANGES = {
    "fonts": ((0.2, 0.2, 0.5, 0.5, (0.75, 1.15), PI / 2)),
    "fonts-moderate": ((0.2, 0.2, 0.4, 0.4, (0.85, 1.15), PI / 3)),
    "fonts-easy": ((0.1, 0.1, 0.2, 0.2, (0.9, 1.1), PI / 6)),
}


@pytest.mark.parametrize("name", RANGES)
def test_ranges_and_order_of_latents(name: str) -> None:
    data = advnb.load(name)
    pairs = [p if isinstance(p, tuple) else (-p, p) for p in RANGES[name]]
    low, high = torch.tensor(pairs).T
    assert torch.equal(torch.stack(data.manifold.bounds), torch.stack((low, high)))
    z = data.train(50_000).z
    assert (z >= low).all()
    assert (z <= high).all()
    unit = (z - low) / (high - low)  # uniform and independent
    assert unit.mean(0).sub(0.5).abs().max() < 0.01
    assert unit.std(0).sub(12**-0.5).abs().max() < 0.01
    assert (torch.corrcoef(unit.T) - torch.eye(6)).abs().max() < 0.02
    assert advnb.fonts.LATENTS == ("t_x", "t_y", "shear_x", "shear_y", "scale", "rotation")


def test_a_million_images_are_made_only_when_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    data, decode, seen = advnb.load("fonts"), fonts.KnownManifold.decode, []

    def counted(self: object, z: torch.Tensor, split: advnb.Split) -> torch.Tensor:
        seen.append(len(split))
        return decode(self, z, split)

    monkeypatch.setattr(fonts.KnownManifold, "decode", counted)
    split = data.train()
    assert (len(split), split.z.shape, split.z.dtype) == (960_000, (960_000, 6), torch.float32)
    part = split[959_998:]
    shuffled = split.shuffled(1)[:3]
    assert not seen
    assert part.x.shape == (2, 1, 28, 28)
    assert shuffled.x.shape == (3, 1, 28, 28)
    assert part.x is part.x
    assert seen == [2, 3]


def test_decode_says_what_is_wrong(fonts: advnb.Dataset) -> None:
    split = fonts.train(5)
    with refused(r"z must be \[5, 6\]"):
        fonts.manifold.decode(split.z[:4], split)
    with refused("load a 'fonts' data set"):
        fonts.manifold.encode(advnb.Split(split.x, split.y))
    assert fonts.manifold.encode(split) is split.z


def check_rules(glyphs: np.ndarray, most: float = 1.0) -> None:
    """Ten different, visible letters a face, each with its bounding box in the middle."""
    assert glyphs.dtype == np.uint8
    assert glyphs.shape[1:] == (10, SIZE, SIZE)
    assert len({face.tobytes() for face in glyphs}) == len(glyphs)
    assert all(len({letter.tobytes() for letter in face}) == 10 for face in glyphs)
    assert glyphs.max((2, 3)).min() > 127
    for axis in (2, 3):
        ink = (glyphs > 0).any(axis)
        first, last = ink.argmax(2), SIZE - 1 - ink[..., ::-1].argmax(2)
        off = np.abs((first + last) / 2 - (SIZE - 1) / 2)
        assert off.max() <= most


def test_shipped_atlas() -> None:
    atlas = fonts.read_atlas()
    assert len(atlas["glyphs"]) >= 1000
    assert fonts.ATLAS.stat().st_size <= 2_000_000
    assert len(atlas["names"]) == len(atlas["licences"]) == len(atlas["glyphs"])
    assert all(name.strip() for name in atlas["names"])
    assert all(licence.strip() for licence in atlas["licences"])
    check_rules(atlas["glyphs"])


FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")
SYMBOLS = ("STIXSizOneSymReg", "cmex10", "cmsy10", "STIXNonUni")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import matplotlib

    source = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    folder = tmp_path_factory.mktemp("faces")
    (folder / "deeper").mkdir()
    for name in (*FACES, *SYMBOLS):
        shutil.copy(source / f"{name}.ttf", folder)
    shutil.copy(source / "DejaVuSans.ttf", folder / "deeper" / "the same.TTF")
    (folder / "broken.ttf").write_bytes(b"not a font")
    (folder / "cut.otf").write_bytes((source / "DejaVuSans.ttf").read_bytes()[:5000])
    (folder / "readme.txt").write_text("not a font either")
    return folder


def build(folder: Path, out: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "advnb", "fonts", "build", str(folder), "--out", str(out)]
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)


def test_the_packages_atlas_is_kept_however_it_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(glyphs, "ATLAS", tmp_path / "fonts.npz")
    with refused("FONTS needs 1,000 faces"):
        glyphs.build([folder], "fonts.npz")
    assert not (tmp_path / "fonts.npz").exists()


def test_build_an_atlas(folder: Path, tmp_path: Path) -> None:
    ran = build(folder, tmp_path / "a.npz")
    assert ran.returncode == 2  # fewer than the 1,000 faces of FONTS, and it says so
    assert ran.stderr.splitlines()[-1].startswith("advnb: FONTS needs 1,000 faces")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        atlas = dict(file)
    check_rules(atlas["glyphs"])
    names = list(atlas["names"])
    assert len(atlas["glyphs"]) == len(names) == len(set(names))
    assert {"DejaVu Sans", "DejaVu Sans Bold", "DejaVu Serif", "DejaVu Sans Mono"} <= set(names)
    assert not [n for n in names if "Size" in n or n == "cmex10"]  # no letters, no face
    assert all(licence.strip() for licence in atlas["licences"][atlas["licence"]])
    assert "fonts" in atlas["licences"][atlas["licence"][names.index("DejaVu Sans")]].lower()


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        glyphs.build([folder], tmp_path / f"{name}.npz", seed)
    a, b, c = ((tmp_path / f"{name}.npz").read_bytes() for name in "abc")
    assert a == b
    with np.load(tmp_path / "a.npz") as one, np.load(tmp_path / "c.npz") as other:
        assert sorted(one["names"]) == sorted(other["names"])
        assert list(one["names"]) != list(other["names"])
    assert a != c


def test_no_usable_face(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refused("no .ttf, .otf or .ttc file"):
        glyphs.build([tmp_path / "empty"], tmp_path / "a.npz")
    (tmp_path / "symbols").mkdir()
    shutil.copy(folder / "STIXSizOneSymReg.ttf", tmp_path / "symbols")
    with refused("usable|face"):
        glyphs.build([tmp_path / "symbols"], tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()


def test_too_few_faces_never_replace_the_shipped_atlas(folder: Path, tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, shutil, advnb.__main__ as m, advnb.fonts as f\n"
        "f.ATLAS = pathlib.Path(shutil.copy(f.ATLAS, sys.argv[1]))\n"
        "before = f.ATLAS.read_bytes()\n"
        "assert m.main(['fonts', 'build', sys.argv[2]]) == 2\n"
        "assert f.ATLAS.read_bytes() == before, 'the atlas was replaced'\n"
    )
    arguments = [str(tmp_path / "fonts.npz"), str(folder)]
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr.splitlines()[-1]


def test_the_density_is_that_of_finite_differences() -> None:
    data = advnb.load("fonts-easy")
    split, step = data.test(7), 1e-6
    glyphs = torch.from_numpy(glyphs_of(split))[:, None]
    z, found = split.z.double(), []
    for k in range(6):
        move = torch.zeros(6, dtype=torch.float64)
        move[k] = step
        away = transform(glyphs, z + move) - transform(glyphs, z - move)
        found.append(away.flatten(1) / (2 * step))
    area = np.linalg.svd(torch.stack(found, 1).numpy(), compute_uv=False).prod(1)
    volume = 0.2**2 * 0.4**2 * 0.2 * (math.pi / 3)
    np.testing.assert_allclose(data.manifold.log_density(split), -np.log(volume * area), rtol=1e-6)
