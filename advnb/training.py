"""The one training loop: `fit(model, split, recipe)`, which resumes exactly after a kill."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from .checkpoints import Checkpoint
from .checks import brief, number, whole
from .models import device_of, full_precision, kept_random, probe, seed_device
from .recipes import Part, Recipe
from .recorded import Recorded
from .splits import Split
from .stacks import Stack
from .stats import generator


def fit(
    model: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    epochs: int = 20,
    seed: int | Sequence[int] = 0,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
) -> nn.Module:
    """Train `model` in place on its own device and give it back in eval mode.

    Every epoch visits ceil(N / batch) batches of a fresh permutation, the last one filled from
    the front (S). Everything random is decided by (seed, step), so a run that was killed and
    started again with the same `checkpoint` file ends with the same weights, bit for bit, as
    one that was not. The file is written every epoch and every 30 seconds, and stays.

    A `Stack` of S networks takes S seeds, and each network learns what it would alone with its
    own: its batches, its starts. On an NVIDIA GPU the attacks' steps run as CUDA graphs
    (`advnb.recorded`), where every step runs (`keep="strongest"`).

    Raises ValueError where split, model or checkpoint do not fit the run, OSError where the
    checkpoint cannot be written.
    """
    epochs = whole("epochs", epochs, 1)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"fit needs a Recipe, recipes.normal() say; got {brief(recipe)}")
    if checkpoint is not None:
        if not isinstance(checkpoint, str | os.PathLike):
            raise ValueError(f"checkpoint must name a file; got {brief(checkpoint)}")
        parents = Path(checkpoint).absolute().parents
        above = next((folder for folder in parents if folder.exists()), Path())
        if Path(checkpoint).is_dir() or not above.is_dir():
            what = "is a folder" if Path(checkpoint).is_dir() else "cannot be written"
            raise ValueError(f"checkpoint must name a file; {checkpoint} {what}")
    seeds = list(seed) if isinstance(seed, Sequence) else [seed]
    count = model.networks if isinstance(model, Stack) else 1
    if len(seeds) != count:
        raise ValueError(f"{count} networks need as many seeds; got {brief(seed)}")
    probe(model, split)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "the model has no parameter to train: call its requires_grad_(), or give another"
        )
    batches = math.ceil(len(split) / recipe.batch_size)
    total = epochs * batches
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(
        parameters, lr=0.0, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    odd = _untold(recipe)
    if checkpoint is not None and odd:
        raise ValueError(
            f"a checkpoint knows a recipe by its text, where {brief(odd)} says too little: give "
            "it a function with a name, or a class with a repr (a dataclass has one)"
        )
    told = re.sub(r" at 0x[0-9a-f]+", "", str(recipe))  # where a function lies is no matter
    told = f"{told} epochs={epochs} seed={seed if isinstance(seed, int) else seeds}"
    content = {} if checkpoint is None else split.content()  # every image in floats
    run = Checkpoint(checkpoint, {"model": model}, {"adam": optimizer}, content, told)
    start = run.resume()
    device = device_of(model)
    pools, searches = _pools(split, recipe), _searches(model, recipe)
    numbers = range(len(recipe.parts))
    updates = [[k] for k in numbers] if recipe.apart else [list(numbers)]
    bar = tqdm(total=total, initial=start, unit="step", disable=not progress, desc="training")
    loss_mean = hits_mean = 0.0
    step = start
    with kept_random(device), full_precision(device), bar:
        try:
            for step in range(start, total):
                epoch, batch = divmod(step, batches)
                if batch == 0 or step == start:
                    orders = [
                        torch.randperm(len(split), generator=generator(s, 0, epoch)) for s in seeds
                    ]
                seed_device(device, _draw(seeds[0], 1, step))  # for dropout and its like
                now = epoch + batch / batches
                for group in optimizer.param_groups:
                    group["lr"] = number(
                        "the schedule's rate", recipe.schedule(now, epochs), "a number >= 0",
                        lambda v: 0 <= v < math.inf,
                    )  # fmt: skip
                growth = min(1.0, now / recipe.warmup) if recipe.warmup else 1.0
                pieces = _pieces(split, recipe, pools, orders, batch, (seeds, epoch))
                hits, losses = 0, []
                for update in updates:
                    parts = [pieces[k].to(device) for k in update]
                    images = [
                        _images(
                            model, part, searches[k], growth, [_draw(s, 2, step, k) for s in seeds]
                        )
                        for k, part in zip(update, parts)
                    ]
                    model.train()
                    outputs = _outputs(model, images, count)
                    means = [
                        _loss(recipe.parts[k], model, x, output, part.y, growth)
                        for k, x, output, part in zip(update, images, outputs, parts)
                    ]
                    loss = torch.stack(means).mean() * count  # each network has a mean of its own
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.item() / count)
                    hits += sum(int((o.argmax(1) == p.y).sum()) for o, p in zip(outputs, parts))

                share = 1 / min(step - start + 1, 50)  # a running mean over about 50 steps
                loss_mean += share * (sum(losses) / len(losses) - loss_mean)
                hits_mean += share * (hits / (count * recipe.batch_size) - hits_mean)
                told = f"loss {loss_mean:.3f}, accuracy {hits_mean:.1%}"
                bar.set_postfix_str(told, refresh=False)
                bar.update()
                run.save(step + 1, due=batch == batches - 1)
        except KeyboardInterrupt:
            if run.kept:
                print(
                    f"stopped at step {step:,} of {total:,}, {run.kept:,} are kept: make the model "
                    "as before, and the same call goes on there"
                )
            raise
        finally:  # however it ends: in eval mode, without gradients
            optimizer.zero_grad()
            model.eval()
    return model


def _untold(recipe: Recipe) -> str:
    """What a recipe's text leaves open; empty where it tells all."""
    named: list[object] = [part.loss for part in recipe.parts]
    for attack in (part.attack for part in recipe.parts if part.attack):
        named += [attack.loss, getattr(attack.set, "manifold", None)]
    modules = [str(one) for one in named if isinstance(one, nn.Module)]  # theirs lacks weights
    # a long tensor is told in part
    odd = re.findall(r"<lambda>|\S*<locals>\S*|<[^<>]* object|\S*tensor\([^)]*\.\.\.", str(recipe))
    return next(iter(modules + odd), "")


def _outputs(model: nn.Module, images: list[Tensor], count: int) -> list[Tensor]:
    """The logits of each part's images, to learn from: one pass for all of a network's parts.
    ValueError where nothing can be learned."""
    sizes = [len(x) // count for x in images]
    x = torch.cat([x.unflatten(0, (count, -1)) for x in images], 1).flatten(0, 1)
    try:
        output = model(x)
    except ValueError as error:  # batch normalisation over a single row is one
        why = " ".join(str(error).split())[:120]
        raise ValueError(
            f"the model cannot train on batches of {sum(sizes)} ({why}): make batch_size larger"
        ) from None
    if not output.isfinite().all():
        if output.dtype == torch.float16:
            raise ValueError("float16 is too coarse to train in: take float32")
        raise ValueError(
            "the training has diverged to NaN or infinity: lower the schedule's learning rate"
        )
    if not output.requires_grad:
        raise ValueError("the output is cut off from the weights: remove detach() or no_grad()")
    parts = output.unflatten(0, (count, -1)).split(sizes, 1)
    return [part.flatten(0, 1) for part in parts]


def _pools(split: Split, recipe: Recipe) -> list[Tensor | None]:
    """For each part the positions that its images may come from; None where all may."""
    pools: list[Tensor | None] = []
    for part in recipe.parts:
        if part.within is None or part.attack is None:
            pools.append(None)
            continue
        code = part.attack.set.region(split).origin
        if code.shape == split.x.shape:
            raise ValueError("within is for sets that search a code, not for pixels: leave it out")
        safe = (code.flatten(1).abs() <= part.within).all(1).nonzero()[:, 0].cpu()
        if not len(safe):
            raise ValueError(f"no image has a code within {part.within:g}: make `within` larger")
        pools.append(safe)
    return pools


def _pieces(
    split: Split,
    recipe: Recipe,
    pools: list[Tensor | None],
    orders: list[Tensor],
    number: int,
    key: tuple[list[int], int],
) -> list[Split]:
    """Batch `number` of an epoch part by part, the rows of each network's order after those of
    another's; a part with a pool has an order of its own, from (seeds, epoch)."""
    pieces, start = [], number * recipe.batch_size
    seeds, epoch = key
    for k, (pool, count) in enumerate(zip(pools, recipe.counts())):
        of = [order[(torch.arange(count) + start) % len(order)] for order in orders]
        if pool is not None:
            at = (torch.arange(count) + number * count) % len(pool)
            streams = [generator(seed, 3, epoch, k) for seed in seeds]
            of = [pool[torch.randperm(len(pool), generator=stream)][at] for stream in streams]
        pieces.append(split[torch.cat(of)])
        start += count
    return pieces


def _searches(model: nn.Module, recipe: Recipe) -> list[Recorded | None]:
    """What attacks each part's images; None for clean ones."""
    return [Recorded(part.attack, model) if part.attack else None for part in recipe.parts]


def _images(
    model: nn.Module, piece: Split, search: Recorded | None, growth: float, seeds: list[int]
) -> Tensor:
    """A part's images, attacked where the recipe says so, the radius times `growth`."""
    if search is None or growth == 0:
        return piece.x
    model.eval()
    if growth < 1:  # another set in every step
        attack = replace(search.attack, set=search.attack.set.scaled(growth))
        search = Recorded(attack, model, able=False)
    return search(piece, seeds)


def _loss(
    part: Part, model: nn.Module, x: Tensor, output: Tensor, y: Tensor, growth: float
) -> Tensor:
    """What a part's images are learned by; ValueError where its own loss is of no use."""
    if part.loss is None:
        return cross_entropy(output, y)
    loss = part.loss(model, x, output, y, growth)
    if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
        what = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"a part's loss must be one number that keeps the way back to the weights; got {what}"
        )
    if not loss.isfinite():
        raise ValueError("the loss is NaN or infinite: lower the schedule's learning rate")
    return loss


def _draw(*key: int) -> int:
    return int(torch.randint(2**62, (1,), generator=generator(*key)))
