"""Tell the features again from a code that is drawn, so that a code drawn at random tells new rows."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.errors import must, real, whole
from dltrain.tasks.autoencoder import errors, told_again
from dltrain.tasks.task import Columns, Move, Task


class VAE(Task):
    """A variational autoencoder (https://arxiv.org/abs/1312.6114).

    The code of a row is normal around a mean, and the features are normal around what the decoder tells, with one
    standard deviation that is learnt. The loss is the negative evidence lower bound in nats a row, with `beta` times
    the divergence of the code from a standard normal (https://openreview.net/forum?id=Sy2fzU9gl).
    """

    draws = True
    measured_on = ("features",)
    measures: Mapping[str, str] = {"mse": "min", "explained_variance": "max"}

    def __init__(self, data: Any, model: Callable, decoder: Callable, code: int = 8, beta: float = 1.0) -> None:
        super().__init__()
        must(whole(code, 1), "task.code", "a whole number of at least 1", code)
        must(real(beta) and beta >= 0, "task.beta", "at least 0", beta)
        self.code, self.beta = code, beta
        self.network = VariationalCoder(model(data.shape_in, (2, code)), decoder((code,), data.shape_in))

    def losses(self, batch: Mapping[str, Tensor]) -> Iterator[Move]:
        mean, log_variance, told, log_std = self.network(batch["features"])
        residual = (told - batch["features"]).flatten(1)
        unlikely = (0.5 * (residual / log_std.exp()).square() + log_std + 0.5 * math.log(2 * math.pi)).sum(1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        yield "network", (unlikely + self.beta * divergence).sum(), len(residual)

    def predictions(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch, code + 1): the mean of the code, then the mean squared error of the row told from it."""
        mean, _, told, _ = self.network(batch["features"], draw=False)
        return torch.cat([mean, errors(told, batch["features"])[:, None]], 1)

    def metrics(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> dict[str, float]:
        return told_again(predictions[:, -1], rows["features"])

    def columns(self, predictions: Tensor) -> Columns:
        values = predictions.numpy()
        return {f"code_{k + 1}": values[:, k] for k in range(self.code)} | {"error": values[:, -1]}

    def sample(self, n: int) -> Tensor:
        told: Tensor = self.network.decoder(torch.randn(n, self.code)).float()
        return told


class VariationalCoder(nn.Module):
    """(batch, *shape) to mean and log variance of the code, both (batch, code), what is told again, and its log std."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.log_std = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor, draw: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(features).float().unbind(1)
        log_variance = log_variance.clamp(-20, 20)  # of which exp is a finite number
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if draw else mean
        return mean, log_variance, self.decoder(code).float(), self.log_std.clamp(-10, 10)
