"""Writing so that nothing is lost, reading so that damage is noticed. No pickle anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .checks import existing

BLOCK = 64  # neighbouring weights that share a scale
SMALL = 16_384  # of fewer numbers, the first layers, nothing is to be lost: least of all a gradient
SCALES = " scales"


class DamagedFileError(ValueError):
    """A file whose content is not what was written, or not of the expected kind."""


def write(path: str | os.PathLike, save: Callable[[Path], object]) -> Path:
    """`save(temporary)`, flushed to disk, then renamed to `path`: whole or not there at all."""
    path = Path(path)
    # machines, and containers, that share a folder have processes of the same number
    temporary = path.with_name(f".{os.getpid()}-{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or "the disk may be full, or the folder read-only"
        raise OSError(f"{why}: {path} cannot be written, name another place") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def save_tensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], **about: Any) -> Path:
    """Write a safetensors file that carries its own checksum and `about` (anything JSON)."""
    ready, seen = {}, set()
    for name, tensor in tensors.items():
        one = tensor.detach().cpu().contiguous()
        place = one.untyped_storage().data_ptr()
        ready[name] = one.clone() if place in seen else one  # of tied weights each is written
        seen.add(place)
    metadata = {"sha256": _checksum(ready, json.dumps(about)), "about": json.dumps(about)}
    return write(path, lambda temporary: save_file(ready, temporary, metadata))


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote: (tensors, about). DamagedFileError if a byte has changed."""
    path = existing(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError):
        raise DamagedFileError(
            f"{path} is not a whole safetensors file: name another, or delete it"
        ) from None
    about = metadata.get("about", "")
    if metadata.get("sha256") != _checksum(tensors, about):
        raise DamagedFileError(
            f"{path} does not match its own checksum, or another wrote it: name another, or "
            "delete it"
        )
    return unpacked(tensors), json.loads(about)


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors to save in a quarter of the space: of each with at least `SMALL` floats, whole
    numbers from -127 to 127 in int8, and for every `BLOCK` of them in a row one scale in half
    precision. Smaller ones in half precision. `load_tensors` gives back what they stand for."""
    ready = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            ready[name] = tensor
        elif tensor.numel() < SMALL:
            ready[name] = tensor.half()
        else:
            blocks = _blocks(tensor.float())
            scale = (blocks.abs().amax(1) / 127).half()
            # a scale that half precision has rounded down would not reach the largest
            whole = (blocks / scale.float().clamp_min(1e-12)[:, None]).round().clamp(-127, 127)
            ready[name] = whole.flatten()[: tensor.numel()].view(tensor.shape).to(torch.int8)
            ready[name + SCALES] = scale
    return ready


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What packed tensors stand for, in single precision; others as they are."""
    ready = {name: t for name, t in tensors.items() if not name.endswith(SCALES)}
    for name, scale in tensors.items():
        if name.endswith(SCALES):
            kept = ready[name.removesuffix(SCALES)]
            whole = _blocks(kept.float()) * scale.float()[:, None]
            values = whole.flatten()[: kept.numel()].view(kept.shape)
            ready[name.removesuffix(SCALES)] = values
    return ready


def _blocks(tensor: Tensor) -> Tensor:
    flat = tensor.flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)


def _checksum(tensors: Mapping[str, Tensor], about: str) -> str:
    return hashlib.sha256((digest(tensors) + about).encode()).hexdigest()


def save_arrays(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], *, compress: bool = False
) -> Path:
    """Write an .npz, whole or not at all."""
    save: Any = np.savez_compressed if compress else np.savez

    def into(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # numpy would add .npz to a name without it
            save(file, allow_pickle=False, **arrays)

    return write(path, into)


def load_arrays(path: str | os.PathLike, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named arrays of an .npz. DamagedFileError if one is missing or a byte has changed."""
    path = existing(path)
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.lib.npyio.NpzFile) and set(names) <= set(file.files):
            with file:
                return {name: file[name] for name in names}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, RuntimeError):
        # RuntimeError and its NotImplementedError: a damaged header reads as "encrypted" and such
        raise DamagedFileError(
            f"{path} is damaged or not an .npz file: delete it and get it again"
        ) from None
    except ValueError as error:
        why = "pickled objects, which are never loaded" if "pickle" in str(error) else str(error)
        raise DamagedFileError(f"{path} cannot be read ({why}): save it as plain arrays") from None
    raise DamagedFileError(f"{path} must hold the arrays {', '.join(names)}: save it with them")
