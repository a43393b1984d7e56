"""What is measured on rows, by the target's kind: names, directions and values that are always finite."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dltrain.errors import ConfigError, nearest

if TYPE_CHECKING:
    from dltrain.data.target import Target

NAMES: dict[str, tuple[str, ...]] = {
    "number": ("rmse", "mae", "r2"),
    "binary": ("accuracy", "balanced_accuracy", "f1", "auroc", "average_precision", "log_loss", "calibration_error"),
    "classes": ("accuracy", "balanced_accuracy", "f1", "auroc", "log_loss", "calibration_error"),
    "multilabel": ("accuracy", "f1", "auroc"),
}
EACH = {"number": ("rmse", "mae", "r2"), "multilabel": ("accuracy", "f1")}  # also per target column, as `f1/<name>`
MONITORS = {
    "number": "rmse",
    "binary": "log_loss",  # moves with every row where accuracy stands still: on 22 rows that is most epochs
    "classes": "log_loss",
    "multilabel": "f1",  # accuracy is high for labels that are never there
}
SMALLER_IS_BETTER = frozenset({"loss", "rmse", "mae", "log_loss", "calibration_error"})


def load() -> None:
    """Import torchmetrics now (half a second), so that the first evaluation of a training is not charged for it."""
    import torchmetrics.functional.classification
    import torchmetrics.functional.regression  # noqa: F401


def default_monitor(kind: str) -> str:
    """Name the metric that picks the best epoch for a kind of target."""
    return MONITORS[kind]


def direction(name: str) -> str:
    """Return `min` or `max`: which way the metric called `name` (with or without `valid/`) gets better."""
    return "min" if name.removeprefix("valid/").split("/")[0] in SMALLER_IS_BETTER else "max"


def names(target: "Target") -> tuple[str, ...]:
    """Name every metric of a target: those of its kind, and per column when it has several."""
    each = EACH.get(target.kind, ()) if len(target.names) > 1 else ()
    return (*NAMES[target.kind], *(f"{metric}/{name}" for metric in each for name in target.names))


def check_monitor(name: str, target: "Target") -> str:
    """Return the metric that `name` means (`valid/accuracy` is `accuracy`); raises ConfigError if there is none."""
    metric = name.removeprefix("valid/")
    if metric in ("loss", *names(target)):
        return metric
    what = {"number": "numbers", "binary": "a yes/no target", "multilabel": "yes/no labels"}.get(target.kind, "classes")
    raise ConfigError(f"monitor must be a metric of {what}, got {name}{nearest(metric, ('loss', *NAMES[target.kind]))}")


def score(target: "Target", prediction: Tensor, truth: Tensor, threshold: float = 0.5) -> dict[str, float]:
    """Measure predictions in the target's own units; a value that these rows leave undefined is absent, never NaN.

    Args:
        target: says the kind and the columns' names.
        prediction: number (rows, n) in own units; binary p (rows, 1); classes (rows, C); multilabel p (rows, L).
        truth: number (rows, n) in own units; binary (rows, 1); classes int64 (rows,); multilabel (rows, L).
        threshold: a yes is a probability above it.
    """
    return score_each(target, prediction.unsqueeze(0), truth, threshold)[0]


def score_each(target: "Target", predictions: Tensor, truth: Tensor, threshold: float = 0.5) -> list[dict[str, float]]:
    """As `score`, of several predictions (several, rows, ...) of the same rows."""
    found: list[dict[str, float]] = [{} for _ in predictions]
    good = [k for k, each in enumerate(predictions) if len(truth) and bool(each.isfinite().all())]
    if target.kind == "classes" and good:
        smallest = torch.finfo(predictions.dtype).eps
        scored = _classes(predictions[good].detach().double().cpu(), truth.detach().cpu(), smallest)
    else:
        scored = [_scored(target, predictions[k], truth, threshold) for k in good]
    for k, values in zip(good, scored, strict=True):
        found[k] = {name: value for name, value in values.items() if math.isfinite(value)}
    return found


def _scored(target: "Target", prediction: Tensor, truth: Tensor, threshold: float) -> dict[str, float]:
    smallest = torch.finfo(prediction.dtype).eps  # what log_loss may blame the network for: it gave this dtype
    threshold = torch.tensor(threshold, dtype=prediction.dtype).item()  # as p is rounded: 0.2 is not above 0.2
    prediction, truth = prediction.detach().double().cpu(), truth.detach().cpu()
    match target.kind:
        case "number":
            return _numbers(target.names, prediction, truth.double())
        case "binary":
            return _binary(prediction[:, 0], truth[:, 0].long(), threshold, smallest)
        case _:
            return _labels(target.names, prediction, truth.long(), threshold)


def _numbers(columns: tuple[str, ...], prediction: Tensor, truth: Tensor) -> dict[str, float]:
    """Errors of (rows, n): their mean over columns, then per column."""
    from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error, r2_score

    n = truth.shape[1]
    values = {
        "rmse": mean_squared_error(prediction, truth, squared=False, num_outputs=n).reshape(n),
        "mae": mean_absolute_error(prediction, truth, num_outputs=n).reshape(n),
        "r2": torch.full((n,), math.nan, dtype=torch.float64),
    }
    varies = (truth != truth[0]).any(0)  # r2 compares with the spread of the truth
    if varies.any():
        middle = truth.mean(0)  # r2_score squares before it subtracts: far from zero that leaves no digits
        values["r2"][varies] = r2_score(
            (prediction - middle)[:, varies], (truth - middle)[:, varies], multioutput="raw_values"
        )
    found = {name: float(value[varies].mean() if name == "r2" else value.mean()) for name, value in values.items()}
    return found | _per_column(columns, values)


def _classes(predictions: Tensor, truth: Tensor, smallest: float) -> list[dict[str, float]]:
    """Scores of probabilities (several, rows, C) against classes (rows,)."""
    n, rows = predictions.shape[2], len(truth)
    rest = truth[:, None] == torch.arange(n)  # one class against the rest
    found = predictions.argmax(2)
    named = found.unsqueeze(2) == torch.arange(n)
    tp, said, support = (named & rest).sum(1), named.sum(1), rest.sum(0).expand(len(found), n)
    counts = torch.stack([tp, said - tp, rows - said - support + tp, support - tp, support], 2).double()
    scored = [_of_counts(each, rows) for each in counts]
    seen = support[0] > 0  # for the classes that these rows have
    likely = predictions[:, torch.arange(rows), truth].clamp(smallest, 1 - smallest)
    values = {"log_loss": -likely.log().mean(1), "calibration_error": _calibration(predictions, found == truth)}
    if int(seen.sum()) > 1:
        values = {"auroc": _auroc(predictions[:, :, seen], rest[:, seen]).mean(1)} | values
    for name, each in values.items():
        for scores, value in zip(scored, each.tolist(), strict=True):
            scores[name] = value
    return scored


def _auroc(predictions: Tensor, truth: Tensor) -> Tensor:
    """(several, C) of areas under ROC curves of (several, rows, C) against yes and no (rows, C), by ranks.

    https://doi.org/10.1148/radiology.143.1.7063747; torchmetrics walks through the classes one by one, 0.3 ms each.
    """
    ordered, order = predictions.transpose(1, 2).sort(2)
    begins = torch.ones_like(ordered, dtype=torch.bool)  # a group of equal values, which share the mean of their ranks
    begins[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    group = begins.flatten().cumsum(0) - 1
    counts = group.bincount()
    twice = (2 * counts.cumsum(0) - counts + 1)[group].view(ordered.shape)  # a rank, counted from the first of all
    rows, yes = len(truth), truth.T.sum(1)
    before = rows * torch.arange(len(twice) * len(yes)).view(-1, len(yes))
    above = (twice * truth.T.expand(ordered.shape).gather(2, order)).sum(2) - (2 * before + yes + 1) * yes
    return above.double() / 2 / (yes * (rows - yes))


def _calibration(predictions: Tensor, right: Tensor, bins: int = 15) -> Tensor:
    """(several,) of expected calibration errors of (several, rows, C), as torchmetrics has them.

    https://arxiv.org/abs/1706.04599
    """
    sure = predictions.amax(2)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float)
    which = (torch.bucketize(sure, edges, right=True) - 1).clamp(max=bins)
    sums = torch.zeros(2, len(sure), bins + 1, dtype=torch.float64)
    sums[0].scatter_add_(1, which, right.double())
    sums[1].scatter_add_(1, which, sure)
    return (sums[0] - sums[1]).abs().sum(1) / sure.shape[1]


def _binary(prediction: Tensor, truth: Tensor, threshold: float, smallest: float) -> dict[str, float]:
    """Scores of p (rows,) against 0 and 1 (rows,); f1 is that of the positive class."""
    from torchmetrics.functional.classification import (
        binary_auroc,
        binary_average_precision,
        binary_calibration_error,
        binary_stat_scores,
    )

    tp, fp, tn, fn, yes = binary_stat_scores(prediction, truth, threshold, validate_args=False).tolist()
    both = torch.tensor([[tn, fn, tp, fp, len(truth) - yes], [tp, fp, tn, fn, yes]], dtype=torch.float64)
    found = _of_counts(both, len(truth)) | {"f1": float(_f1(both)[1])}
    if 0 < yes < len(truth):
        found["auroc"] = float(binary_auroc(prediction, truth, validate_args=False))
        found["average_precision"] = float(binary_average_precision(prediction, truth, validate_args=False))
    right = torch.where(truth == 1, prediction, 1 - prediction)
    found["log_loss"] = float(-right.clamp(smallest, 1 - smallest).log().mean())
    found["calibration_error"] = float(binary_calibration_error(prediction, truth, validate_args=False))
    return found


def _labels(columns: tuple[str, ...], prediction: Tensor, truth: Tensor, threshold: float) -> dict[str, float]:
    """Scores of p (rows, L) against 0 and 1 (rows, L): their mean over labels, then per label."""
    from torchmetrics.functional.classification import multilabel_auroc, multilabel_stat_scores

    n = truth.shape[1]
    counts = multilabel_stat_scores(prediction, truth, n, threshold, average=None, validate_args=False).double()
    each = {"accuracy": (counts[:, 0] + counts[:, 2]) / len(truth), "f1": _f1(counts)}
    found = {name: float(value.mean()) for name, value in each.items()}
    yes = counts[:, 4]
    mixed = (yes > 0) & (yes < len(truth))
    if mixed.any():
        found["auroc"] = float(
            multilabel_auroc(prediction[:, mixed], truth[:, mixed], int(mixed.sum()), validate_args=False)
        )
    return found | _per_column(columns, each)


def _per_column(columns: tuple[str, ...], values: dict[str, Tensor]) -> dict[str, float]:
    """Name each of the values (n,) after its target column, if there are several."""
    if len(columns) < 2:
        return {}
    return {f"{name}/{c}": float(v) for name, value in values.items() for c, v in zip(columns, value, strict=True)}


def _of_counts(counts: Tensor, rows: int) -> dict[str, float]:
    """Accuracies and macro f1 from torchmetrics' counts (C, 5): tp, fp, tn, fn, rows of the class."""
    tp, fp, _, fn, support = counts.unbind(1)
    seen, named = support > 0, tp + fp + fn > 0
    return {
        "accuracy": float(tp.sum() / rows),
        "balanced_accuracy": float((tp[seen] / support[seen]).mean()),
        "f1": float(_f1(counts)[named].mean()),
    }


def _f1(counts: Tensor) -> Tensor:
    """F1 (C,) of counts (C, 5); 0 where a class is neither there nor predicted."""
    tp, fp, _, fn, _ = counts.unbind(1)
    return 2 * tp / (2 * tp + fp + fn).clamp(min=1)


def best_threshold(prediction: Tensor, truth: Tensor) -> float:
    """The threshold on p (rows, 1) with the best F1 for the positive class, halfway between two neighbouring p.

    0.5 when no row is positive: every threshold is as good as any other.
    """
    from torchmetrics.functional.classification import binary_precision_recall_curve

    p, truth = prediction.detach().flatten(), truth.flatten().long()
    if not truth.any():
        return 0.5
    precision, recall, thresholds = binary_precision_recall_curve(p.double(), truth, validate_args=False)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    chosen = thresholds[f1[: len(thresholds)].argmax()].to(p.dtype)  # the last point of the curve has no threshold
    below = p[p < chosen].max() if (p < chosen).any() else torch.zeros_like(chosen)
    middle = (chosen + below) / 2
    return float(below if middle >= chosen else middle)  # nothing lies between neighbours in p's own dtype
