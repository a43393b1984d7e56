"""MLflow: settings, curves and final metrics of a run, in one SQLite file beside the runs or on a server."""

import contextlib
import fcntl
import importlib.util
import logging
import os
import posixpath
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dltrain.errors import ConfigError, must
from dltrain.lines import read_lines
from dltrain.loggers import Logger, Record, final, numbers
from dltrain.settings import leaves

STATUS = {"finished": "FINISHED", "failed": "FAILED"}  # MLflow's words; whatever else ends a run has killed it
BATCH = 100  # parameters that MLflow takes at once
NEEDS = ("mlflow", "sqlalchemy", "alembic")


class MLflow(Logger):
    """Tell MLflow of a run, at `uri`: null is `$MLFLOW_TRACKING_URI`, or else `mlflow.db` in the folder of all runs.

    A run that goes on is the same run of MLflow, whose number is in `mlflow.txt` of the run's folder. Raises
    ConfigError when the extra is absent; https://mlflow.org/docs/latest/ml/tracking.
    """

    def __init__(self, uri: str | None = None, experiment: str = "dltrain") -> None:
        if any(importlib.util.find_spec(name) is None for name in NEEDS):
            raise ConfigError("logger=mlflow needs pip install 'dltrain[mlflow]'")
        must(uri is None or (isinstance(uri, str) and uri != ""), "logger.mlflow.uri", "null or an address", uri)
        named = isinstance(experiment, str) and experiment.strip() != ""
        must(named, "logger.mlflow.experiment", "the name of an experiment", experiment)
        self.uri, self.experiment = uri, experiment
        self.client: Any = None  # an mlflow.MlflowClient
        self.run = ""
        self.step = -1  # the last that MLflow was told of

    def start(self, folder: Path, config: dict[str, Any], step: int) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # 7 by default: four minutes of waiting
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table of a new file
        beside = f"sqlite:///{folder.parent.absolute() / 'mlflow.db'}"
        with _alone(folder.parent):
            self.client = MlflowClient(self.uri or os.environ.get("MLFLOW_TRACKING_URI") or beside)
        self.run = self._continued(folder / "mlflow.txt") or self._begun(folder)
        told = self.client.get_run(self.run).data
        left = [Param(_name(key), str(value)) for key, value in leaves(config) if _name(key) not in told.params]
        for first in range(0, len(left), BATCH):
            self.client.log_batch(self.run, params=left[first : first + BATCH])
        if "epoch" in told.metrics:
            self.step = max(point.step for point in self.client.get_metric_history(self.run, "epoch"))
        for record in read_lines(folder / "metrics.jsonl"):
            self.log(record)

    def log(self, record: Record) -> None:
        if record["step"] > self.step:  # else it was told before training was interrupted
            self.step = record["step"]
            self._tell(numbers(record))

    def finish(self, result: dict[str, Any]) -> None:
        self._tell(final(result))
        for key in ("status", "reason"):
            if key in result:
                self.client.set_tag(self.run, f"dltrain.{key}", result[key])
        self.client.set_terminated(self.run, STATUS.get(result["status"], "KILLED"))

    def _tell(self, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = {_name(key): Metric(_name(key), float(value), now, self.step) for key, value in values.items()}
        self.client.log_batch(self.run, metrics=list(points.values()))

    def _continued(self, note: Path) -> str | None:
        """The run of MLflow that this run was before, if it is there still."""
        from mlflow.exceptions import MlflowException

        if not note.is_file():
            return None
        run = note.read_text(encoding="utf-8").strip()
        try:
            self.client.update_run(run, "RUNNING")
        except MlflowException:
            return None
        return run

    def _begun(self, folder: Path) -> str:
        """A new run of MLflow."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                number = self.client.create_experiment(self.experiment)
            except MlflowException:  # another run has made it meanwhile
                number = self.client.get_experiment_by_name(self.experiment).experiment_id
        else:
            number = found.experiment_id
        tags = {"dltrain.folder": str(folder.absolute())}
        run: str = self.client.create_run(number, run_name=folder.name, tags=tags).info.run_id
        (folder / "mlflow.txt").write_text(f"{run}\n", encoding="utf-8")
        return run


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time in a folder: of several that make MLflow's tables at once, all but one fail."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _name(text: str) -> str:
    """A name with what MLflow takes of it: letters, digits, `_-./: ` and no empty part."""
    return posixpath.normpath(re.sub(r"[^\w\-./: ]", "_", text)).strip("/")[:250]
