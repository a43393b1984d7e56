"""Learn codes of rows without a target: two looks at one row shall be alike, and unlike other rows."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dltrain.augmentation import Augmentation
from dltrain.errors import must, real, whole
from dltrain.tasks.task import Columns, Move, Task


class Contrastive(Task):
    """SimCLR (https://arxiv.org/abs/2002.05709) on rows or images.

    A look at a signal or an image is changed as `look` says, the settings of dltrain.augmentation. Of any other row a
    share `corruption` of the features is replaced by those of other rows, as in SCARF
    (https://arxiv.org/abs/2106.15147); as a number it holds for signals and images too. Both get Gaussian `noise`. The
    network tells a code, a head of one hidden layer tells of the code what is compared, by the cosine over
    `temperature`. Rows are compared within a shard, so that the number of shards is part of the mathematics. Predicts
    the code.
    """

    draws = True

    def __init__(
        self,
        data: Any,
        model: Callable,
        code: int = 64,
        width: int = 128,
        temperature: float = 0.2,
        corruption: float | str = "auto",
        noise: float = 0.1,
        look: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        must(whole(code, 1), "task.code", "a whole number of at least 1", code)
        must(whole(width, 1), "task.width", "a whole number of at least 1", width)
        must(real(temperature) and temperature > 0, "task.temperature", "above 0", temperature)
        spatial = len(data.shape_in) > 1
        lent: Any = (0.0 if spatial else 0.3) if corruption == "auto" else corruption
        must(real(lent) and 0 <= lent < 1, "task.corruption", "in [0, 1), or auto", lent)
        must(real(noise) and noise >= 0, "task.noise", "at least 0", noise)
        self.temperature, self.corruption, self.noise = temperature, lent, noise
        self.change = Augmentation(tuple(data.shape_in), **look) if spatial and look else None
        self.network = Projected(model(data.shape_in, (code,)), code, width)

    def losses(self, batch: Mapping[str, Tensor]) -> Iterator[Move]:
        _, seen = self.network(torch.cat([self._look(batch["features"]), self._look(batch["features"])]))
        yield "network", self._unlike(seen.float()), len(batch["features"])

    def _look(self, rows: Tensor) -> Tensor:
        if self.change is not None:
            rows = self.change(rows, torch.randint(2**62, (len(rows),), device=rows.device))
        if self.corruption:
            others = rows[torch.randint(len(rows), (len(rows),), device=rows.device)]
            kept = torch.rand(rows.shape, device=rows.device) >= self.corruption
            rows = torch.where(kept, rows, others)
        return rows + self.noise * torch.randn_like(rows)

    def _unlike(self, seen: Tensor) -> Tensor:
        """The normalised temperature-scaled cross entropy of (2 * batch, width), a mean over both looks, summed."""
        seen, n = F.normalize(seen, dim=1), len(seen) // 2
        own = torch.eye(2 * n, dtype=torch.bool, device=seen.device)
        alike = (seen @ seen.T / self.temperature).masked_fill(own, -torch.inf)
        other = torch.arange(2 * n, device=seen.device).roll(n)
        return F.cross_entropy(alike, other, reduction="sum") / 2

    def predictions(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch, code)."""
        code: Tensor = self.network(batch["features"])[0].float()
        return code

    def columns(self, predictions: Tensor) -> Columns:
        return {f"code_{k + 1}": values for k, values in enumerate(predictions.numpy().T)}


class Projected(nn.Module):
    """(batch, *shape) to the code (batch, code), and what is compared, (batch, width)."""

    def __init__(self, encoder: nn.Module, code: int, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(code, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encoder(features)
        return code, self.head(code)
