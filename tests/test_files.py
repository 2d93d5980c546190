"""Writing is all or nothing, and no changed byte goes unnoticed."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from advnb.files import (
    SMALL,
    DamagedFileError,
    digest,
    load_tensors,
    packed,
    save_tensors,
    unpacked,
    write,
)

from .conftest import refused

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b.c": torch.tensor(7),
    "half": torch.linspace(0, 1, 5, dtype=torch.bfloat16),
    "none": torch.zeros(0, 3),
}
ABOUT = {"step": 12, "fingerprint": "of a run", "more": [1.5, None]}


def saved() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return save_tensors(Path(folder) / "file", TENSORS, **ABOUT).read_bytes()


GOOD = saved()


def read(content: bytes) -> tuple[dict, dict]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        return load_tensors(path)


def test_round_trip(tmp_path: Path) -> None:
    path = save_tensors(tmp_path / "new" / "folder" / "file", TENSORS, **ABOUT)
    tensors, about = load_tensors(path)
    assert about == ABOUT
    assert digest(tensors) == digest(TENSORS)
    assert all(torch.equal(tensors[k], TENSORS[k]) for k in TENSORS)
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failed_write_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def save(temporary: Path) -> None:
        assert temporary != path
        temporary.write_text("half of the n")
        raise error

    with pytest.raises(error):
        write(path, save)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=400)
@given(where=st.integers(0, len(GOOD) - 1), flip=st.integers(1, 255))
def test_one_changed_byte(where: int, flip: int) -> None:
    content = bytearray(GOOD)
    content[where] ^= flip
    try:
        tensors, about = read(bytes(content))
    except DamagedFileError:
        return
    # white space of the header may change; what was written may not
    assert digest(tensors) == digest(TENSORS)
    assert about == ABOUT


def test_every_byte_of_the_tensors_counts() -> None:
    data = sum(t.numel() * t.element_size() for t in TENSORS.values())
    for where in range(len(GOOD) - data, len(GOOD)):
        content = bytearray(GOOD)
        content[where] ^= 1
        with refused("checksum", DamagedFileError):
            read(bytes(content))


@given(length=st.integers(0, len(GOOD) - 1))
def test_truncated(length: int) -> None:
    with refused("delete", DamagedFileError):
        read(GOOD[:length])


def test_pickles_are_not_read() -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (pytest.fail, ("a pickle was run",))

    with refused("safetensors", DamagedFileError):
        read(pickle.dumps(Bomb()))


def test_safetensors_without_a_checksum(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "file")
    with refused("checksum", DamagedFileError):
        load_tensors(tmp_path / "file")


def test_missing(tmp_path: Path) -> None:
    with refused("no such file", FileNotFoundError):
        load_tensors(tmp_path / "file")


def test_digest_sees_names_types_and_shapes() -> None:
    a = torch.zeros(2, 3)
    others = [{"b": a}, {"a": a.T}, {"a": a.int()}, {"a": a + 1}, {"a": a, "b": a}, {}]
    digests = {digest(t) for t in others} | {digest({"a": a})}
    assert len(digests) == len(others) + 1
    wide = torch.arange(6.0).view(2, 3)
    assert digest({"a": wide.T}) == digest({"a": wide.T.contiguous()})


@given(
    shape=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    size=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
def test_eight_bits_a_weight(shape: list[int], size: float, seed: int) -> None:
    """Off by at most half a step of the scale, which is the block's largest over 127."""
    stream = torch.Generator().manual_seed(seed)
    weights = {"w": size * torch.randn(shape, generator=stream), "n": torch.tensor(3)}
    kept = packed(weights)
    back = unpacked(kept)
    assert back.keys() == weights.keys()
    assert torch.equal(back["n"], weights["n"])
    assert back["w"].shape == weights["w"].shape
    flat, found = weights["w"].flatten(), back["w"].float().flatten()
    assert kept["w"].dtype == (torch.float16 if len(flat) < SMALL else torch.int8)
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        most = block.abs().max().item()
        # half a step, and what half precision takes of the scale
        assert (found[start : start + 64] - block).abs().max() <= most * (0.5 / 127 + 2**-10) + 1e-4
    assert sum(t.nbytes for t in kept.values()) <= 2 * len(flat) + 8


def test_packed_weights_are_read_as_what_they_stand_for(tmp_path: Path) -> None:
    weights = {"w": torch.linspace(-1, 1, 25_600).view(400, 64), "zero": torch.zeros(20_000)}
    path = save_tensors(tmp_path / "file", packed(weights))
    back, _ = load_tensors(path)
    assert digest(back) == digest(unpacked(packed(weights)))
    assert torch.equal(back["zero"], weights["zero"])
    assert path.stat().st_size < 48_000


def test_tied_weights_are_written_each(tmp_path: Path) -> None:
    one = torch.arange(6.0)
    save_tensors(tmp_path / "tied", {"a": one, "b": one, "part": one[2:]})
    read, _ = load_tensors(tmp_path / "tied")
    assert read["a"].equal(one)
    assert read["b"].equal(one)
    assert read["part"].equal(one[2:])


def test_what_safetensors_cannot_write_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise SafetensorError("I/O error: Permission denied (os error 13)")

    monkeypatch.setattr("advnb.files.save_file", full)
    with refused("the disk may be full, or the folder read-only: .* cannot be written", OSError):
        save_tensors(tmp_path / "x", {"a": torch.zeros(1)})


def test_writers_of_one_process_number_do_not_meet(tmp_path: Path) -> None:
    names = []
    for _ in range(2):
        write(tmp_path / "x", lambda path: (names.append(path.name), path.write_text("a")))
    assert len(set(names)) == 2  # machines that share a folder have processes of one number
