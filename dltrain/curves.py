"""What a report draws of predictions: counts, curves and a few of the rows, small however many rows there are.

By scikit-learn: https://scikit-learn.org/stable/modules/model_evaluation.html
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from dltrain.data.target import Target

Curves = dict[str, Any]
POINTS = 200  # of a curve at most
SHOWN = 500  # rows of which truth and prediction are kept
DRAWN = 10  # classes, of those with the most rows, whose curves are kept
BINS = 10  # of probabilities


def curves(target: "Target", prediction: Tensor, truth: Tensor, threshold: float = 0.5) -> Curves:
    """What JSON can hold of predictions, as `dltrain.metrics.score` takes them; {} of none, or where one is not finite.

    Of classes `confusion` (true class, predicted class), and of each class precision, recall, f1 and rows, for some
    `roc`, `precision_recall` and the areas under them; `calibration` of bins of probabilities (of several classes the
    largest probability, and how often it is right). Of numbers some rows, and counts of residuals.
    """
    from sklearn import config_context

    with config_context(assume_finite=True, skip_parameter_validation=True):  # which takes longer than the curves
        return _curves(target, prediction, truth, threshold)


def _curves(target: "Target", prediction: Tensor, truth: Tensor, threshold: float) -> Curves:
    told, real = prediction.detach().double().cpu().numpy(), truth.detach().cpu().numpy()
    if not len(real) or not np.isfinite(told).all():
        return {}
    above = (prediction > prediction.new_tensor(threshold)).cpu().numpy()  # in its own precision, as the metrics decide
    found: Curves = {"kind": target.kind, "rows": len(real)}
    match target.kind:
        case "number":
            return found | {"numbers": [_number(*one) for one in zip(target.names, told.T, real.T, strict=True)]}
        case "classes":
            yes = np.equal(real[:, None], np.arange(told.shape[1]))
            found |= _classes(target.classes, real, told.argmax(1))
            found |= {"calibration": _calibration(np.equal(told.argmax(1), real), told.max(1))}
        case "binary":
            told, yes = np.concatenate([1 - told, told], 1), np.equal(real, [0, 1])
            found |= _classes(target.classes, yes[:, 1].astype(int), above[:, 0].astype(int))
            found |= {"calibration": _calibration(yes[:, 1], told[:, 1])}
        case _:
            yes = np.greater(real, 0)
            found |= {"each": _each(target.names, yes, above), "calibration": _calibration(yes.ravel(), told.ravel())}
    drawn = [1] if target.kind == "binary" else np.argsort(-yes.sum(0), kind="stable")[:DRAWN].tolist()
    for k in drawn:
        if yes[:, k].any() and not yes[:, k].all():
            found["each"][k] |= _ranking(yes[:, k], told[:, k])
    return found


def _classes(names: tuple[str, ...], truth: np.ndarray, choice: np.ndarray) -> Curves:
    from sklearn.metrics import confusion_matrix

    labels = np.arange(len(names))
    each = _each(names, np.equal.outer(truth, labels), np.equal.outer(choice, labels))
    return {"confusion": confusion_matrix(truth, choice, labels=labels).tolist(), "each": each}


def _each(names: tuple[str, ...], yes: np.ndarray, choice: np.ndarray) -> list[dict[str, Any]]:
    """Precision, recall, f1 and rows of each class or label, of (rows, classes) of booleans."""
    from sklearn.metrics import precision_recall_fscore_support

    if yes.shape[1] == 1:  # scikit-learn would take the rows for two classes
        yes, choice = np.concatenate([yes, ~yes], 1), np.concatenate([choice, ~choice], 1)
    found = precision_recall_fscore_support(yes.astype(int), choice.astype(int), average=None, zero_division=0)
    keys = ("precision", "recall", "f1", "rows")
    return [
        {"name": name, **{key: value.item() for key, value in zip(keys, values, strict=True)}}
        for name, *values in zip(names, *found, strict=False)
    ]


def _ranking(yes: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    """ROC and precision over recall of one class against the rest, and the areas."""
    from sklearn.metrics import auc, precision_recall_curve, roc_curve

    false, true, _ = roc_curve(yes, p)
    precision, recall, _ = precision_recall_curve(yes, p, drop_intermediate=True)
    areas = {"auroc": float(auc(false, true)), "average_precision": float(-np.diff(recall) @ precision[:-1])}
    return areas | {"roc": _thinned(false, true), "precision_recall": _thinned(recall[::-1], precision[::-1])}


def _thinned(*axes: np.ndarray) -> list[list[float]]:
    """Points of a curve, the first and the last among them."""
    kept = np.unique(np.linspace(0, len(axes[0]) - 1, min(POINTS, len(axes[0]))).round().astype(int))
    return [axis[kept].round(6).tolist() for axis in axes]


def _calibration(right: np.ndarray, p: np.ndarray) -> dict[str, list[float]]:
    """Of bins of p that have rows: mean p, the share that is right, and rows."""
    from sklearn.calibration import calibration_curve

    share, mean = calibration_curve(right.astype(int), p.clip(0, 1), n_bins=BINS)
    edges = np.linspace(0, 1, BINS + 1)
    rows = np.bincount(np.searchsorted(edges[1:-1], p.clip(0, 1)), minlength=BINS)  # the bins of scikit-learn
    return {"p": mean.tolist(), "right": share.tolist(), "rows": rows[rows > 0].tolist()}


def _number(name: str, told: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Some rows, evenly spread over all of them, and counts of residuals (predicted less true) of all."""
    some = np.unique(np.linspace(0, len(truth) - 1, min(SHOWN, len(truth))).round().astype(int))
    residuals = told - truth.astype(float)
    counts, edges = np.histogram(residuals, bins=min(30, max(5, math.isqrt(len(truth)))))
    found = {"name": name, "true": truth[some].tolist(), "predicted": told[some].tolist()}
    return found | {"counts": counts.tolist(), "edges": edges.tolist()}
