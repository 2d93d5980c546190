"""Bad input in one short line: what is wrong, and what is allowed."""

from __future__ import annotations

import os
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path

import torch


def brief(value: object) -> str:
    """A value as a text of one line and at most 60 characters."""
    text = " ".join(repr(value)[:300].split())
    return text if len(text) <= 60 else f"{text[:59]}…"


def whole(name: str, value: object, least: int = 0) -> int:
    """`value` as an int; ValueError unless it is a whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}; got {brief(value)}")
    return int(value)


def number(name: str, value: object, what: str, holds: Callable[[float], bool]) -> float:
    """`value` as a float; ValueError, which says `what` is wanted, unless it is a number for
    which `holds` is true."""
    try:
        if isinstance(value, Real) and not isinstance(value, bool) and holds(float(value)):
            return float(value)
    except OverflowError:  # 10**400
        pass
    raise ValueError(f"{name} must be {what}; got {brief(value)}")


def existing(path: str | os.PathLike) -> Path:
    """The path; FileNotFoundError unless a file is there."""
    if os.path.isfile(path):  # never raises, unlike pathlib's
        return Path(path)
    told = " ".join(str(path).split())[-200:]
    folder = os.path.isdir(path)
    why = " is a folder: name a file in it" if folder else ": there is no such file, check it"
    raise FileNotFoundError(told + why)


def device(name: torch.device | str) -> torch.device:
    """The device; ValueError if there is no such device."""
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError):
        raise ValueError(
            f"there is no device {brief(name)} here: it must be cpu, cuda or mps"
        ) from None
    return found


def widest(device: torch.device) -> torch.dtype:
    """float64, or on MPS, which has none, float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def watched() -> bool:
    """Whether values on a device can be looked at: not while a CUDA graph is being recorded."""
    return not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
