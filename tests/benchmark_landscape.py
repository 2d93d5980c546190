"""Benchmark of the landscape of blind spots."""

from __future__ import annotations

import tempfile
import time

import torch

import advnb
from advnb.blindspots import landscape

from .measured import line


def maps() -> None:
    """21 x 21 scales and shifts of 200 MNIST images, PGD of 40 steps, once and from the cache."""
    torch.set_num_threads(2)
    model, split = advnb.zoo.load("mnist-cnn-adversarial"), advnb.load("mnist").test(200)
    with tempfile.TemporaryDirectory() as folder:
        for what, most in (("the first time", 300.0), ("from the cache", 1.0)):
            began, cpu = time.perf_counter(), time.process_time()
            table = landscape(model, split, cache=folder, progress=False)
            took, cpu = time.perf_counter() - began, time.process_time() - cpu
            line(f"landscape, 21 x 21, 200 images, {what}", f"{took:.2f} s (CPU {cpu:.2f} s)",
                 f"<= {most:g} s", took <= most)  # fmt: skip
    full = table.accuracy[table.alpha == 1].iloc[0].value
    kept = table[[rate.value >= 0.99 * full for rate in table.accuracy]]
    blind = sum(rate.value >= 0.5 for rate in kept.success)
    print(f"    {len(kept)} of {len(table)} pairs keep 99 % of the accuracy; in {blind} of these "
          "the attack has a success of 50 % or more")  # fmt: skip
