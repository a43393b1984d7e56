"""Trained models put together: how much each counts, and what they then are worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.bundle import Model, save_ensemble
from dltrain.data.rows import Rows
from dltrain.ensembles.weighing import METHODS, Cost, crossed, quick
from dltrain.errors import ConfigError, must
from dltrain.reading import Views
from dltrain.run import Config
from dltrain.tasks.ensemble import Ensemble
from dltrain.tasks.task import Task


@dataclass
class Combined:
    """An ensemble: which of the models are in it, the first counting most, and how it does on the rows of splits."""

    kept: list[int]
    models: list[Model]
    task: Ensemble
    views: Views
    monitor: tuple[str, str]  # a metric and its direction
    valid: dict[str, float]  # of rows that had no say in what they were predicted by

    def test(self) -> dict[str, float]:
        """Metrics of the test rows; {} if there are none."""
        rows = self.views.rows("test")
        whole = Model(self.task, self.views.preparation, None)
        return whole.score(rows["features"], rows) if len(rows["target"]) else {}

    def save(self, folder: Path, choices: Config) -> str:
        """Write its bundle; returns the SHA-256 of its weights."""
        return save_ensemble(folder, choices, self.task, self.models, self.views.preparation)


def weighed(
    bundles: Sequence[Path], configs: Sequence[Config], method: str, metric: str, trust: tuple[str, ...]
) -> Combined:
    """The ensemble of the models that a method of `weighing` gives a weight, by the validation rows of all.

    Raises ConfigError for runs whose predictions have no mean, or that have not the same rows and target.
    """
    views = Views.of_runs(configs, trust)
    rows = views.rows("valid")
    _check_targets(views)
    lead = _together([Model.load(bundles[0], trust)], views.some([0])).first
    try:
        monitor = lead.monitor(None if metric == "loss" else metric)  # the loss is of outputs, which have no mean
    except ConfigError as error:  # of what was typed as metric, not as the monitor of a run
        raise ConfigError(f"metric{str(error).removeprefix('monitor')}") from None
    found = [
        _predictions(Model.load(bundle, trust), views.each[view].valid)
        for bundle, view in zip(bundles, views.of, strict=True)
    ]
    kind = views.each[0].preparation.target.kind
    predictions, truth = np.stack([_columns(one, kind) for one in found]), _truth(views)
    cost = quick(monitor[0], truth, kind) or _measured(lead, rows, kind, monitor)
    weights = METHODS[method](predictions, truth, cost, np.arange(len(truth)))
    kept = sorted(np.flatnonzero(weights).tolist(), key=lambda model: -weights[model])
    models, some = [Model.load(bundles[model], trust) for model in kept], views.some(kept)
    task = _together(models, some)
    task.weights.copy_(torch.from_numpy(weights[kept] / weights[kept].sum()))
    mine = {**some.rows("valid")}
    task.conclude(task.combined([found[model] for model in kept]), mine)
    apart = _back(crossed(method, predictions, truth, cost), kind, found[0])
    return Combined(kept, models, task, some, monitor, task.metrics(apart, mine))


def of_folds(bundles: Sequence[Path], configs: Sequence[Config], trust: tuple[str, ...]) -> Combined:
    """The mean of models that were each trained without one fold of the rows, which is what that one is measured on."""
    views, models = Views.of_runs(configs, trust), [Model.load(bundle, trust) for bundle in bundles]
    task = _together(models, views)
    _check_targets(views)
    targets = [data.preparation.target for data in views.each]
    each = [data.valid for data in views.each]
    predictions = torch.cat([_predictions(model, rows) for model, rows in zip(models, each, strict=True)])
    truth = [targets[0].recoded(rows["target"], target) for rows, target in zip(each, targets, strict=True)]
    rows = {"target": torch.cat(truth)}
    task.conclude(predictions, rows)
    monitor = task.first.monitor(None)
    return Combined([*range(len(models))], models, task, views, monitor, task.metrics(predictions, rows))


def _together(models: Sequence[Model], views: Views) -> Ensemble:
    shapes = [data.preparation.shape_in for data in views.each]
    return Ensemble([model.task for model in models], shapes, views.of).eval()


def _predictions(model: Model, rows: Rows) -> Tensor:
    return model.outputs(rows["features"])


def _check_targets(views: Views) -> None:
    """Raise ConfigError unless all mean the same by the target's columns."""
    found = [data.preparation.target for data in views.each]
    told = dict.fromkeys(f"{target.kind} ({', '.join(target.classes or target.names)})" for target in found)
    must(len(told) == 1, "runs", "of one kind of target", " and ".join(told))


def _columns(predictions: Tensor, kind: str) -> np.ndarray:
    """float64 (rows, columns); of yes or no a column each."""
    values = predictions.double()
    return (torch.cat([1 - values, values], 1) if kind == "binary" else values).numpy()


def _back(columns: np.ndarray, kind: str, like: Tensor) -> Tensor:
    """Columns as the task predicts them."""
    return torch.from_numpy(columns[:, 1:] if kind == "binary" else columns).to(like.dtype)


def _truth(views: Views) -> np.ndarray:
    """float64 (rows, columns), what predictions of the validation rows should have been."""
    target, values = views.each[0].preparation.target, views.each[0].valid["target"]
    if target.kind == "classes":
        return F.one_hot(values, len(target.classes)).double().numpy()
    return _columns(target.decode(values), target.kind)


def _measured(task: Task, rows: Rows, kind: str, monitor: tuple[str, str]) -> Cost:
    """The cost that any metric of a task is; rows of which it cannot be said cost more than all."""
    metric, direction = monitor
    like = torch.empty(0)

    def one(columns: np.ndarray, taken: np.ndarray) -> float:
        some = {"target": rows["target"][torch.from_numpy(taken)]}
        value = task.metrics(_back(columns[taken], kind, like), some).get(metric)
        return np.inf if value is None else value if direction == "min" else -value

    return lambda predictions, taken: np.array([one(columns, taken) for columns in predictions])
