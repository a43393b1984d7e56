"""MLflow: settings, curves and final metrics of a run, in one SQLite file beside the runs or on a server."""

import contextlib
import fcntl
import importlib.util
import logging
import os
import posixpath
import re
import sqlite3
import time
import uuid
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
        from mlflow.entities import Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table of a new file
        beside = f"sqlite:///{folder.parent.absolute() / 'mlflow.db'}"
        self.client = _client(self.uri or os.environ.get("MLFLOW_TRACKING_URI") or beside, folder.parent)
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


def _client(address: str, folder: Path) -> Any:
    """MLflow at an address; raises OSError, which names it, for a file that is of no use to MLflow."""
    from mlflow import MlflowClient

    file = _file(address)
    if file is None:
        with _alone(folder):
            return MlflowClient(address)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file.parent):
            if not file.exists():
                _make(file)
            _check(file)
            return MlflowClient(address)
    except (OSError, sqlite3.Error) as error:
        raise OSError(f"cannot write {file}: {error}") from error
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise OSError(f"MLflow cannot use {file}: {reason}; if a kill has left it half made, delete it") from error


def _file(address: str) -> Path | None:
    """The file of an address of SQLite; None of another address, and of one that SQLite itself has to read."""
    from sqlalchemy import make_url

    name = make_url(address).database if address.startswith("sqlite") else None
    return None if name in (None, "", ":memory:") or name.startswith("file:") else Path(name).resolve()


def _make(file: Path) -> None:
    """A new database, which gets its name when it is whole: MLflow never mends what a kill has left half made."""
    from mlflow import MlflowClient

    part = file.with_name(f".{file.name}.{uuid.uuid4().hex}")  # MLflow goes by the name of what it has opened before
    stale = [file.with_name(f"{file.name}{end}") for end in ("-journal", "-wal", "-shm")]  # would be played back
    for left in (*stale, *file.parent.glob(f".{file.name}.*")):
        left.unlink(missing_ok=True)
    _check(part)
    MlflowClient(f"sqlite:///{part}")
    if not file.exists():  # no other program has made it meanwhile
        part.replace(file)


def _check(file: Path) -> None:
    """Raise sqlite3.Error at once for a file that SQLite cannot write: MLflow would try again for 100 seconds."""
    with contextlib.closing(sqlite3.connect(file, timeout=20)) as opened:
        opened.execute("BEGIN IMMEDIATE")


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
