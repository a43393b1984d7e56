"""Whether a trial of a search goes on, asked of Optuna's pruners after every evaluation.

The answer is a function of the trial's own evaluations and of those of the trials that had ended when it began, as
their metrics.jsonl say: a trial that was killed and continues is asked the same and answered the same.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dltrain.errors import real
from dltrain.lines import read_lines

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import Trial

PRUNERS = ("median", "halving")


class Pruning:
    """Of one trial: called with the record of an evaluation, says whether the trial should end.

    Args:
        sweep: the settings of its search, `of` which it is a trial.
        folder: of the run, in which its records stand already.
        monitor: the metric that picks the best epoch, by which trials are judged unless the search names another.
    """

    def __init__(self, sweep: Mapping[str, Any], folder: Path, monitor: str) -> None:
        self.sweep, self.folder = sweep, folder
        metric = (sweep["metrics"] or [monitor])[0]
        self.metric = metric if metric.startswith("valid/") else f"valid/{metric}"
        self.trial: Trial | None = None
        self.evaluations = 0

    def __call__(self, record: Mapping[str, Any]) -> bool:
        return self._take(record.get(self.metric)) if self.trial else self.again()

    def again(self) -> bool:
        """The answer to the last evaluation, asked from the beginning of the run."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        lines = [line for line in read_lines(Path(self.sweep["of"]) / "trials.jsonl") if _counts(line)]
        largest = bool(lines) and lines[0]["better"] == ["max"]
        study = optuna.create_study(
            direction="maximize" if largest else "minimize", pruner=_pruner(self.sweep["pruner"])
        )
        for line in lines:
            self.trial, self.evaluations = study.ask(), 0
            for record in read_lines(Path(self.sweep["of"]).parents[1] / line["run"] / "metrics.jsonl"):
                self._take(record.get(self.metric))
            finished = line["status"] == "finished"
            study.tell(
                self.trial,
                next(iter(line["values"].values())) if finished else None,
                state=None if finished else optuna.trial.TrialState.PRUNED,
            )
        self.trial, self.evaluations = study.ask(), 0
        answers = [self._take(record.get(self.metric)) for record in read_lines(self.folder / "metrics.jsonl")]
        return any(answers[-1:])

    def _take(self, value: Any) -> bool:
        """Report one evaluation, by its number: what a batch is may differ from trial to trial."""
        if not real(value):
            return False
        assert self.trial is not None
        self.evaluations += 1
        self.trial.report(float(value), self.evaluations)
        return bool(self.trial.should_prune())

    def said(self) -> dict[str, Any]:
        """What result.json says of a trial that was pruned: the metrics of its last evaluation, and how many it had."""
        records = [record for record in read_lines(self.folder / "metrics.jsonl") if real(record.get(self.metric))]
        last = records[-1] if records else {}
        valid = {key.removeprefix("valid/"): value for key, value in last.items() if key.startswith("valid/")}
        why = f"{self.metric} was too far behind that of earlier trials (sweep.pruner={self.sweep['pruner']})"
        return {"valid": valid, "evaluations": len(records), "reason": why}


def _pruner(name: str) -> "BasePruner":
    import optuna

    return optuna.pruners.MedianPruner() if name == "median" else optuna.pruners.SuccessiveHalvingPruner(min_resource=1)


def _counts(line: Mapping[str, Any]) -> bool:
    """Whether a trial was trained and judged, and not taken from another one of the same values."""
    return bool(line.get("values")) and bool(line.get("run")) and "same_as" not in line
