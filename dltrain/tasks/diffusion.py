"""Take noise away, step by step, until a row is left."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.errors import must, real, whole
from dltrain.tasks.task import Columns, Move, Task

WIDTH = 32  # numbers that tell a network the time and the class
LOOKS = 8  # times at which a row is looked at


class Diffusion(Task):
    """Denoising diffusion: trained as https://arxiv.org/abs/2006.11239, sampled as https://arxiv.org/abs/2010.02502.

    The network reads a row at a random time of `steps` and tells the noise in it, or its velocity, which says as much
    of a row that is next to nothing but noise (https://arxiv.org/abs/2202.00512). schedule=linear is of the first
    paper, cosine of https://arxiv.org/abs/2102.09672, sigmoid of https://arxiv.org/abs/2212.11972. Where the target is
    classes the network is told the row's, and with probability `drop` none, so that samples can be guided towards a
    class (https://arxiv.org/abs/2207.12598): `guidance` is 1 for none and more for samples that are surer. Samples
    take `sampling_steps`; `eta` from 0 to 1 is the share of noise that is drawn anew at each. Predicts how badly the
    noise in a row is told, on average over times, by which strange rows stand out.
    """

    draws = True

    def __init__(
        self,
        data: Any,
        model: Callable,
        tells: str = "noise",
        steps: int = 1000,
        schedule: str = "cosine",
        drop: float = 0.1,
        guidance: float = 1.0,
        sampling_steps: int = 50,
        eta: float = 0.0,
    ) -> None:
        super().__init__()
        must(tells in ("noise", "velocity"), "task.tells", "noise or velocity", tells)
        must(whole(steps, 2), "task.steps", "a whole number of at least 2", steps)
        must(schedule in [*SCHEDULES], "task.schedule", f"one of {', '.join(SCHEDULES)}", schedule)
        must(real(drop) and 0 <= drop <= 1, "task.drop", "from 0 to 1", drop)
        must(real(guidance), "task.guidance", "a number", guidance)
        fits = whole(sampling_steps, 1) and sampling_steps <= steps
        must(fits, "task.sampling_steps", f"a whole number from 1 to {steps}", sampling_steps)
        must(real(eta) and 0 <= eta <= 1, "task.eta", "from 0 to 1", eta)
        self.shape, self.drop, self.guidance, self.eta = data.shape_in, drop, guidance, eta
        self.velocity = tells == "velocity"
        # the middle of equal spans: the last time itself, of next to nothing but noise, would blow errors up
        self.times = ((torch.arange(sampling_steps).flip(0) + 0.5) * steps / sampling_steps).long()
        self.kept: Tensor  # (steps,) of the share of a row's variance that is its own, and not noise
        self.register_buffer("kept", SCHEDULES[schedule](steps).float(), persistent=False)
        self.classes = {"binary": 2, "classes": len(data.target.classes)}.get(data.target.kind, 0)
        self.often = torch.tensor(data.target.counts, dtype=torch.float32)  # of each class, training rows
        told = {"time", "conditions"} <= inspect.signature(model).parameters.keys()  # a network that is made for it
        self.network: nn.Module = (
            model(self.shape, self.shape, time=True, conditions=self.classes)
            if told
            else Denoiser(model, self.shape, self.classes)
        )

    def losses(self, batch: Mapping[str, Tensor]) -> Iterator[Move]:
        rows = batch["features"]
        times = torch.randint(len(self.kept), (len(rows),), device=rows.device)
        untold = torch.rand(len(rows), device=rows.device) < self.drop
        noise = torch.randn_like(rows)
        told = self._told(self.noised(rows, times, noise), times, self._condition(batch, untold))
        wanted = self.velocity_of(rows, times, noise) if self.velocity else noise
        yield "network", (told - wanted).square().flatten(1).mean(1).sum(), len(rows)

    def noised(self, rows: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """Rows as they are at their times: q(x_t | x_0)."""
        own, other = self._shares(times)
        return own * rows + other * noise

    def velocity_of(self, rows: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """The way on the circle from a row to the noise, where it stands at its time."""
        own, other = self._shares(times)
        return own * noise - other * rows

    def _shares(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """What of a row and what of the noise is in it at its time, whose squares add up to 1."""
        kept = self.kept[times].view(-1, *[1] * len(self.shape))
        return kept.sqrt(), (1 - kept).sqrt()

    def _told(self, rows: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        """What the network tells, whose times are of 1000 whatever the number of steps."""
        told: Tensor = self.network(rows, times * (1000 / len(self.kept)), condition).float()
        return told

    def _noise(self, rows: Tensor, times: Tensor, told: Tensor) -> Tensor:
        """The noise in rows at their times, from what is told of them."""
        own, other = self._shares(times)
        return other * rows + own * told if self.velocity else told

    def _condition(self, batch: Mapping[str, Tensor], untold: Tensor) -> Tensor:
        """(batch,) of classes, and the number after the last where none is told."""
        if "target" not in batch or not self.classes:
            return torch.full_like(untold, self.classes, dtype=torch.long)
        return torch.where(untold, self.classes, batch["target"].view(len(untold)).long())

    def predictions(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch, 1): the mean squared error of the noise that is told, over times from early to late."""
        rows = batch["features"]
        condition = self._condition({}, torch.ones(len(rows), dtype=torch.bool, device=rows.device))
        total = torch.zeros(len(rows), 1, device=rows.device)
        for time in range(len(self.kept) // (2 * LOOKS), len(self.kept), max(1, len(self.kept) // LOOKS)):
            draw = torch.Generator().manual_seed(time)  # a row's error is its own, whatever stands beside it
            noise = torch.randn(self.shape, generator=draw).to(rows.device).expand_as(rows)
            times = torch.full_like(condition, time)
            seen = self.noised(rows, times, noise)
            told = self._noise(seen, times, self._told(seen, times, condition))
            total += (told - noise).square().flatten(1).mean(1, keepdim=True) / LOOKS
        return total

    def columns(self, predictions: Tensor) -> Columns:
        return {"error": predictions[:, 0].numpy()}

    def sample(self, n: int, label: int | None = None) -> Tensor:
        """New rows (n, *shape), of a class if it is told; else of classes as frequent as among training rows."""
        rows = torch.randn(n, *self.shape)
        if label is not None or not self.classes:
            condition = torch.full((n,), label or 0)
        else:
            condition = self.often.multinomial(n, replacement=True).to(rows.device)
        for time, after in pairwise([*self.times.tolist(), None]):
            rows = self.step(rows, self._guided(rows, time, condition), time, after)
        return rows

    def step(self, rows: Tensor, noise: Tensor, time: int, after: int | None) -> Tensor:
        """Rows at an earlier time, or without any noise, from those at a time and the noise told in them."""
        kept, left = self.kept[time], torch.ones(()) if after is None else self.kept[after]
        clean = (rows - (1 - kept).sqrt() * noise) / kept.sqrt()
        anew = self.eta * ((1 - left) / (1 - kept) * (1 - kept / left)).sqrt()
        moved = left.sqrt() * clean + (1 - left - anew.square()).clamp(min=0).sqrt() * noise
        return moved + anew * torch.randn_like(rows) if self.eta else moved

    def _guided(self, rows: Tensor, time: int, condition: Tensor) -> Tensor:
        times = torch.full_like(condition, time)
        told = self._told(rows, times, condition)
        if self.guidance != 1 and self.classes:
            free = self._told(rows, times, torch.full_like(condition, self.classes))
            told = torch.lerp(free, told, self.guidance)
        return self._noise(rows, times, told)


class Denoiser(nn.Module):
    """Any network, told the time and the class as further features, or as one more channel: (batch, *shape) to same."""

    def __init__(self, model: Callable, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.more = (1, *shape[1:]) if len(shape) > 1 else (WIDTH,)
        self.embedding = nn.Embedding(classes + 1, WIDTH)  # of a class, the last of none
        self.told = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, prod(self.more)))
        self.network: nn.Module = model((shape[0] + self.more[0], *shape[1:]), shape)

    def forward(self, rows: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        told = self.told(positions(times, WIDTH) + self.embedding(condition))
        out: Tensor = self.network(torch.cat([rows, told.view(-1, *self.more).to(rows.dtype)], 1))
        return out


def positions(times: Tensor, width: int) -> Tensor:
    """(batch,) of times from 0 to 1000 as sines and cosines (batch, width): https://arxiv.org/abs/1706.03762."""
    half = width // 2
    speeds = torch.exp(-math.log(10_000) * torch.arange(half, device=times.device) / half)
    angles = times[:, None] * speeds
    return torch.cat([angles.sin(), angles.cos()], 1)


def linear(steps: int) -> Tensor:
    """(steps,) of variance kept, float64; the noise of 1000 steps, whatever their number."""
    scale = 1000 / steps
    return (1 - torch.linspace(1e-4 * scale, min(0.02 * scale, 0.999), steps, dtype=torch.float64)).cumprod(0)


def cosine(steps: int) -> Tensor:
    """(steps,) of variance kept, float64; no step adds more than 0.999 of noise."""
    turn = (torch.linspace(0, 1, steps + 1, dtype=torch.float64) + 0.008) / 1.008 * (math.pi / 2)
    kept = turn.cos().square()
    return (kept[1:] / kept[:-1]).clamp(min=0.001).cumprod(0)


def sigmoid(steps: int) -> Tensor:
    """(steps,) of variance kept, float64, from -3 to 3 on the curve."""
    ends = torch.tensor([-3.0, 3.0], dtype=torch.float64).sigmoid()
    curve = torch.linspace(-3, 3, steps + 1, dtype=torch.float64).sigmoid()
    return ((ends[1] - curve) / (ends[1] - ends[0])).clamp(min=1e-5)[1:]


SCHEDULES = {"linear": linear, "cosine": cosine, "sigmoid": sigmoid}
