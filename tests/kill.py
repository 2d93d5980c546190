"""Kill a training run again and again: `python -m tests.kill CHECKPOINT` is the run, `killed`
starts it, kills it at random moments and lets the last one end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def train(checkpoint: str | None, epochs: int) -> str:
    """The digest of a small network after adversarial training on FONTS, saved at every step."""
    import torch

    import advnb
    from advnb import checkpoints, files

    torch.set_num_threads(1)
    checkpoints.SAVE_EVERY = 0.0
    attack = advnb.Attack(advnb.Pixels(0.1), steps=10, lr=0.02)
    recipe = advnb.recipes.adversarial(attack, warmup=1.0)
    split, model = advnb.load("fonts").train(300), advnb.models.CNN(seed=2)
    print("ready", flush=True)
    advnb.fit(model, split, recipe, epochs=epochs, seed=5, checkpoint=checkpoint, progress=False)
    return files.digest(model.state_dict())


def start(checkpoint: Path | None, epochs: int) -> subprocess.Popen:
    """A run in a process of its own, once it is about to train."""
    command = [sys.executable, "-m", "tests.kill", str(checkpoint or ""), str(epochs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen) -> str:
    """The digest that a run prints when it ends."""
    digest = process.communicate()[0].strip()
    assert process.returncode == 0
    return digest


def killed(checkpoint: Path, kills: int, *, epochs: int = 8, seed: int = 0) -> tuple[str, str, int]:
    """(digest of an unbroken run, digest of one killed `kills` times, kills that struck).

    The moments are random; they depend on how long the unbroken run took, so that all but the
    last start are killed before they end.
    """
    process = start(None, epochs)
    began = time.monotonic()
    unbroken = end(process)
    longest = 1.2 * (time.monotonic() - began) / (kills + 1)
    moments, struck = random.Random(seed), 0
    for _ in range(kills):
        process = start(checkpoint, epochs)
        time.sleep(moments.uniform(0, longest))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        struck += process.returncode == -signal.SIGKILL
    return unbroken, end(start(checkpoint, epochs)), struck


def same_after_kills(folder: Path, kills: int) -> bool:
    """Whether a run killed `kills` times ends with the weights of an unbroken one."""
    unbroken, broken, struck = killed(folder / "run", kills, epochs=max(8, 2 * kills))
    if struck < kills:
        raise RuntimeError(f"only {struck} of {kills} kills came before the end of the run")
    return len(unbroken) == 64 and broken == unbroken


if __name__ == "__main__":
    print(train(sys.argv[1] or None, int(sys.argv[2])))
