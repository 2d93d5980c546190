"""Training of the generative models behind `LearnedManifold`.

Two kinds. "vaegan": S's VAE-GAN, a variational autoencoder whose reconstructions must also pass a
discriminator (S, appendix; Larsen et al., ICML 2016). "flow": a variational autoencoder whose
likelihood is a Laplace one with a fitted scale (as Rybkin et al., ICML 2021, do for a Gaussian), so
that reconstruction and prior need no weight between them, and whose prior is a normalising flow
(Chen et al., ICLR 2017): the codes are pulled to where the flow is, and the flow goes to where the
codes are.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from tqdm.auto import tqdm

from .autoencoders import Autoencoder, Discriminator
from .checkpoints import Checkpoint
from .checks import brief, number, whole
from .files import digest
from .learned import KINDS, LearnedManifold
from .models import kept_random, seed_device
from .recipes import OneCycle
from .splits import Split
from .stats import generator

BATCH = 100
STEPS = {"flow": 3000, "vaegan": 1680}  # which take the same time
# S, table of the appendix: the weight of the reconstruction, for some digits one of its own
BETA: dict[str, float | tuple[float, ...]] = {
    "fonts": 3.0,
    "mnist": (2.75, 5.6, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5, 2.25, 2.5),
    "emnist": (2.75, 5.6, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5, 2.25, 2.5),
    "fashion": 2.75,
    "celeba": 3.0,
}


@dataclass(frozen=True)
class Settings:
    """How a manifold is learned. S's: kind "vaegan", width 64, kernel 6, and 9,600 (FONTS), 7,200
    (EMNIST) or 3,600 (Fashion-MNIST) `steps` a class, of 100 images each, ten times as many for one
    model of all; the learning rate falls here as over 30 epochs, in S by 10 % in each of 10, 30
    and 60.

    `beta` weighs the reconstruction of a VAE-GAN, one number or one a class (None: S's for the
    data set); `shared` trains one model for all classes, S's class-agnostic form. `steps` None:
    those of the comparison of both kinds, four times as many where one model learns all classes.
    """

    kind: str = KINDS[0]
    width: int = 16
    kernel: int = 4
    steps: int | None = None
    beta: float | tuple[float, ...] | None = None
    shared: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {brief(self.kind)}")
        if self.steps is None:
            many = 4 if self.shared else 1
            object.__setattr__(self, "steps", many * STEPS[self.kind])
        for name, least in (("width", 1), ("kernel", 4), ("steps", 1), ("seed", 0)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        if self.kernel % 2:
            raise ValueError(f"kernel must be even, 4 or 6; got {self.kernel}")
        if not isinstance(self.shared, bool):
            raise ValueError(f"shared must be True or False; got {brief(self.shared)}")
        if self.beta is not None:
            many = isinstance(self.beta, tuple)
            weights = tuple(
                number("beta", beta, "a positive number", lambda v: 0 < v < math.inf)
                for beta in (self.beta if many else (self.beta,))  # type: ignore[union-attr]
            )
            object.__setattr__(self, "beta", weights if many else weights[0])

    @property
    def couplings(self) -> int:
        """Layers of the flow."""
        return 8 if self.kind == "flow" else 0


def train(
    split: Split,
    settings: Settings = Settings(),
    *,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
) -> LearnedManifold:
    """Learn the manifold of a split's images, class after class, on the split's device.

    `checkpoint` names a folder, in which every class keeps its state: a run that was killed goes
    on and ends with the same weights, bit for bit. Raises ValueError where the images are too
    small, a class has none, a flow is given a `beta`, or the training diverges.
    """
    if not isinstance(settings, Settings):
        raise ValueError(f'settings must be Settings, Settings("flow") say; got {brief(settings)}')
    named = checkpoint is None or isinstance(checkpoint, str | os.PathLike)
    if not named or (checkpoint is not None and Path(checkpoint).is_file()):
        raise ValueError(f"checkpoint must name a folder; got {brief(checkpoint)}")
    if not isinstance(split, Split) or split.dataset is None:
        raise ValueError(f"split must be one of a data set, data.train() say; got {brief(split)}")
    if settings.kind == "flow" and settings.beta is not None:
        raise ValueError("beta weighs the reconstruction of a VAE-GAN; a flow needs none: leave it")
    data, classes = split.dataset, len(split.dataset.classes)
    if min(data.shape[1:]) < 8:
        raise ValueError(f"images must be 8 pixels or more a side; these are {data.shape}")
    if split.dtype != torch.float32 or split.shape != data.shape:
        raise ValueError(f"images must be float32 {data.shape}, as {data.title} has them")
    counts = torch.bincount(split.y, minlength=classes)
    if not settings.shared and counts.min() == 0:
        missing = data.classes[int(counts.argmin())]
        raise ValueError(f"no image is of class {missing}: give it some, or learn one shared model")
    runs = 1 if settings.shared else classes
    beta = settings.beta if settings.beta is not None else BETA.get(data.name, 3.0)
    if settings.beta is None and settings.shared and not isinstance(beta, float):
        beta = 3.0  # S's for one model of all classes
    betas = beta if isinstance(beta, tuple) else (beta,) * runs
    if len(betas) != runs:
        raise ValueError(f"beta must be one number or {runs}, one a model; got {len(betas)}")
    began, networks, codes = time.perf_counter(), [], []
    resumed = checkpoint is not None and Path(checkpoint).exists()
    with tqdm(total=runs * (settings.steps or 0), unit="step", disable=not progress) as bar:
        for label in range(runs):
            part = split if settings.shared else split[split.y == label]
            path = None if checkpoint is None else Path(checkpoint) / f"{label}.safetensors"
            bar.set_description("all classes" if settings.shared else data.classes[label])
            one = replace(settings, beta=betas[label])
            network = _Run(part, one, label, path).finish(bar).folded()
            networks.append(network.cpu())
            codes.append(_codes(network, part))
    about = {
        "kind": settings.kind,
        "title": data.title,
        "classes": classes,
        "shape": list(data.shape),
        "width": settings.width,
        "kernel": settings.kernel,
        "couplings": settings.couplings,
        "shared": settings.shared,
        "networks": runs,
        "settings": str(settings),
        "parameters": sum(p.numel() for p in networks[0].parameters()),
        "data": f"{len(split):,} training images of {data.title}",
        "data_sha256": digest(split.content()),
        "minutes": None if resumed else round((time.perf_counter() - began) / 60, 1),
        "hardware": f"{torch.get_num_threads()} thread(s), {platform.machine()} CPU"
        if split.y.device.type == "cpu"
        else split.y.device.type,
        "torch": torch.__version__,
        "date": str(date.today()),
    }
    low = torch.stack([code.amin(0) for code in codes]).amin(0)
    high = torch.stack([code.amax(0) for code in codes]).amax(0)
    return LearnedManifold(networks, low, high, about)


class _Run:
    """One model and its training."""

    def __init__(self, part: Split, settings: Settings, label: int, path: Path | None) -> None:
        self.part, self.settings = part, settings
        self.key = (settings.seed, label)
        device, shape = part.y.device, tuple(part.dataset.shape)  # type: ignore[union-attr]
        form = {"shape": shape, "width": settings.width, "kernel": settings.kernel}
        self.model = Autoencoder(
            int(torch.randint(2**62, (1,), generator=generator(*self.key, 0))),
            couplings=settings.couplings, **form,  # type: ignore[arg-type]
        ).to(device)  # fmt: skip
        self.critic = Discriminator(settings.seed, **form).to(device)  # type: ignore[arg-type]
        model, gan = self.model, settings.kind == "vaegan"
        self.groups = {
            "encoder": [*model.body.parameters(), *model.mean.parameters(),
                        *model.spread.parameters()],
            "decoder": [*model.decoder.parameters(), *model.flow.parameters()],
            "critic": list(self.critic.parameters()),
        }  # fmt: skip
        if not gan:
            del self.groups["critic"]
        self.optimizers = {
            name: torch.optim.Adam(
                group, lr=0.0, betas=(0.5, 0.9) if gan else (0.9, 0.999),
                weight_decay=1e-4 if gan else 0.0,
            )
            for name, group in self.groups.items()
        }  # fmt: skip
        self.gradients: Callable[[Tensor, Tensor], list[tuple[Tensor, ...]]] = (
            self._vaegan if gan else self._flow
        )
        models: dict[str, nn.Module] = {"model": self.model}
        if gan:
            models["critic"] = self.critic
        kept = {f"adam-{name}": optimizer for name, optimizer in self.optimizers.items()}
        self.file = Checkpoint(path, models, kept, part.content(), str(settings))

    def finish(self, bar: tqdm) -> Autoencoder:
        """Train to the end; the autoencoder in eval mode."""
        n, device, steps = len(self.part), self.part.y.device, self.settings.steps or 0
        start = self.file.resume()
        bar.update(start)
        if start < steps and not self.settings.shared:
            _ = self.part.x  # decoded once and kept, for one class that is little
        batches, order = math.ceil(n / BATCH), torch.empty(0)
        self.model.train()
        with kept_random(device):
            for step in range(start, steps):
                epoch, place = divmod(step, batches)
                if place == 0 or step == start:
                    order = torch.randperm(n, generator=generator(*self.key, 1, epoch))
                rows = order[(torch.arange(BATCH) + place * BATCH) % n].to(device)
                seed_device(device, int(torch.randint(2**62, (1,), generator=generator(
                    *self.key, 2, step))))  # fmt: skip
                x = self.part[rows].x
                noise = torch.randn(len(x), self.model.mean.out_features, device=device)
                gradients = self.gradients(x, noise)
                rate = self._rate(step / steps)
                # all gradients first, then all steps: a step changes what the others differentiate
                for (name, group), parts in zip(self.groups.items(), gradients):
                    for parameter, gradient in zip(group, parts):
                        parameter.grad = gradient
                    self.optimizers[name].param_groups[0]["lr"] = rate
                    self.optimizers[name].step()
                bar.update()
                self.file.save(step + 1, due=step + 1 == steps)
        for group in self.groups.values():
            for parameter in group:
                parameter.grad = None
        if not all(p.isfinite().all() for p in self.model.parameters()):
            raise ValueError("the training has diverged to NaN or infinity: try another seed")
        return self.model.eval()

    def _rate(self, done: float) -> float:
        """Learning rate. A VAE-GAN's falls by 10 % an epoch in S, over 10 to 60 epochs: here by as
        much as over 30 of them, whatever the number of steps."""
        if self.settings.kind == "flow":
            return OneCycle(0.005)(done, 1)
        return 0.005 * 0.9 ** (1 + 30 * done)

    def _flow(self, x: Tensor, noise: Tensor) -> list[tuple[Tensor, ...]]:
        """The negative evidence bound an image, with the Laplace scale that fits the batch best:
        784 log(mean absolute error) + KL(q(z | x), flow), for 784 pixels."""
        mean, spread = self.model.posterior(x)
        u = mean + (spread / 2).exp() * noise
        z, volume = self.model.flow(u)
        error = (self.model.decoder(u) - x).abs().mean()
        from_prior = z.square() - noise.square() - spread  # twice log q(u | x) - log p(u), less
        kl = from_prior.sum(1) / 2 - volume  # what is constant in both
        loss = x[0].numel() * error.log() + kl.mean()
        return self._split(loss)

    def _split(self, loss: Tensor) -> list[tuple[Tensor, ...]]:
        encoder, decoder = self.groups["encoder"], self.groups["decoder"]
        gradients = torch.autograd.grad(loss, [*encoder, *decoder])
        return [gradients[: len(encoder)], gradients[len(encoder) :]]

    def _vaegan(self, x: Tensor, noise: Tensor) -> list[tuple[Tensor, ...]]:
        """The three losses of S, sums over the batch: KL + L for the encoder and L for the decoder,
        with L = beta |dec(z) - x|_1 - log D(dec(z)), and the discriminator's cross-entropy, whose
        only fakes are reconstructions."""
        assert isinstance(self.settings.beta, float | int)
        mean, spread = self.model.posterior(x)
        y = self.model.decoder(mean + (spread / 2).exp() * noise)
        fake, real = self.critic(y), self.critic(x)
        kl = (mean.square() + spread.exp() - 1 - spread).sum() / 2
        passing = self.settings.beta * (y - x).abs().sum() + softplus(-fake).sum()
        told_apart = softplus(-real).sum() + softplus(fake).sum()
        encoder, decoder = self.groups["encoder"], self.groups["decoder"]
        # the divergence does not reach the decoder: one pass serves both
        both = torch.autograd.grad(kl + passing, [*encoder, *decoder], retain_graph=True)
        critic = torch.autograd.grad(told_apart, self.groups["critic"])
        return [both[: len(encoder)], both[len(encoder) :], critic]


def _codes(network: Autoencoder, part: Split) -> Tensor:
    with torch.no_grad():
        return torch.cat([network.encode(part[i : i + 1000].x.cpu()) for i in range(
            0, len(part), 1000)])  # fmt: skip
