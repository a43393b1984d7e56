"""What is minimised: losses as sums over rows, and the link from a network's output to a prediction."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.errors import ConfigError, must, real

KINDS = {"number": "numbers", "binary": "two classes", "classes": "classes", "multilabel": "several yes/no columns"}
KINDS["tokens"] = "tokens"  # of a text: they are classes, too many to be listed
USE = {"number": "mse", "binary": "bce", "classes": "cross_entropy", "multilabel": "bce", "tokens": "cross_entropy"}


class Target(Protocol):
    """What a loss asks of a target."""

    kind: str
    names: tuple[str, ...]
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    transform: str


class Loss:
    """A loss of rows for one target; raises ConfigError where the target's kind does not fit.

    `shape_out` is what the network must give. A weighted mean divides by the sum of the weights, as torch's does.
    """

    kinds: ClassVar[tuple[str, ...]] = ("number",)
    shape_out: tuple[int, ...]

    def __init__(self, target: Target) -> None:
        name = NAMES[type(self)]
        if target.kind not in self.kinds:
            as_numbers = "number" in self.kinds and counts(target)
            taken = " or ".join(KINDS[kind] for kind in self.kinds if kind != "tokens")
            raise ConfigError(
                f"loss={name} must go with a target of {taken}, "
                f"got {KINDS[target.kind]} ({', '.join(target.names)}); use loss={USE[target.kind]} or loss=auto"
                + (f", or data.columns.{target.names[0]}=number" if as_numbers else "")
            )
        self.columns = len(target.names)
        self.shape_out = (self.columns,)

    def elements(self, output: Tensor, target: Tensor, reduction: str) -> Tensor:
        """The loss of every element, or their sum, by reduction `none` or `sum`."""
        raise NotImplementedError

    def __call__(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor | int]:
        """(batch, *shape_out) and the target to the sum of the loss over rows, and what it is a mean over.

        The loss of a row is the mean over its columns.
        """
        if weight is None:
            total = self.elements(output, target, "sum")
            return (total if self.columns == 1 else total / self.columns), len(output)
        rows = self.elements(output, target, "none").flatten(1).mean(1)
        return (rows * weight).sum(), weight.sum()

    def predict(self, output: Tensor) -> Tensor:
        """The output as a prediction: (batch, columns) in the target's standardised units, or probabilities."""
        return output


class MSE(Loss):
    """Squared error."""

    def elements(self, output: Tensor, target: Tensor, reduction: str) -> Tensor:
        return F.mse_loss(output, target, reduction=reduction)


class MAE(Loss):
    """Absolute error: the prediction is a median."""

    def elements(self, output: Tensor, target: Tensor, reduction: str) -> Tensor:
        return F.l1_loss(output, target, reduction=reduction)


class Huber(Loss):
    """Squared within `delta` standard deviations of the target, linear beyond: an outlier's pull is bounded."""

    def __init__(self, target: Target, delta: float = 1.0) -> None:
        super().__init__(target)
        must(real(delta) and delta > 0, "loss.delta", "a number above 0", delta)
        self.delta = delta

    def elements(self, output: Tensor, target: Tensor, reduction: str) -> Tensor:
        return F.huber_loss(output, target, reduction=reduction, delta=self.delta)


class Quantile(Loss):
    """Pinball loss of quantiles: (batch, columns, quantiles); predict gives the one nearest the median."""

    def __init__(self, target: Target, quantiles: float | Sequence[float] = (0.1, 0.5, 0.9)) -> None:
        super().__init__(target)
        values: list[Any] = list(quantiles) if isinstance(quantiles, Sequence) else [quantiles]
        right = bool(values) and all(real(q) and 0 < q < 1 for q in values)
        must(right, "loss.quantiles", "between 0 and 1, one number or a list", quantiles)
        self.quantiles = torch.tensor(values)
        self.median = min(range(len(values)), key=lambda i: abs(values[i] - 0.5))
        self.shape_out = (self.columns, len(values))

    def elements(self, output: Tensor, target: Tensor, reduction: str) -> Tensor:
        error = target.unsqueeze(-1) - output
        q = self.quantiles.to(output)
        pinball = torch.maximum(q * error, (q - 1) * error).mean(-1)
        return pinball.sum() if reduction == "sum" else pinball

    def predict(self, output: Tensor) -> Tensor:
        return output[..., self.median]


class Poisson(Loss):
    """Poisson likelihood of counts; the network gives the logarithm of the mean, predict the mean."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        if target.transform != "none":
            raise ConfigError(f"data.target_transform must be none with loss=poisson, got {target.transform}")

    def elements(self, output: Tensor, target: Tensor, reduction: str) -> Tensor:
        return F.poisson_nll_loss(output, target, reduction=reduction)

    def predict(self, output: Tensor) -> Tensor:
        return output.exp()


class GaussianNLL(Loss):
    """Gaussian likelihood with a variance for every row: (batch, columns, 2) are mean and log variance."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.shape_out = (self.columns, 2)

    def elements(self, output: Tensor, target: Tensor, reduction: str) -> Tensor:
        mean, log_variance = output.unbind(-1)
        log_variance = log_variance.clamp(min=-14)  # a variance of 1e-6: without a floor the likelihood has no maximum
        rows = 0.5 * (log_variance + (target - mean).square() * torch.exp(-log_variance))
        return rows.sum() if reduction == "sum" else rows

    def predict(self, output: Tensor) -> Tensor:
        return output[..., 0]


class CrossEntropy(Loss):
    """Softmax cross-entropy of (batch, classes); targets are class numbers (batch,) or probabilities (batch, classes).

    A target of two classes, (batch, 1) between 0 and 1, gets two outputs; predict gives the second's probability.
    """

    kinds = ("classes", "binary", "tokens")

    def __init__(
        self, target: Target, label_smoothing: float = 0.0, class_weights: str | Sequence[float] | None = None
    ) -> None:
        super().__init__(target)
        self.binary = target.kind == "binary"
        self.smoothing = smoothing(label_smoothing)
        self.weights = weights_of_classes(target, class_weights)
        self.shape_out = (len(target.classes),)

    def rows(self, output: Tensor, target: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
        """The loss of every row, or their sum, by reduction `none` or `sum`."""
        return F.cross_entropy(output, target, weights, reduction=reduction, label_smoothing=self.smoothing)

    def __call__(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor | int]:
        if self.binary:
            target = torch.cat([1 - target, target], dim=1).to(output)
        weights = None if self.weights is None else self.weights.to(output)
        if weight is None and weights is None:
            return self.rows(output, target, None, "sum"), len(output)
        share = torch.ones_like(output[:, 0]) if weight is None else weight
        counted = share
        if weights is not None:
            counted = share * (target @ weights if target.is_floating_point() else weights[target])
        return (self.rows(output, target, weights, "none") * share).sum(), counted.sum()

    def predict(self, output: Tensor) -> Tensor:
        probabilities = output.softmax(1)
        return probabilities[:, 1:] if self.binary else probabilities


class NLL(CrossEntropy):
    """Negative log-likelihood of the log-softmax: cross-entropy without smoothing."""

    def __init__(self, target: Target, class_weights: str | Sequence[float] | None = None) -> None:
        super().__init__(target, class_weights=class_weights)


class Focal(CrossEntropy):
    """Cross-entropy in which a class already given probability p counts (1 - p)^gamma; https://arxiv.org/abs/1708.02002."""

    def __init__(self, target: Target, gamma: float = 2.0, class_weights: str | Sequence[float] | None = None) -> None:
        super().__init__(target, class_weights=class_weights)
        must(real(gamma) and gamma >= 0, "loss.gamma", "a number of at least 0", gamma)
        self.gamma = gamma

    def rows(self, output: Tensor, target: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
        log_p = output.log_softmax(1)
        # 1 - p by expm1; clamped because (1 - p)^gamma has an infinite slope at p = 1 where gamma < 1
        loss = -((-torch.expm1(log_p)).clamp(min=1e-12) ** self.gamma) * log_p
        if weights is not None:
            loss = loss * weights
        soft = target if target.is_floating_point() else F.one_hot(target, output.shape[1])
        rows = (loss * soft).sum(1)
        return rows.sum() if reduction == "sum" else rows


class BCE(Loss):
    """Sigmoid cross-entropy of (batch, columns) with targets between 0 and 1: two classes or several yes/no columns.

    `class_weights` are those of no and yes for two classes, and the weight of yes in each column otherwise.
    """

    kinds = ("binary", "multilabel")

    def __init__(
        self, target: Target, label_smoothing: float = 0.0, class_weights: str | Sequence[float] | None = None
    ) -> None:
        super().__init__(target)
        self.smoothing = smoothing(label_smoothing)
        weights = weights_of_classes(target, class_weights)
        if weights is None:
            self.no = self.yes = None
        elif target.kind == "binary":
            self.no, self.yes = weights[:1], weights[1:]
        else:
            self.no, self.yes = torch.ones_like(weights), weights

    def elements(self, output: Tensor, target: Tensor, reduction: str) -> Tensor:
        smooth = target.lerp(torch.full_like(target, 0.5), self.smoothing) if self.smoothing else target
        return F.binary_cross_entropy_with_logits(output, smooth, reduction=reduction)

    def __call__(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor | int]:
        if self.no is None or self.yes is None:
            return super().__call__(output, target, weight)
        no, yes = self.no.to(output), self.yes.to(output)
        smooth = target * (1 - self.smoothing) + self.smoothing / 2
        loss = -(yes * smooth * F.logsigmoid(output) + no * (1 - smooth) * F.logsigmoid(-output)).mean(1)
        counted = (no + (yes - no) * target).mean(1)
        if weight is not None:
            loss, counted = loss * weight, counted * weight
        return loss.sum(), counted.sum()

    def predict(self, output: Tensor) -> Tensor:
        return output.sigmoid()


class Auto(Loss):
    """The loss that follows from the target: mse for numbers, cross_entropy for classes and tokens, otherwise bce."""

    kinds = ("number", "binary", "classes", "multilabel", "tokens")

    def __init__(
        self, target: Target, label_smoothing: float = 0.0, class_weights: str | Sequence[float] | None = None
    ) -> None:
        super().__init__(target)
        self.loss: Loss
        if target.kind == "number":
            must(label_smoothing == 0, "loss.label_smoothing", "0 for a target of numbers", label_smoothing)
            must(class_weights is None, "loss.class_weights", "null for a target of numbers", class_weights)
            self.loss = MSE(target)
        else:
            self.loss = (CrossEntropy if target.kind in ("classes", "tokens") else BCE)(
                target, label_smoothing, class_weights
            )
        self.shape_out = self.loss.shape_out

    def __call__(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor | int]:
        return self.loss(output, target, weight)

    def predict(self, output: Tensor) -> Tensor:
        return self.loss.predict(output)


NAMES: dict[type[Loss], str] = {
    Auto: "auto",
    MSE: "mse",
    MAE: "mae",
    Huber: "huber",
    Quantile: "quantile",
    Poisson: "poisson",
    GaussianNLL: "gaussian_nll",
    CrossEntropy: "cross_entropy",
    NLL: "nll",
    Focal: "focal",
    BCE: "bce",
}


def weights_of_classes(target: Target, class_weights: Any) -> Tensor | None:
    """One weight a class from null, `balanced` (as scikit-learn's compute_class_weight) or a list."""
    if class_weights is None:
        return None
    must(target.kind != "tokens", "loss.class_weights", "null for a target of tokens", class_weights)
    labels = target.names if target.kind == "multilabel" else target.classes
    if class_weights == "balanced" and target.kind != "multilabel":
        counts = torch.tensor(target.counts, dtype=torch.float64)
        return (counts.sum() / (len(counts) * counts.clamp(min=1))).float()
    right = isinstance(class_weights, list | tuple) and len(class_weights) == len(labels)
    right = right and all(real(weight) and weight > 0 for weight in class_weights)
    balanced = "" if target.kind == "multilabel" else "balanced, "
    listed = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
    must(
        right,
        "loss.class_weights",
        f"null, {balanced}or {len(labels)} numbers above 0 (one for each of {listed})",
        class_weights,
    )
    return torch.tensor([float(weight) for weight in class_weights])


def counts(target: Target) -> bool:
    """True of classes that are all written as numbers, such as few different counts."""
    return bool(target.classes) and all(label.lstrip("+-").replace(".", "", 1).isdigit() for label in target.classes)


def smoothing(value: Any) -> float:
    """The share of a label that is spread over all classes, in [0, 1)."""
    must(real(value) and 0 <= value < 1, "loss.label_smoothing", "in [0, 1)", value)
    return float(value)
