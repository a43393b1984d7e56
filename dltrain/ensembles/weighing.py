"""How much each of several models counts in their ensemble, learnt from rows that none of them was trained on.

Predictions are (models, rows, columns), the truth (rows, columns): numbers, or probabilities and the 0 and 1 that they
should have been. Weights are at least 0 and sum to one.
"""

from collections.abc import Callable, Sequence

import numpy as np

Cost = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (models, rows, columns), rows' numbers: the smaller the better
STEPS = 50  # models that a bag takes at most, with replacement
PATIENCE = 5  # of them without a gain
BAGS = 20
FOLDS = 5
TINY = float(np.finfo(np.float32).eps)  # as in metrics: what a log loss may blame a probability for


def average(predictions: np.ndarray, truth: np.ndarray, cost: Cost, rows: np.ndarray) -> np.ndarray:
    """The same weight for all."""
    return np.full(len(predictions), 1 / len(predictions))


def stack(predictions: np.ndarray, truth: np.ndarray, cost: Cost, rows: np.ndarray) -> np.ndarray:
    """Least squares with weights of at least 0, scaled to sum to one; https://doi.org/10.2202/1544-6115.1309."""
    from sklearn.linear_model import LinearRegression

    scale = truth.std(0)
    scale[scale == 0] = 1
    features = (predictions / scale)[:, rows].reshape(len(predictions), -1).T
    found = LinearRegression(positive=True, fit_intercept=False).fit(features, (truth / scale)[rows].ravel()).coef_
    total = float(found.sum())
    return found / total if total > 0 else average(predictions, truth, cost, rows)


def greedy(predictions: np.ndarray, truth: np.ndarray, cost: Cost, rows: np.ndarray) -> np.ndarray:
    """Forward selection with replacement, from the best models on; https://doi.org/10.1145/1015330.1015432.

    The mean over bags of rows drawn with replacement: what is best by chance on few rows is best in few bags. (The
    paper's bags are of models, of which it has thousands: of a dozen, half the bags would do without the best.)
    """
    draw = np.random.default_rng(0)
    bags = [draw.choice(rows, len(rows)) for _ in range(BAGS)]
    return np.mean([selected(predictions, cost, bag) for bag in bags], 0)


def selected(predictions: np.ndarray, cost: Cost, rows: np.ndarray) -> np.ndarray:
    """How often forward selection takes each model, as a share of all that it takes."""
    order = np.argsort(cost(predictions, rows), kind="stable")
    means = predictions[order].cumsum(0) / np.arange(1, len(order) + 1)[:, None, None]
    prefixes = cost(means, rows)
    begin = least(prefixes) + 1  # as many of the best as are best together
    taken = [*order[:begin].tolist()]
    total, costs = predictions[taken].sum(0), [float(prefixes[begin - 1])]
    while len(taken) < STEPS and len(costs) - least(costs) <= PATIENCE:
        tried = cost((total + predictions) / (len(taken) + 1), rows)
        best = least(tried)
        taken.append(best)
        costs.append(float(tried[best]))
        total = total + predictions[best]
    many = begin + least(costs)
    return np.bincount(taken[:many], minlength=len(predictions)) / many


def least(costs: Sequence[float] | np.ndarray) -> int:
    """The first of the costs that are least but for rounding: the same model again is the same mean."""
    smallest = np.min(costs)
    return int(np.flatnonzero(costs <= smallest + 1e-9 * abs(smallest))[0])


METHODS: dict[str, Callable[[np.ndarray, np.ndarray, Cost, np.ndarray], np.ndarray]] = {
    "greedy": greedy,
    "average": average,
    "stack": stack,
}


def crossed(method: str, predictions: np.ndarray, truth: np.ndarray, cost: Cost) -> np.ndarray:
    """What the ensemble predicts for each row (rows, columns), weighed by a method on other rows than that one."""
    n = truth.shape[0]
    side = np.random.default_rng(0).permutation(n) % min(FOLDS, n)
    found = np.empty_like(predictions[0])
    for fold in range(side.max() + 1):
        kept = np.flatnonzero(side != fold)
        weights = METHODS[method](predictions, truth, cost, kept if len(kept) else np.arange(n))
        found[side == fold] = np.tensordot(weights, predictions[:, side == fold], 1)
    return found


def quick(metric: str, truth: np.ndarray, kind: str) -> Cost | None:
    """The cost that a metric of a kind of target is, where all models are measured at once; None where they are not."""
    costs: dict[str, dict[str, Cost]] = {
        "number": {
            "rmse": lambda p, rows: np.sqrt(np.square(p[:, rows] - truth[rows]).mean(1)).mean(1),
            "mae": lambda p, rows: np.abs(p[:, rows] - truth[rows]).mean((1, 2)),
        },
        "multilabel": {"f1": lambda p, rows: -_f1(p[:, rows] > 0.5, truth[rows] > 0.5)},
        "classes": {"accuracy": lambda p, rows: -(p[:, rows].argmax(2) == truth[rows].argmax(1)).mean(1)},
    }
    for probabilities in ("classes", "binary"):
        costs.setdefault(probabilities, {})["log_loss"] = lambda p, rows: (
            -np.mean(np.log((p[:, rows] * truth[rows]).sum(2).clip(TINY, 1 - TINY)), axis=1)
        )
    return costs[kind].get(metric)


def _f1(chosen: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(models,): the mean over labels, 0 of one that is neither there nor chosen."""
    right, wrong = (chosen & truth).sum(1), (chosen != truth).sum(1)
    return (2 * right / np.maximum(2 * right + wrong, 1)).mean(1)
