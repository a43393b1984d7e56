"""What keeps a network from fitting too closely: rules for rows, penalties, constraints, and when to stop."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.augmentation import Augmentation
from dltrain.errors import ConfigError, must, real, whole


class Target(Protocol):
    """What mixup asks of a target."""

    kind: str
    classes: tuple[str, ...]


class Regularizer:
    """Up to three verbs, each called at one place in the loop; a verb not overridden does nothing."""

    reads = "features"  # what its rows are made of; a task of another kind refuses it
    draws = False  # uses the random generator, which the loop seeds before each shard
    reads_activations = False  # its penalty needs the outputs of the activation layers, and sums over rows

    def __init__(self, players: list[str] | None = None) -> None:
        self.players = players

    def rows(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The rows of a shard as the network shall see them in training; `seed` is one number for a row and epoch."""
        return batch

    def penalty(self, network: nn.Module, activations: list[Tensor]) -> Tensor | None:
        """A scalar to add to the loss: once a step, or summed over a shard's rows if it reads activations."""
        return None

    def constrain(self, network: nn.Module) -> None:
        """Change the parameters after the step."""


class L1(Regularizer):
    """weight * sum |w| over weight matrices and kernels; biases and norms are free."""

    def __init__(self, weight: float = 1e-4, players: list[str] | None = None) -> None:
        super().__init__(players)
        self.weight = not_negative("regularizer.l1.weight", weight)

    def penalty(self, network: nn.Module, activations: list[Tensor]) -> Tensor | None:
        return summed([self.weight * matrix.abs().sum() for matrix in matrices(network)])


class L2(Regularizer):
    """weight * sum w^2 over weight matrices and kernels; biases and norms are free."""

    def __init__(self, weight: float = 1e-4, players: list[str] | None = None) -> None:
        super().__init__(players)
        self.weight = not_negative("regularizer.l2.weight", weight)

    def penalty(self, network: nn.Module, activations: list[Tensor]) -> Tensor | None:
        return summed([self.weight * matrix.square().sum() for matrix in matrices(network)])


class ElasticNet(Regularizer):
    """weight * (ratio * sum |w| + (1 - ratio) / 2 * sum w^2), as scikit-learn's ElasticNet with alpha and l1_ratio.

    scikit-learn halves the squared error, so its alpha is half of the weight that does the same beside loss=mse.
    """

    def __init__(self, weight: float = 1e-4, ratio: float = 0.5, players: list[str] | None = None) -> None:
        super().__init__(players)
        self.weight = not_negative("regularizer.elastic_net.weight", weight)
        must(real(ratio) and 0 <= ratio <= 1, "regularizer.elastic_net.ratio", "in [0, 1]", ratio)
        self.l1, self.l2 = weight * ratio, weight * (1 - ratio) / 2

    def penalty(self, network: nn.Module, activations: list[Tensor]) -> Tensor | None:
        return summed([self.l1 * matrix.abs().sum() + self.l2 * matrix.square().sum() for matrix in matrices(network)])


class MaxNorm(Regularizer):
    """Weights into one unit (a matrix's row, a kernel's output channel) scaled down to norm `limit` after a step."""

    def __init__(self, limit: float = 3.0, players: list[str] | None = None) -> None:
        super().__init__(players)
        self.limit = positive("regularizer.max_norm.limit", limit)

    @torch.no_grad()
    def constrain(self, network: nn.Module) -> None:
        for matrix in matrices(network):
            norms = matrix.flatten(1).norm(dim=1).clamp(min=self.limit)
            matrix.mul_((self.limit / norms).view(-1, *[1] * (matrix.ndim - 1)))


class Activity(Regularizer):
    """l1 * sum |a| + l2 * sum a^2 over the outputs of every activation layer, summed over rows."""

    reads_activations = True

    def __init__(self, l1: float = 1e-4, l2: float = 0.0, players: list[str] | None = None) -> None:
        super().__init__(players)
        self.l1, self.l2 = not_negative("regularizer.activity.l1", l1), not_negative("regularizer.activity.l2", l2)

    def penalty(self, network: nn.Module, activations: list[Tensor]) -> Tensor | None:
        terms = [self.l1 * a.abs().sum() for a in activations] if self.l1 else []
        return summed(terms + ([self.l2 * a.square().sum() for a in activations] if self.l2 else []))


class Noise(Regularizer):
    """Gaussian noise of standard deviation `std` on the features, in the pipeline's units."""

    draws = True

    def __init__(self, std: float = 0.1, players: list[str] | None = None) -> None:
        super().__init__(players)
        self.std = not_negative("regularizer.noise.std", std)

    def rows(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features = batch["features"]
        return batch | {"features": features + self.std * torch.randn_like(features)}


class Mixup(Regularizer):
    """Each row becomes a mixture with another row of its shard, share ~ Beta(alpha, alpha); https://arxiv.org/abs/1710.09412.

    Classes become probabilities (rows, classes). It couples rows, so results depend on the number of shards.
    """

    draws = True

    def __init__(self, target: Target, alpha: float = 0.2, players: list[str] | None = None) -> None:
        super().__init__(players)
        self.alpha = positive("regularizer.mixup.alpha", alpha)
        self.classes = len(target.classes) if target.kind == "classes" else 0

    def rows(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features = batch["features"]
        alpha = torch.full((len(features),), self.alpha, device=features.device)
        share = torch.distributions.Beta(alpha, alpha, validate_args=False).sample()
        other = torch.randperm(len(features), device=features.device)
        mixed = {"features": mix(features, share, other)}
        if "target" in batch:
            target = F.one_hot(batch["target"], self.classes) if self.classes else batch["target"]
            mixed["target"] = mix(target.to(features.dtype), share, other)
        if "weight" in batch:
            mixed["weight"] = mix(batch["weight"], share, other)
        return batch | mixed


@dataclass
class Augment(Augmentation, Regularizer):
    """Signals and images changed at random; what happens to a row is a function of the seed, the epoch and the row."""

    group: ClassVar[str] = "regularizer.augment"
    players: list[str] | None = None

    def __post_init__(self) -> None:
        if len(self.shape_in) not in (2, 3):
            raise ConfigError(
                "regularizer=augment must go with rows of shape (channels, length) or (channels, height, width), "
                f"got {tuple(self.shape_in)}; set data.shape or leave augment out"
            )
        super().__post_init__()

    def rows(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch | {"features": self(batch["features"], batch["seed"])}


class EarlyStopping(Regularizer):
    """Stop after `patience` evaluations without an improvement of the monitored metric by more than `min_delta`."""

    def __init__(self, patience: int = 10, min_delta: float = 0.0) -> None:
        super().__init__()
        must(whole(patience, 1), "regularizer.early_stopping.patience", "a whole number of at least 1", patience)
        self.patience, self.min_delta = patience, not_negative("regularizer.early_stopping.min_delta", min_delta)

    def improved(self, value: float, best: float | None, mode: str) -> bool:
        """Whether value beats best by more than min_delta, where mode is `min` or `max`; not a number never does."""
        if best is None:
            return value == value
        gain = best - value if mode == "min" else value - best
        return gain > self.min_delta

    def should_stop(self, evaluations_since_best: int) -> bool:
        """Whether patience is used up; asked once an evaluation."""
        return evaluations_since_best >= self.patience


# The order in which they are applied, whatever was typed.
ORDER: list[type[Regularizer]] = [L1, L2, ElasticNet, MaxNorm, Activity, Noise, Mixup, Augment, EarlyStopping]


def matrices(network: nn.Module) -> list[Tensor]:
    """Parameters that are matrices or kernels, and learn: neither biases nor norms."""
    return [p for p in network.parameters() if p.ndim > 1 and (p.requires_grad or not isinstance(p, nn.Parameter))]


def summed(terms: list[Tensor]) -> Tensor | None:
    """The sum of scalars, or None of none."""
    return torch.stack(terms).sum() if terms else None


def mix(values: Tensor, share: Tensor, other: Tensor) -> Tensor:
    """share of each row and the rest of the row that `other` names."""
    share = share.view(-1, *[1] * (values.ndim - 1))
    return share * values + (1 - share) * values[other]


def positive(setting: str, value: Any) -> float:
    """The value, a number above 0."""
    must(real(value) and value > 0, setting, "a number above 0", value)
    return float(value)


def not_negative(setting: str, value: Any) -> float:
    """The value, a number of at least 0."""
    must(real(value) and value >= 0, setting, "a number of at least 0", value)
    return float(value)
