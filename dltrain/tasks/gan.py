"""Make rows that a second network cannot tell from real ones."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

from dltrain.errors import must, real, whole
from dltrain.tasks.task import Columns, Move, Task

SLICES = 64  # directions along which samples and rows are compared


class GAN(Task):
    """A generator against a discriminator, which is the `model`.

    kind=nonsaturating is of https://arxiv.org/abs/1406.2661; kind=wasserstein has a critic without a bound whose
    gradient is held near 1 by a penalty, https://arxiv.org/abs/1704.00028. The discriminator moves
    `discriminator_steps` times for each move of the generator. Where the target is classes both are told the row's
    (https://arxiv.org/abs/1411.1784): the generator as further numbers, the discriminator by which of its outputs
    counts. The best epoch is the one whose samples are closest to validation rows. Predicts how real a row looks to
    the discriminator, as a row of the class for which it looks best.
    """

    draws = True
    measured_on = ("features",)
    measures: Mapping[str, str] = {"distance": "min"}

    def __init__(
        self,
        data: Any,
        model: Callable,
        generator: Callable,
        noise: int = 16,
        kind: str = "nonsaturating",
        discriminator_steps: int = 1,
        penalty: float = 10.0,
        players: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        must(whole(noise, 1), "task.noise", "a whole number of at least 1", noise)
        must(kind in ("nonsaturating", "wasserstein"), "task.kind", "nonsaturating or wasserstein", kind)
        must(
            whole(discriminator_steps, 1),
            "task.discriminator_steps",
            "a whole number of at least 1",
            discriminator_steps,
        )
        must(real(penalty) and penalty >= 0, "task.penalty", "at least 0", penalty)
        self.noise, self.wasserstein, self.penalty = noise, kind == "wasserstein", penalty
        self.classes = {"binary": 2, "classes": len(data.target.classes)}.get(data.target.kind, 0)
        self.often = torch.tensor(data.target.counts, dtype=torch.float32)  # of each class, training rows
        self.discriminator: nn.Module = model(data.shape_in, (self.classes or 1,))
        self.generator: nn.Module = generator((noise + self.classes,), data.shape_in)
        self.moves_a_step, self.player_settings = {"discriminator": discriminator_steps}, dict(players or {})

    def losses(self, batch: Mapping[str, Tensor]) -> Iterator[Move]:
        rows, kinds = batch["features"], self._kinds(batch)
        for _ in range(self.moves_a_step["discriminator"]):
            yield "discriminator", self._judged(rows, self._made(kinds).detach(), kinds), len(rows)
        looks = self._looks(self._made(kinds), kinds)
        yield "generator", -looks.sum() if self.wasserstein else softplus(-looks).sum(), len(rows)

    def _kinds(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch, classes) of 1 for a row's class and 0 for the others."""
        if not self.classes:
            return batch["features"].new_zeros(len(batch["features"]), 0)
        return one_hot(batch["target"].view(-1).long(), self.classes).to(batch["features"].dtype)

    def _made(self, kinds: Tensor) -> Tensor:
        noise = torch.randn(len(kinds), self.noise, device=kinds.device)
        made: Tensor = self.generator(torch.cat([noise, kinds], 1)).float()
        return made

    def _looks(self, rows: Tensor, kinds: Tensor) -> Tensor:
        """(batch, 1): how real rows look, as rows of their classes."""
        looks: Tensor = self.discriminator(rows).float()
        return (looks * kinds).sum(1, keepdim=True) if self.classes else looks

    def _judged(self, rows: Tensor, made: Tensor, kinds: Tensor) -> Tensor:
        """The discriminator's loss, summed: what is real shall score high, and what is made low."""
        high, low = self._looks(rows, kinds), self._looks(made, kinds)
        if not self.wasserstein:
            return softplus(-high).sum() + softplus(low).sum()
        loss: Tensor = low.sum() - high.sum()
        return loss + self.penalty * self._steepness(rows, made, kinds) if self.training else loss

    def _steepness(self, rows: Tensor, made: Tensor, kinds: Tensor) -> Tensor:
        """How far the gradient's norm is from 1, squared and summed, at random places between pairs of rows."""
        share = torch.rand(len(rows), *[1] * (rows.ndim - 1), device=rows.device)
        between = torch.lerp(made, rows, share).requires_grad_()
        [slope] = torch.autograd.grad(self._looks(between, kinds).sum(), between, create_graph=True)
        return (slope.flatten(1).norm(dim=1) - 1).square().sum()

    def predictions(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch, 1 + n): how real a row looks (a probability, unless Wasserstein), then a row that was made."""
        looks = self.discriminator(batch["features"]).float().amax(1, keepdim=True)
        looks = looks if self.wasserstein else looks.sigmoid()
        return torch.cat([looks, self.sample(len(looks)).flatten(1)], 1)

    def metrics(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> dict[str, float]:
        return {"distance": distance(predictions[:, 1:], rows["features"].flatten(1))}

    def monitor(self, name: str | None) -> tuple[str, str]:
        return super().monitor(name or "distance")

    def columns(self, predictions: Tensor) -> Columns:
        return {"realness": predictions[:, 0].numpy()}

    def sample(self, n: int, label: int | None = None) -> Tensor:
        """New rows (n, *shape), of a class if it is told; else of classes as frequent as among training rows."""
        device = next(self.generator.parameters()).device
        if not self.classes:
            return self._made(torch.empty(n, 0, device=device))
        drawn = self.often.multinomial(n, replacement=True) if label is None else torch.full((n,), label)
        return self._made(one_hot(drawn.to(device), self.classes).float())


def distance(made: Tensor, rows: Tensor) -> float:
    """The sliced Wasserstein distance of as many samples as rows, both (rows, n): https://arxiv.org/abs/1902.00434.

    The root mean square, over random directions and ranks, of what lies between the two along a direction.
    """
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(rows.shape[1], SLICES, generator=draw, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    apart = (made.double() @ directions).sort(0).values - (rows.double() @ directions).sort(0).values
    return float(apart.square().mean().sqrt())
