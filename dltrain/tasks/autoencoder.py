"""Tell the features again from a short code."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.errors import must, real, whole
from dltrain.tasks.task import Columns, Move, Task


class Autoencoder(Task):
    """An encoder to `code` numbers and a decoder back, by the mean squared error (doi.org/10.1126/science.1127647).

    With `noise` above 0 the encoder reads features with Gaussian noise of that standard deviation added, and the
    decoder must tell them without (denoising, doi.org/10.1145/1390156.1390294). Predicts the code of a row and the
    error with which it is told again, by which strange rows stand out.
    """

    measured_on: tuple[str, ...] = ("features",)
    measures: Mapping[str, str] = {"mse": "min", "explained_variance": "max"}

    def __init__(self, data: Any, model: Callable, decoder: Callable, code: int = 8, noise: float = 0.0) -> None:
        super().__init__()
        must(whole(code, 1), "task.code", "a whole number of at least 1", code)
        must(real(noise) and noise >= 0, "task.noise", "at least 0", noise)
        self.code, self.noise, self.draws = code, noise, noise > 0
        self.network = Coder(model(data.shape_in, (code,)), decoder((code,), data.shape_in))

    def losses(self, batch: Mapping[str, Tensor]) -> Iterator[Move]:
        features = batch["features"]
        yield "network", errors(self.network(self._seen(features))[1], features).sum(), len(features)

    def _seen(self, features: Tensor) -> Tensor:
        return features + self.noise * torch.randn_like(features) if self.draws and self.training else features

    def predictions(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch, code + 1): the code, then the mean squared error of the row."""
        code, told = self.network(batch["features"])
        return torch.cat([code.float(), errors(told, batch["features"])[:, None]], 1)

    def metrics(self, predictions: Tensor, rows: Mapping[str, Tensor]) -> dict[str, float]:
        """The mean squared error, and the share of the features' variance that the code explains."""
        return told_again(predictions[:, -1], rows["features"])

    def columns(self, predictions: Tensor) -> Columns:
        values = predictions.numpy()
        return {f"code_{k + 1}": values[:, k] for k in range(self.code)} | {"error": values[:, -1]}


class Coder(nn.Module):
    """(batch, *shape) to the code (batch, code) and what is told again, (batch, *shape)."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encoder(features)
        return code, self.decoder(code)


def errors(told: Tensor, features: Tensor) -> Tensor:
    """(batch,) of mean squared errors."""
    return (told.float() - features).square().flatten(1).mean(1)


def told_again(error: Tensor, features: Tensor) -> dict[str, float]:
    """The mean squared error, and the share of the features' variance that is told again."""
    mse, variance = float(error.double().mean()), float(features.flatten(1).double().var(0, correction=0).mean())
    return {"mse": mse, "explained_variance": 1 - mse / variance if variance else 0.0}
