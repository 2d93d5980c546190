"""Benchmarks of sweeps, of the curves that ship and of minimum-norm attacks."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch

import advnb
from advnb import Attack, fit
from advnb.curves import FIGURE, Cell, Measure, grid, printed
from advnb.models import CNN, full_precision
from advnb.recorded import Recorded
from advnb.stacks import Stack
from advnb.stats import correlation, slope
from advnb.strategies import RECIPES, searched
from advnb.sweeps import key, pool, sweep

from .measured import line

SIZES = (250, 500, 1000, 2500, 5000, 10_000)


def carlini() -> None:
    """C&W's L2 attack against other toolkits', 500 MNIST images, the same number of gradients."""
    split = advnb.load("mnist").test(500)
    for kind in ("normal", "adversarial"):
        model = advnb.zoo.load(f"mnist-cnn-{kind}")
        part = split[advnb.models.logits(model, split).argmax(1) == split.y]

        def median(x: torch.Tensor, model=model, part=part) -> float:
            # what another toolkit calls a success is looked at again
            fooled = advnb.models.logits(model, part.with_x(x.clamp(0, 1))).argmax(1) != part.y
            size = (x - part.x).flatten(1).norm(dim=1)
            return torch.where(fooled, size, torch.inf).median().item()

        began = time.perf_counter()
        ours = median(advnb.CarliniWagner()(model, part).x[0])
        print(f"{kind}, {len(part)} images: median norm {ours:.4f}, "
              f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
        for name, run in _peers(model, part).items():
            began = time.perf_counter()
            theirs = median(run())
            told = f"{ours / theirs:.3f} ({theirs:.4f}, {time.perf_counter() - began:.0f} s)"
            line(f"    over {name}", told, "<= 1.05", ours <= 1.05 * theirs)


def _peers(model: torch.nn.Module, part: advnb.Split) -> dict[str, Callable[[], torch.Tensor]]:
    runs: dict[str, Callable[[], torch.Tensor]] = {}
    try:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        for steps, size in ((200, 0.05), (1000, 0.01)):
            attack = foolbox.attacks.L2CarliniWagnerAttack(
                binary_search_steps=9, steps=steps, stepsize=size, initial_const=1.0
            )
            runs[f"foolbox, 9 x {steps:,} steps of {size}"] = lambda attack=attack: attack(
                wrapped, part.x, part.y, epsilons=None
            )[1]
    except ImportError:
        print("    foolbox is not installed")
    try:
        import torchattacks

        for c in (1, 100):
            other = torchattacks.CW(model, c=c, steps=1800, lr=0.01)
            runs[f"torchattacks, c = {c}, 1,800 steps of 0.01"] = lambda other=other: other(
                part.x, part.y
            )
    except ImportError:
        print("    torchattacks is not installed")
    return runs


def curves() -> None:
    """The curves that ship for FONTS beside the printed ones, and what the paper concludes."""
    recipes = [name for name in FIGURE if name != "on-learned"]
    cells = grid("fonts", recipes, SIZES, range(3), ("error", "regular", "on-true"))
    there = {key(cell, Measure()) for cell in cells} & set(advnb.sweeps.shipped("fonts").key)
    line("cells that ship", f"{len(there)} of {len(cells)}", "all", len(there) == len(cells))
    with tempfile.TemporaryDirectory() as empty:
        table = sweep([c for c in cells if key(c, Measure()) in there], Measure(), cache=empty,
                      progress=False)  # fmt: skip
    means = advnb.curves.summary(table).set_index(["attack", "recipe", "n"]).value.sort_index()
    paper = printed().query("data == 'fonts'").set_index(["attack", "recipe", "n"]).value
    away = (means - paper).dropna().abs()
    error, true, regular = away["error"], away["on-true"], away["regular"]
    line("test error within .05 of the printed", f"{(error <= 0.05).sum()} of {len(error)}",
         ">= 27 of 30", (error <= 0.05).sum() >= 27)  # fmt: skip
    line("    the farthest off", f"{error.max():.3f} at {error.idxmax()}", "<= .08",
         error.max() <= 0.08)  # fmt: skip
    line("on-true success within .08", f"{(true <= 0.08).sum()} of {len(true)}", ">= 25 of 30",
         (true <= 0.08).sum() >= 25)  # fmt: skip
    line("regular success of normal training, least", f"{means['regular', 'normal'].min():.3f}",
         ">= .95", means["regular", "normal"].min() >= 0.95)  # fmt: skip
    line("regular success of regular training, farthest off", f"{regular['regular'].max():.3f}",
         "<= .10", regular["regular"].max() <= 0.10)  # fmt: skip
    by_model = table.pivot_table(index=["recipe", "n", "seed"], columns="attack", values="value")
    for recipe in recipes:
        part = by_model.loc[recipe].dropna()
        found = correlation(part["error"], part["on-true"])
        line(f"{recipe}: correlation of error and on-true success", str(found), ">= .85",
             found.value >= 0.85)  # fmt: skip
    found = {name: slope(by_model.loc[name]["error"], by_model.loc[name]["regular"])
             for name in ("normal", "regular")}  # fmt: skip
    line("slope of regular success against error, normal", str(found["normal"]), "<= .2",
         found["normal"].value <= 0.2)  # fmt: skip
    steeper = found["regular"].low > found["normal"].high
    line("    regular adversarial", str(found["regular"]), ">= .35, above",
         found["regular"].value >= 0.35 and steeper)  # fmt: skip
    ratio = means["error", "on-true", 1000] / means["error", "normal", 1000]
    line("error at N = 1,000, on-true over normal", f"{ratio:.2f}", "< .5", ratio < 0.5)


RUN = """
import sys, time
from advnb.curves import Measure, grid
from advnb.sweeps import sweep
cells = grid("fonts", ["normal", "augmented"], [250], range(3), ["error", "regular"], profile=None)
table = sweep(cells, Measure(sys.argv[1] + "/models"), cache=sys.argv[1], progress=False)
table.drop(columns=["seconds", "made"]).to_csv(sys.argv[2], index=False)
"""


def nothing(cell: dict) -> dict:
    return {"value": 0.0}


def sweeps() -> None:
    """What a sweep costs beside its runs, a pool of two, and 20 kills."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        sweep([{"n": n} for n in range(200)], nothing, cache=folder, progress=False)
        each = (time.perf_counter() - began) / 200 * 1000
        line("sweep beside its runs, a cell", f"{each:.1f} ms", "<= 50 ms", each <= 50)
    cells = [Cell("fonts", "CNN", "on-true", 500, seed, "error", 1000) for seed in range(4)]
    seconds = {}
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder, pool(workers) as executor:
            sweep(cells[:1] * 1, nothing, cache=folder + "/warm", executor=executor, progress=False)
            began = time.perf_counter()
            sweep(cells, Measure(), cache=folder, executor=executor if workers > 1 else None,
                  progress=False)  # fmt: skip
            seconds[workers] = time.perf_counter() - began
    ratio = seconds[1] / seconds[2]
    line("in-process over a pool of 2, the same cells", f"{ratio:.2f} ({seconds[1]:.0f} s)",
         ">= 1.6", ratio >= 1.6)  # fmt: skip
    with tempfile.TemporaryDirectory() as home:
        whole, killed = Path(home, "whole"), Path(home, "killed")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}

        def start(folder: Path) -> subprocess.Popen:
            command = [sys.executable, "-c", RUN, str(folder), str(folder) + ".csv"]
            return subprocess.Popen(command, env=environment)

        began = time.perf_counter()
        start(whole).wait()
        length, moments = time.perf_counter() - began, random.Random(0)
        lost = 0
        for _ in range(20):
            before = {path.name: path.read_bytes() for path in killed.glob("*.json")}
            process = start(killed)
            time.sleep(moments.uniform(1, length / 3))
            process.send_signal(signal.SIGKILL)
            process.wait()
            after = {path.name: path.read_bytes() for path in killed.glob("*.json")}
            lost += sum(after.get(name) != content for name, content in before.items())
        start(killed).wait()
        same = pd.read_csv(f"{whole}.csv").equals(pd.read_csv(f"{killed}.csv"))
        line("20 kills: finished cells lost or changed", f"{lost}", "0", lost == 0)
        line("    the table at the end", "the same" if same else "ANOTHER", "the same", same)


def stacks() -> None:
    """Five networks as one: their mean error against five alone, and on a GPU an inner step."""
    data, seeds = advnb.load("fonts"), list(range(5))
    test = data.test(10_000)
    for recipe, n in (("normal", 500), ("on-true", 250)):
        split, how = data.train(n), RECIPES[recipe](data)
        alone = [fit(CNN(s), split, how, seed=s, progress=False) for s in seeds]
        stack = fit(Stack([CNN(s) for s in seeds]), split, how, seed=seeds, progress=False)
        errors = [
            torch.tensor([1 - advnb.accuracy(model, test).value for model in models])
            for models in (alone, stack.unstack())
        ]
        apart = (errors[0].mean() - errors[1].mean()).abs().item()
        scale = (sum(e.var() for e in errors) / len(seeds)).sqrt().item()
        told = f"{errors[0].mean():.3f}, {errors[1].mean():.3f}: {apart / scale:.2f}"
        line(f"FONTS, {recipe}, {n}: mean errors alone, stacked: apart, in errors of it", told,
             "< 2", apart < 2 * scale)  # fmt: skip
    if torch.cuda.is_available():
        _on_gpu(data)


def _on_gpu(data: advnb.Dataset) -> None:
    print(f"{torch.cuda.get_device_name()}, a step of the attack, 50 images a network")
    train = data.train(500).to("cuda")
    for name in ("regular", "on-true", "transformation", "on-learned"):
        attack = Attack(searched(data, name), keep="strongest")
        for count in (1, 5):
            networks = [CNN(s).cuda() for s in range(count)]
            model = Stack(networks).eval()
            rows, found = train[: 50 * count], {}
            for able in (True, False):
                run = partial(Recorded(attack, model, able), rows, range(count))
                with full_precision(torch.device("cuda")):
                    run()
                    torch.cuda.synchronize()
                    began = time.perf_counter()
                    run()
                    torch.cuda.synchronize()
                found[able] = (time.perf_counter() - began) / (attack.steps + 1) * 1e6
            told = f"{found[True]:.0f} us, {found[False]:.0f} us"
            bound = 200 if (name, count) == ("on-true", 5) else math.inf
            line(f"    {name}, {count}: recorded, as it comes", told,
                 "<= 200 us" if bound < math.inf else "-", found[True] <= bound)  # fmt: skip
