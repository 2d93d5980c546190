"""A run's models and optimisers on disk, so that it goes on where it was killed."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .files import DamagedFileError, digest, load_tensors, save_tensors

SAVE_EVERY = 30.0  # seconds between checkpoints inside an epoch


class OtherRunError(ValueError):
    """A checkpoint that another run has written."""


class Checkpoint:
    """Models and optimisers on disk, tied to one run by a fingerprint of all that decides it: the
    data, the models (their text, weights at the start, and what is frozen) and `told`, the run's
    settings as a text."""

    def __init__(
        self,
        path: str | os.PathLike | None,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        data: Mapping[str, Tensor],
        told: str,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.models, self.optimizers, self.saved = models, optimizers, time.monotonic()
        self.kept = 0  # the step that the file has
        if self.path is not None:
            frozen = [
                f"{name}.{k}"
                for name, model in models.items()
                for k, parameter in model.named_parameters()
                if not parameter.requires_grad
            ]
            about = re.sub(" at 0x[0-9a-f]+", "", f"{[*models.values()]} {frozen}")
            form = hashlib.sha256(about.encode()).hexdigest()[:16]
            self.fingerprint = f"{digest({**data, **self._weights()})} {form} {told}"

    def _weights(self) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        for name, model in self.models.items():
            weights.update(model.state_dict(prefix=f"{name}."))
        return weights

    def _trained(self) -> Iterator[tuple[str, torch.optim.Optimizer, nn.Parameter]]:
        """Every parameter that an optimiser moves, with the start of its state's names."""
        for name, optimizer in self.optimizers.items():
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for number, parameter in enumerate(parameters):
                yield f"{name}.{number}", optimizer, parameter

    def resume(self) -> int:
        """The step to go on from: 0 for a new run."""
        if self.path is None or not self.path.exists():
            return 0
        tensors, about = load_tensors(self.path)
        if not isinstance(about, dict) or "fingerprint" not in about:
            raise ValueError(f"{self.path} is another kind of file: name another one")
        if about["fingerprint"] != self.fingerprint:
            raise OtherRunError(
                f"{self.path} belongs to another run (other data, model, recipe, epochs or seed; "
                "or the model was trained since: make it anew): delete it or name another file"
            )
        try:
            for name, model in self.models.items():
                start = f"{name}."
                model.load_state_dict(
                    {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
                )
            for name, optimizer, parameter in self._trained():
                if f"{name}.step" not in tensors:  # frozen: Adam keeps nothing for it
                    continue
                keys = ("step", "exp_avg", "exp_avg_sq")
                state = {key: tensors[f"{name}.{key}"] for key in keys}
                for key in ("exp_avg", "exp_avg_sq"):
                    state[key] = state[key].to(parameter.device)
                optimizer.state[parameter] = state
        except (KeyError, RuntimeError):
            raise DamagedFileError(f"{self.path} lacks part of the run: delete it") from None
        self.kept = int(about["step"])
        return self.kept

    def save(self, step: int, due: bool) -> None:
        """Write the file if it is `due`, or 30 seconds after the last time."""
        if self.path is None or not (due or time.monotonic() - self.saved > SAVE_EVERY):
            return
        tensors = self._weights()
        for name, optimizer, parameter in self._trained():
            for key, tensor in optimizer.state[parameter].items():
                tensors[f"{name}.{key}"] = tensor
        save_tensors(self.path, tensors, fingerprint=self.fingerprint, step=step)
        self.kept, self.saved = step, time.monotonic()
