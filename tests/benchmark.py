"""Speed, memory and the papers' numbers, printed beside their bounds: `python -m tests.benchmark`.

Parts: attack (our search against a bare loop, and peers where they are installed), data (reading
the local files), doctor (its time), kills (20 SIGKILLs of a training), start (notebook 00 whole),
browser (a key press on a slider, a hover), fonts (test error of normal training), manifold (attacks
on latents, distances), learned (manifolds that are learned), zoo (the shipped robust models under
attack), curves, sweeps and stacks (S's figures 5 to 7), carlini and smallest (minimum-norm attacks
against other toolkits'), neighbours and distances (distance to the training set), certificates,
maps (the landscape of blind spots), search (the smallest harmless change). Without an argument,
all; with names, those.
"""

from __future__ import annotations

import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import advnb
from advnb import Attack, Pixels, Split

from .benchmark_blindspots import cure, tables
from .benchmark_certify import certificates
from .benchmark_curves import carlini, curves, stacks, sweeps
from .benchmark_distances import distances, neighbours
from .benchmark_landscape import maps
from .benchmark_minimal import smallest
from .benchmark_search import search
from .measured import line, over_seeds

BATCH = 200  # images at a time, for both sides: what the search takes by itself on a CPU
ROOT = Path(__file__).parent.parent


def bare(model: nn.Module, x: Tensor, y: Tensor, eps: float, lr: float, steps: int) -> int:
    """The least that a 40-step sign attack can do: forward, backward, step, clip, drop the fooled.

    It keeps no result, checks nothing, and counts the images it fooled.
    """
    fooled = 0
    with torch.no_grad():
        for part in x.split(BATCH):
            model(part)
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    start = torch.min(torch.max(x + (torch.rand_like(x) * 2 - 1) * eps, low), high)
    for adv, a, b, t in zip(*(part.split(BATCH) for part in (start, low, high, y))):
        for step in range(steps + 1):
            adv = adv.detach().requires_grad_(step < steps)
            with torch.set_grad_enabled(step < steps):
                output = model(adv)
            left = output.argmax(1) == t
            fooled += len(left) - int(left.sum())
            if step == steps or not left.any():
                break
            loss = nn.functional.cross_entropy(output, t, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, adv)
            adv = torch.min(torch.max(adv.detach() + lr * gradient.sign(), a), b)
            if not left.all():
                adv, a, b, t = adv[left], a[left], b[left], t[left]
    return fooled


def peers(model: nn.Module, split: Split, eps: float) -> dict[str, Callable[[], object]]:
    """The same attack in other toolkits, as far as they are installed."""
    runs: dict[str, Callable[[], object]] = {}
    try:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        attack = foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=40)
        runs["foolbox"] = lambda: attack(wrapped, split.x, split.y, epsilons=eps)
    except ImportError:
        pass
    try:
        import torchattacks

        other = torchattacks.PGD(model, eps=eps, alpha=0.01, steps=40)
        runs["torchattacks"] = lambda: other(split.x, split.y)
    except ImportError:
        pass
    return runs


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def attack() -> None:
    """Wall time of PGD-40 on 1,000 images over the bare loop; 7 interleaved pairs, one thread."""
    torch.set_num_threads(1)
    data = advnb.load("mnist", offline="fonts")
    split, eps = data.test(1000), 0.3 if data.name == "mnist" else 0.1
    ours = Attack(Pixels(eps), steps=40, lr=0.01, optimizer="sign", start="uniform")
    for kind, bound in (("adversarial", 1.10), ("normal", 1.20)):
        model = advnb.zoo.load(f"{data.name}-cnn-{kind}")
        ratios, times = [], []
        for number in range(8):
            a = seconds(lambda: ours(model, split))  # noqa: B023
            b = seconds(lambda: bare(model, split.x, split.y, eps, 0.01, 40))  # noqa: B023
            if number:  # the first pair warms up
                ratios.append(a / b)
                times.append(b)
        ratio = statistics.median(ratios)
        spread = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        line(f"PGD-40, 1,000 x {data.title}, {kind}, over a bare loop", spread,
             f"<= {bound}", ratio <= bound)  # fmt: skip
        for name, run in peers(model, split, eps).items():
            run()
            peer = statistics.median(seconds(run) for _ in range(3)) / statistics.median(times)
            print(f"    {name:54s} {peer:28.2f}")


# in a process of its own: a peak is of a whole process
READ = """
import sys, time
from pathlib import Path
import advnb

def memory(what):  # kB; VmHWM is the peak since clear_refs
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))

name = sys.argv[1]
advnb.load(name).test(1).x  # the first time: imports, and the file into the system's memory
Path("/proc/self/clear_refs").write_text("5")
before, began = memory("VmRSS"), time.perf_counter()
data = advnb.load(name)
train, test = data.train(), data.test()
took = time.perf_counter() - began
floats = 4 * (train.x.numel() + test.x.numel())
print(took, (memory("VmHWM") - before) * 1024 / floats)
"""


def data() -> None:
    """Reading a local file the second time, both parts as floats: seconds and peak memory."""
    for name in ("mnist", "fashion", "cifar10"):
        if advnb.data.find(name) is None:
            print(f"{name}: not on this machine")
            continue
        command = [sys.executable, "-c", READ, name]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        took, ratio = (float(value) for value in out.split())
        line(f"reading {name}, both parts", f"{took:.2f} s", "<= 1.5 s", took <= 1.5)
        line("    its peak memory over the float arrays", f"{ratio:.2f}", "<= 2", ratio <= 2)


def doctor() -> None:
    """`python -m advnb doctor` in a process of its own."""
    command = [sys.executable, "-m", "advnb", "doctor"]
    runs = []
    took = seconds(lambda: runs.append(subprocess.run(command, capture_output=True, text=True)))
    print(runs[0].stdout.splitlines()[-1])
    line("python -m advnb doctor", f"{took:.1f} s", "<= 10 s", took <= 10)


def kills() -> None:
    """20 SIGKILLs at random moments of a training, resumed each time: the same weights."""
    from tests.kill import same_after_kills

    count = 20
    with tempfile.TemporaryDirectory() as folder:
        same = same_after_kills(Path(folder), count)
    line(f"SIGKILL of fit, {count} times, resumed", "same weights" if same else "OTHER weights",
         "same", same)  # fmt: skip


def start() -> None:
    """Notebook 00 whole, course profile, fresh kernel: seconds and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = str(ROOT / "notebooks" / "00_start_here.ipynb")
        command = [sys.executable, "-m", "jupyter", "nbconvert", "--execute", "--to", "notebook",
                   "--output-dir", folder, notebook]  # fmt: skip
        env = os.environ | {"ADVNB_PROFILE": "course"}
        took = seconds(lambda: subprocess.run(command, check=True, env=env, capture_output=True))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    line("00_start_here whole, course profile", f"{took:.1f} s", "<= 60 s", took <= 60)
    line("    its peak memory", f"{peak:.2f} GB", "<= 2 GB", peak <= 2)


def browser() -> None:
    """A key press on a slider in a real browser: on alpha where the model is robust (40 steps),
    and on a number of a code; and pointing at one of 1,500 points."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-s",
        "-n0",  # a worker's prints would be lost
        "-k",
        "key_press or hovering",
        "tests/test_browser.py",
    ]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    found = re.search(r"first frame (\d+) ms, complete (\d+) ms", out)
    if found is None:
        print(out)
        line("key press in the browser", "no figures", "<= 100 ms", False)
        return
    first, complete = (int(number) for number in found.groups())
    line("key press to the first new frame, median of 15", f"{first} ms", "<= 100 ms", first <= 100)
    line(
        "    to the end of 64 images x 40 steps", f"{complete} ms", "<= 1,500 ms", complete <= 1500
    )
    moved = re.search(r"latent panel (\d+) ms", out)
    took = int(moved[1]) if moved else 10**6
    line("the latent panel, key press to new picture and probabilities",
         f"{took} ms" if moved else "no figures", "<= 100 ms", took <= 100)  # fmt: skip
    pointed = re.search(r"embedding panel (\d+) ms", out)
    took = int(pointed[1]) if pointed else 10**6
    line("the embedding panel, hover to picture, 1,500 + 1,500 points",
         f"{took} ms" if pointed else "no figures", "<= 150 ms", took <= 150)  # fmt: skip


def fonts() -> None:
    """Test error of normal training on FONTS, mean of 3 seeds, and regular success over pairs."""
    data = advnb.load("fonts")
    for n, printed in ((250, 0.730), (1000, 0.495), (5000, 0.199)):
        errors, successes = [], []
        for seed in range(3):
            model = advnb.models.CNN(seed=seed)
            advnb.fit(model, data.train(n), advnb.recipes.normal(), seed=seed, progress=False)
            errors.append(1 - advnb.accuracy(model, data.test(20_000)).value)
            regular = Attack(Pixels(0.3), restarts=5)  # S: Adam, 0.005, 40 steps
            successes.append(regular(model, data.test(1000)).success_rate())
        (error, half), least = over_seeds(errors), min(successes, key=lambda r: r.value)
        line(f"FONTS, CNN, normal, N = {n:,}: test error, 3 seeds x 20,000",
             f"{error:.3f} +- {half:.3f}",
             f"{printed} +- .05", abs(error - printed) <= 0.05)  # fmt: skip
        line(f"    regular success, least of 3 seeds, n = {least.n:,} pairs",
             f"{least.value:.3f} [{least.low:.3f}, {least.high:.3f}]",
             ">= .96", least.value >= 0.96)  # fmt: skip


def zoo() -> None:
    """The robust models, the numbers that their cards and the blind-spot notebook rest on."""
    from advnb.blindspots import table

    for name, clean, base in (("mnist-cnn-adversarial", 0.97, 0.10),
                              ("fashion-cnn-adversarial", 0.82, 0.15),
                              ("fonts-cnn-adversarial", 0.85, 0.30),
                              ("cifar10-cnn-adversarial", 0.60, 0.55)):  # fmt: skip
        entry = advnb.zoo.entry(name)
        try:
            data = advnb.load(entry.data)
        except ConnectionError:
            print(f"{name}: {entry.data} is not here")
            continue
        model = advnb.zoo.load(name)
        measured = advnb.zoo.measure(name, model, data)
        accuracy, success = (measured[key] for key in ("accuracy", "success"))
        told = "{value:.4f} [{low:.4f}, {high:.4f}]"
        line(f"{name}: accuracy, n = {accuracy['n']:,}", told.format(**accuracy),
             f">= {clean}", accuracy["value"] >= clean)  # fmt: skip
        line(f"    PGD-40 x 5 success over images, n = {success['n']:,}", told.format(**success),
             f"<= {base}", success["value"] <= base)  # fmt: skip
        rows = table(model, data.test(2000), entry.attack, progress=False)
        least = {(0.9, 0.0): 0.40, (0.8, 0.0): 0.85, (0.7, 0.0): 0.95} if "mnist" in name else {}
        least |= {"fashion": {(0.9, 0.05): 3 * rows.success[0].value},
                  "fonts": {(0.9, 0.05): 0.9}}.get(entry.data, {})  # fmt: skip
        if "mnist" in name:
            least[(0.9, 0.0)] = max(0.40, 4 * rows.success[0].value)
        for row in rows.itertuples():
            bound = least.get((row.alpha, row.beta), 0.0)
            told = f"{row.success.value:.4f} [{row.success.low:.4f}, {row.success.high:.4f}]"
            paper = "" if row.printed_success != row.printed_success else (
                f", printed {row.printed_success:.4f}")  # fmt: skip
            what = f"    ({row.alpha:g}, {row.beta:g}) success at eps, n = {row.success.n:,}{paper}"
            line(what, told, f">= {bound:.3f}", row.success.value >= bound)
            change = abs(row.accuracy.value - rows.accuracy[0].value)
            most = 0.02 if entry.data == "cifar10" else 0.01  # photographs: contrast matters
            line("        accuracy, change from (1, 0)", f"{row.accuracy.value:.4f}, {change:.4f}",
                 f"<= {most}", change <= most)  # fmt: skip


def codes(model: nn.Module, split: Split, eta: float, steps: int) -> None:
    """The least that an attack on FONTS' latents can do: decode, forward, backward, Adam, clip."""
    manifold = split.dataset.manifold
    low, high = manifold.bounds
    for start in range(0, len(split), BATCH):
        part = split[start : start + BATCH]
        a, b = (part.z - eta).maximum(low), (part.z + eta).minimum(high)
        z = (part.z + (torch.rand_like(part.z) * 2 - 1) * eta).clamp(a, b)
        mean, square = torch.zeros_like(z), torch.zeros_like(z)
        for step in range(1, steps + 1):
            z = z.detach().requires_grad_()
            output = model(manifold.decode(z, part))
            loss = nn.functional.cross_entropy(output, part.y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, z)
            mean.lerp_(gradient, 0.1)
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            scale = (square / (1 - 0.999**step)).sqrt_().add_(1e-8)
            z = (z.detach() - 0.005 * (mean / (1 - 0.9**step)) / scale).clamp(a, b)
        with torch.no_grad():
            model(manifold.decode(z, part))


def manifold() -> None:
    """On-manifold attacks on FONTS (S figure 5), distances to the known manifold, and speed."""
    from advnb import OnManifold

    torch.set_num_threads(1)
    data = advnb.load("fonts")
    test, on = data.test(2500), Attack(OnManifold(data.manifold, 0.3), restarts=5)
    for n, printed in ((250, 0.937), (1000, 0.911), (5000, 0.652)):
        rates = []
        for seed in range(3):
            model = advnb.models.CNN(seed=seed)
            advnb.fit(model, data.train(n), advnb.recipes.normal(), seed=seed, progress=False)
            rates.append(on(model, test).success_rate().value)
        mean, half = over_seeds(rates)
        line(f"FONTS, N = {n:,}: on-manifold success, pairs, 3 seeds",
             f"{mean:.3f} +- {half:.3f}", f"{printed} +- .06",
             abs(mean - printed) <= 0.06)  # fmt: skip
    few, model = data.test(1000), advnb.zoo.load("fonts-cnn-normal")
    for name, attack in (
        ("regular", Attack(Pixels(0.3))),
        ("on-manifold", replace(on, restarts=1)),
    ):
        result = attack(model, few)
        hits = result.success[0] & result.correct
        x, split = result.x[0][hits], few[hits]
        away = []
        torch.set_num_threads(2)
        took = seconds(lambda: away.append(data.manifold.distance(x, split)))  # noqa: B023
        torch.set_num_threads(1)
        if name == "regular":
            share = away[0] / (x - split.x).flatten(1).norm(dim=1)
            low, middle = share.quantile(0.05).item(), share.median().item()
            line(f"{name}, {len(x)}: distance over norm of delta, 5 % point", f"{low:.3f}",
                 ">= .97", low >= 0.97)  # fmt: skip
            line("    median", f"{middle:.4f}", ">= .99", middle >= 0.99)
            per = took / len(x) * 1000
            line("    project, 1,000 images, 2 threads", f"{per:.1f} s", "<= 30 s", per <= 30)
        else:
            far = away[0].quantile(0.95).item()
            line(f"{name}, {len(x)}: distance after project, 95 % point", f"{far:.1e}",
                 "<= .05", far <= 0.05)  # fmt: skip
    steady, ratios = Attack(OnManifold(data.manifold, 0.3), keep="strongest"), []
    for number in range(8):
        a = seconds(lambda: steady(model, few))
        b = seconds(lambda: codes(model, few, 0.3, 40))
        if number:  # the first pair warms up
            ratios.append(a / b)
    ratio = statistics.median(ratios)
    line("40 on-manifold steps, 1,000 images, over a bare loop",
         f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})", "<= 1.15",
         ratio <= 1.15)  # fmt: skip


def learned() -> None:
    """Learned manifolds: success (S figure 6), what their examples look like, 50-NN distances, and
    both kinds of models in numbers."""
    from advnb import OnManifold, quality
    from advnb.attribution import attribute
    from advnb.manifolds import LearnedManifold
    from advnb.stats import rate

    torch.set_num_threads(1)
    data, model = advnb.load("fonts"), advnb.zoo.load("fonts-cnn-normal")
    test, results = data.test(2500), {}
    for kind in ("flow", "vaegan"):
        on = Attack(OnManifold(LearnedManifold.load(data, kind), 0.3), restarts=5)
        results[kind] = result = on(model, test)
        for correct in ("x", "reconstruction"):
            print(f"    {kind}, right on {correct}: {result.success_rate(correct=correct)}")
        counted = result.success_rate(correct="reconstruction", code_limit=2)
        line(f"FONTS, {kind}: on-learned success as S counts it, N = 5,000", str(counted),
             ".314 +- .12", abs(counted.value - 0.314) <= 0.12)  # fmt: skip
    results["known"] = Attack(OnManifold(data.manifold, 0.3))(model, test[:500])
    for name in ("known", "flow"):
        result = results[name]
        hits = (result.success[0] & result.correct).nonzero()[:100, 0]
        found = attribute(result.x[0][hits], test[hits], without=test[hits].font)
        print(f"    {name}: another letter is the nearest of {rate(found.letter != test[hits].y)}")
    for name in ("mnist", "fashion"):
        _sticking_out(name)
    columns = ["reconstruction", "accuracy.samples.value", "distance of samples", "parameters"]
    print(quality.table("fonts").groupby("kind")[columns].agg(["mean", "min", "max"]).T.to_string())


def _sticking_out(name: str) -> None:
    """S figure 3 where no manifold is known, on 5,000 images that the form of the measure was not
    chosen on: the share of a change outside the 50-NN subspace through x, for changes that fool."""
    from advnb import OnManifold
    from advnb.manifolds import LearnedManifold, NeighbourManifold
    from advnb.stats import mann_whitney

    data = advnb.load(name)
    images, train = data.test(6000)[1000:], data.train(20_000)
    network, near = advnb.zoo.load(f"{name}-cnn-normal"), NeighbourManifold(train, 50)
    twin = train[NeighbourManifold(train, 1).neighbours(images.x)[:, 0]]
    away = {"test": near.distance(images.x, twin, unit=True)}
    regular = Attack(Pixels(0.3))(network, images)
    row, image = (regular.success & regular.correct).nonzero().T
    away["regular"] = near.distance(regular.x[row, image], images[image], unit=True)
    for kind in ("flow", "vaegan"):
        manifold = LearnedManifold.load(data, kind)
        result = Attack(OnManifold(manifold, 0.3), restarts=2)(network, images)
        row, image = (result.success & result.correct).nonzero().T
        # the attack's own change: what the reconstruction has changed was not its work
        own = manifold.reconstruct(images[image])
        found = near.distance(result.x[row, image], own, unit=True)
        each = [found[image == number].mean() for number in image.unique()]  # an image counts once
        away[kind] = torch.stack(each)
        print(f"    {name}, {kind}: success {result.success_rate()}, {len(each)} images")
    low, middle, high = (
        {k: v.quantile(q).item() for k, v in away.items()} for q in (0.25, 0.5, 0.75)
    )
    print("   ", ", ".join(f"{kind} {value:.3f}" for kind, value in middle.items()))
    above = mann_whitney(away["vaegan"], away["test"])
    line(f"{name}, 50-NN share outside: test, on-learned (VAE-GAN), regular",
         f"{middle['test']:.3f}, {middle['vaegan']:.3f}, {middle['regular']:.3f}", "in order",
         middle["test"] < middle["vaegan"] < middle["regular"])  # fmt: skip
    line("    on-learned above test, Mann-Whitney", f"p = {above:.1g}", "< .05", above < 0.05)
    line("    interquartile ranges of test and regular",
         f"to {high['test']:.3f}, from {low['regular']:.3f}", "disjoint",
         high["test"] < low["regular"])  # fmt: skip
    line("    regular, median", f"{middle['regular']:.3f}", ">= .9", middle["regular"] >= 0.9)


ALL = (
    attack, carlini, smallest, data, doctor, kills, start, browser, fonts, manifold, learned, zoo,
    curves, sweeps, stacks, neighbours, distances, certificates, maps, search, tables, cure,
)  # fmt: skip
PARTS = {part.__name__: part for part in ALL}

if __name__ == "__main__":
    for chosen in sys.argv[1:] or PARTS:
        print(f"{chosen}: {PARTS[chosen].__doc__}")
        PARTS[chosen]()
