"""Building the glyph atlas of FONTS from folders of font files (S, appendix):
`python -m advnb fonts build`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .checks import brief, whole
from .files import save_arrays
from .fonts import ATLAS, LETTERS, N_FONTS, SIZE

SUFFIXES = {".ttf", ".otf", ".ttc"}


def render(path: str | Path, number: int = 0) -> np.ndarray | None:
    """The ten glyphs of one face, uint8 [10, 28, 28] (ink = 255), or None if it cannot be used.

    21 points on 28 x 28 pixels, anti-aliased, each letter's bounding box centred (S, appendix).
    A face is unusable if a letter is missing, blank, larger than the image, or the same as
    another letter's.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(
        path, SIZE - SIZE // 4, index=number, layout_engine=ImageFont.Layout.BASIC
    )
    glyphs = np.zeros((len(LETTERS), SIZE, SIZE), np.uint8)
    for glyph, letter in zip(glyphs, LETTERS):
        sheet = Image.new("L", (8 * SIZE, 8 * SIZE), 0)
        ImageDraw.Draw(sheet).text((3 * SIZE, 3 * SIZE), letter, fill=255, font=font)
        box = sheet.getbbox()  # of the ink: the font's own box holds the advance width as well
        if box is None or max(box[2] - box[0], box[3] - box[1]) > SIZE:
            return None
        ink = np.asarray(sheet.crop(box))
        top, left = ((SIZE - side) // 2 for side in ink.shape)
        glyph[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    distinct = len({glyph.tobytes() for glyph in glyphs}) == len(LETTERS)
    return glyphs if distinct and all(glyph.max() > 127 for glyph in glyphs) else None


def build(folders: Sequence[str | Path], out: str | Path = ATLAS, seed: int = 0) -> list[str]:
    """Render every usable TTF and OTF face below `folders` into an atlas; the names, in order.

    Faces are sorted by name, those with the same glyphs as an earlier one dropped, the rest
    shuffled by `seed`. Each face's name and licence are read from its own name table.
    """
    from fontTools.ttLib import TTCollection, TTFont, TTLibError
    from tqdm.auto import tqdm

    if isinstance(folders, str | Path):  # its letters would be searched, "/" among them
        raise ValueError(f"folders must be a list of folders; got {brief(folders)}")
    seed = whole("seed", seed)
    paths = sorted({p for f in folders for p in Path(f).rglob("*") if p.suffix.lower() in SUFFIXES})
    if not paths:
        raise ValueError(
            f"no .ttf, .otf or .ttc file in {brief([str(f) for f in folders])}: name a folder that "
            "holds fonts"
        )
    faces: dict[bytes, tuple[str, str, np.ndarray]] = {}
    for path in tqdm(paths, desc="faces"):
        try:
            many = TTCollection(path).fonts if path.suffix.lower() == ".ttc" else [TTFont(path)]
            for number, face in enumerate(many):
                if not {ord(letter) for letter in LETTERS} <= set(face.getBestCmap() or {}):
                    continue
                names = face["name"]
                name = names.getDebugName(4) or path.stem
                stated = names.getDebugName(13) or names.getDebugName(14)
                licence = stated or f"not stated; {names.getDebugName(0) or 'no copyright line'}"
                glyphs = render(path, number)
                if glyphs is not None:
                    entry = (name.strip(), " ".join(licence.split()), glyphs)
                    previous = faces.setdefault(glyphs.tobytes(), entry)
                    if entry[0] < previous[0]:
                        faces[glyphs.tobytes()] = entry
        except (TTLibError, OSError, KeyError, AssertionError, UnicodeDecodeError):
            continue  # a file that the font libraries cannot read is not a usable face
    if not faces:
        raise ValueError(f"no usable face among {len(paths):,} font files: name more folders")
    if len(faces) < N_FONTS and Path(out).resolve() == ATLAS.resolve():
        raise ValueError(f"FONTS needs {N_FONTS:,} faces and these are {len(faces):,}: name more")
    ordered = sorted(faces.values(), key=lambda face: (face[0], face[2].tobytes()))
    np.random.default_rng(seed).shuffle(ordered)
    titles, terms, glyph_list = zip(*ordered)
    licences, licence = np.unique(np.array(terms), return_inverse=True)
    arrays = {
        "glyphs": np.stack(glyph_list),
        "names": np.array(titles),
        "licences": licences,
        "licence": licence.astype(np.uint16),
    }
    save_arrays(out, arrays, compress=True)
    return list(titles)
