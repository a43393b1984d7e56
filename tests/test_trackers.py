"""What MLflow and Weights & Biases hold of a run, read with their own clients and formats, across kills."""

import contextlib
import importlib.util
import json
import math
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dltrain.compose import compose
from dltrain.errors import ConfigError
from dltrain.loggers import Logger
from dltrain.loggers.jsonl import JSONL
from dltrain.loggers.mlflow import MLflow
from dltrain.loggers.tensorboard import TensorBoard
from dltrain.loggers.wandb import WandB

CONFIG = {
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.001, "betas": [0.9, 0.999]},
    "data": {"columns": {"größe (cm)": "number"}},
    "seed": 0,
    "name": None,
}
RESULT = {"status": "finished", "valid": {"accuracy": 0.75}, "test": {"accuracy": 0.5, "auroc": None}}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore:.*noload.*:DeprecationWarning")


def record(step: int, loss: float = 0.5) -> dict[str, Any]:
    return {"step": step, "epoch": step // 10, "lr": 0.001, "train/loss": loss, "valid/loss": math.nan, "note": "text"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder, beside which a file of MLflow will lie."""
    run = tmp_path / "outputs #1 ä" / "run"
    run.mkdir(parents=True)
    return run


@pytest.fixture
def tracked() -> Callable[[Path], Any]:
    """The one run that MLflow knows of in a folder of runs, and what it was told of a metric."""
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    def found(outputs: Path) -> Any:
        client = MlflowClient(f"sqlite:///{outputs.absolute() / 'mlflow.db'}")
        [experiment] = client.search_experiments(filter_string="name = 'dltrain'")
        [run] = client.search_runs([experiment.experiment_id])
        run.curve = lambda name: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, name)]
        return run

    return found


def interrupted(logger: Logger, folder: Path, steps: tuple[int, ...]) -> None:
    """Both loggers told of some steps, and no more."""
    jsonl = JSONL()
    jsonl.start(folder, CONFIG, 0)
    logger.start(folder, CONFIG, 0)
    for step in steps:
        jsonl.log(record(step, 1.0))
        logger.log(record(step, 1.0))
    jsonl.finish({})


def resumed(logger: Logger, folder: Path, after: int, steps: tuple[int, ...]) -> None:
    """Both loggers, in another process as it were, told of steps from a checkpoint on, to the end."""
    jsonl = JSONL()
    jsonl.start(folder, CONFIG, after)
    logger.start(folder, CONFIG, after)
    for step in steps:
        jsonl.log(record(step, 1.0))
        logger.log(record(step, 1.0))
    jsonl.finish(RESULT)
    logger.finish(RESULT)


@pytest.mark.parametrize(("logger", "extra"), [(MLflow, "mlflow"), (WandB, "wandb")])
def test_what_is_not_installed_is_one_sentence(
    logger: type[Logger], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        logger()
    assert str(caught.value) == f"logger={extra} needs pip install 'dltrain[{extra}]'"


@pytest.mark.parametrize(
    ("logger", "settings", "sentence"),
    [
        (MLflow, {"uri": 5000}, "logger.mlflow.uri must be null or an address, got 5000"),
        (MLflow, {"experiment": ""}, "logger.mlflow.experiment must be the name of an experiment, got ''"),
        (WandB, {"mode": "ofline"}, "logger.wandb.mode must be offline or online, got ofline"),
    ],
)
def test_a_wrong_setting_is_one_sentence(logger: type[Logger], settings: dict[str, Any], sentence: str) -> None:
    pytest.importorskip(logger.__name__.lower())
    with pytest.raises(ConfigError) as caught:
        logger(**settings)
    assert str(caught.value) == sentence


def test_mlflow_has_settings_curves_and_final_metrics(folder: Path, tracked: Callable[[Path], Any]) -> None:
    logger = MLflow()
    logger.start(folder, CONFIG, 0)
    for step in (10, 20):
        logger.log(record(step, step / 4) | {"valid/f1/a (b)": 0.25, "valid/f1/c/": 0.5})
    logger.finish(RESULT)
    run = tracked(folder.parent)
    assert run.data.params == {
        "optimizer._target_": "torch.optim.AdamW",
        "optimizer.lr": "0.001",
        "optimizer.betas": "[0.9, 0.999]",
        "data.columns.größe _cm_": "number",
        "seed": "0",
        "name": "None",
    }
    names = {"epoch", "lr", "train/loss", "valid/f1/a _b_", "valid/f1/c", "final/valid/accuracy", "final/test/accuracy"}
    assert set(run.data.metrics) == names
    assert run.curve("train/loss") == [(10, 2.5), (20, 5.0)]
    assert run.curve("final/test/accuracy") == [(20, 0.5)]
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.tags["dltrain.status"] == "finished"
    assert run.data.tags["dltrain.folder"] == str(folder)


def test_mlflow_goes_on_in_the_same_run_without_a_step_twice(folder: Path, tracked: Callable[[Path], Any]) -> None:
    interrupted(MLflow(), folder, (10, 20, 30))
    assert tracked(folder.parent).info.status == "RUNNING"
    resumed(MLflow(), folder, 20, (30, 40))
    run = tracked(folder.parent)
    assert run.curve("train/loss") == [(10, 1.0), (20, 1.0), (30, 1.0), (40, 1.0)]
    assert run.info.status == "FINISHED"


def test_mlflow_that_is_chosen_late_is_told_what_was(folder: Path, tracked: Callable[[Path], Any]) -> None:
    interrupted(Logger(), folder, (10, 20, 30))
    resumed(MLflow(), folder, 20, (30,))
    assert [step for step, _ in tracked(folder.parent).curve("lr")] == [10, 20, 30]


@pytest.mark.parametrize(
    ("status", "word"), [("finished", "FINISHED"), ("failed", "FAILED"), ("stopped", "KILLED"), ("pruned", "KILLED")]
)
def test_mlflow_is_told_how_it_ended(folder: Path, tracked: Callable[[Path], Any], status: str, word: str) -> None:
    logger = MLflow()
    logger.start(folder, CONFIG, 0)
    logger.finish({"status": status, "reason": "because"})
    run = tracked(folder.parent)
    assert run.info.status == word
    assert (run.data.tags["dltrain.status"], run.data.tags["dltrain.reason"]) == (status, "because")


BEGIN = """
import sys
from pathlib import Path
from dltrain.loggers.mlflow import MLflow

logger, folder = MLflow(), Path(sys.argv[1])
folder.mkdir(parents=True)
logger.start(folder, {}, 0)
for step in range(1, 21):
    logger.log({"step": step, "epoch": step})
logger.finish({"status": "finished"})
"""


def test_a_kill_while_mlflow_makes_its_file_leaves_none(
    folder: Path, tracked: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")

    def killed(address: str) -> None:
        with contextlib.closing(sqlite3.connect(address.removeprefix("sqlite:///"))) as half:
            half.execute("CREATE TABLE _alembic_tmp_experiments (name)")
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow, "MlflowClient", killed)
    with pytest.raises(KeyboardInterrupt):
        MLflow().start(folder, CONFIG, 0)
    monkeypatch.undo()
    assert not (folder.parent / "mlflow.db").exists()
    assert len([*folder.parent.glob(".mlflow.db.*")]) == 1  # what was half made
    logger = MLflow()
    logger.start(folder, CONFIG, 0)
    logger.finish(RESULT)
    assert tracked(folder.parent).info.status == "FINISHED"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["mlflow.db", "run"]


def test_a_file_that_was_left_half_made_is_named(folder: Path) -> None:
    pytest.importorskip("mlflow")
    file = folder.parent / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file)) as half:
        half.execute("CREATE TABLE _alembic_tmp_experiments (name)")
    with pytest.raises(OSError, match="MLflow") as caught:
        MLflow().start(folder, CONFIG, 0)
    told = f"MLflow cannot use {file}: (sqlite3.OperationalError) table _alembic_tmp_experiments already exists"
    assert str(caught.value) == f"{told}; if a kill has left it half made, delete it"


def test_the_journal_of_a_file_that_was_deleted_is_not_played_back(
    folder: Path, tracked: Callable[[Path], Any]
) -> None:
    pytest.importorskip("mlflow")
    with contextlib.closing(sqlite3.connect(folder / "other.db", isolation_level=None)) as other:
        other.execute("CREATE TABLE numbers (n)")
        other.executemany("INSERT INTO numbers VALUES (?)", [(n,) for n in range(1000)])
        other.execute("PRAGMA cache_size = 1")  # what is changed is written before the transaction ends
        other.execute("BEGIN")
        other.execute("UPDATE numbers SET n = 'a long text instead of a number'")
        shutil.copy(folder / "other.db-journal", folder.parent / "mlflow.db-journal")
    MLflow().start(folder, CONFIG, 0)
    assert tracked(folder.parent).info.status == "RUNNING"
    with contextlib.closing(sqlite3.connect(folder.parent / "mlflow.db")) as made:
        assert not made.execute("SELECT name FROM sqlite_master WHERE name = 'numbers'").fetchall()


@pytest.mark.parametrize(
    ("name", "reason"), [("no.txt", "file is not a database"), ("folder", "unable to open database file")]
)
def test_a_file_that_sqlite_cannot_write_is_named_before_mlflow_tries(
    folder: Path, name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setattr(mlflow, "MlflowClient", lambda address: pytest.fail("MLflow would try for 100 seconds"))
    (folder / "folder").mkdir()
    (folder / "no.txt").write_text("This is no database, though it is quite long.\n" * 9)
    with pytest.raises(OSError, match="cannot write") as caught:
        MLflow(f"sqlite:///{folder / name}").start(folder, CONFIG, 0)
    assert str(caught.value) == f"cannot write {folder / name}: {reason}"


@pytest.mark.slow
def test_runs_that_begin_at_once_share_one_file(tmp_path: Path) -> None:
    """Of four that make MLflow's tables at once, three fail where they do not wait for each other."""
    mlflow = pytest.importorskip("mlflow")
    lines = [[sys.executable, "-W", "ignore", "-c", BEGIN, str(tmp_path / "outputs" / f"run{n}")] for n in range(4)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    begun = [subprocess.Popen(line, env=environment) for line in lines]
    assert [one.wait(timeout=300) for one in begun] == [0, 0, 0, 0]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("dltrain").experiment_id])
    assert sorted(run.info.run_name for run in found) == ["run0", "run1", "run2", "run3"]
    assert {len(client.get_metric_history(run.info.run_id, "epoch")) for run in found} == {20}


@pytest.mark.parametrize("status", ["finished", "failed", "stopped", "pruned"])
def test_tensorboard_is_told_how_it_ended(folder: Path, status: str) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoard()
    logger.start(folder, CONFIG, 0)
    logger.finish({"status": status, "reason": "because"})
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    [event] = events.Tensors("status/text_summary")
    assert event.tensor_proto.string_val == [f"{status}: because".encode()]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def written(path: Path) -> Iterator[Any]:
    """The records of an offline file: LevelDB's log of W&B's own protocol buffers, after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, part = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        if at + 7 + size > len(content):
            return  # being written
        part += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last of several
            yield Record.FromString(part)
            part = b""


def ended(folder: Path) -> Path:
    """The one offline file of a run, once W&B's own process has written it to its end."""
    for _ in range(600):
        [path] = segments(folder)
        if path.stat().st_size and any(r.WhichOneof("record_type") == "exit" for r in written(path)):
            return path
        time.sleep(0.1)
    pytest.fail(f"{path} does not end")


def history(path: Path) -> list[dict[str, Any]]:
    rows = (r.history for r in written(path) if r.WhichOneof("record_type") == "history")
    return [{"/".join(item.nested_key): json.loads(item.value_json) for item in row.item} for row in rows]


def summary(path: Path) -> dict[str, Any]:
    updates = [r.summary.update for r in written(path) if r.WhichOneof("record_type") == "summary"]
    return {item.key: json.loads(item.value_json) for update in updates for item in update if item.key}


def test_wandb_has_settings_curves_and_final_metrics(folder: Path) -> None:
    pytest.importorskip("wandb")
    logger = WandB()
    logger.start(folder, CONFIG, 0)
    for step in (10, 20):
        logger.log(record(step, step / 4) | {"valid/f1/a (b)": 0.25})
    logger.finish(RESULT)
    path = ended(folder)
    assert [(row["_step"], row["train/loss"], row["valid/f1/a (b)"]) for row in history(path)] == [
        (10, 2.5, 0.25),
        (20, 5.0, 0.25),
    ]
    assert "valid/loss" not in history(path)[0]
    [run] = [r.run for r in written(path) if r.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name) == ("dltrain", "run")
    settings = {item.key: json.loads(item.value_json) for item in run.config.update if item.key != "_wandb"}
    assert settings == CONFIG
    told = summary(path)
    assert (told["final/valid/accuracy"], told["final/test/accuracy"], told["status"]) == (0.75, 0.5, "finished")


def test_wandb_goes_on_in_the_same_run_without_a_step_twice(folder: Path) -> None:
    pytest.importorskip("wandb")
    killed = WandB()
    interrupted(killed, folder, (10, 20, 30))
    killed.run.finish(exit_code=1)
    before = ended(folder)
    resumed(WandB(), folder, 20, (30, 40))
    after = ended(folder)
    assert after.name == before.name  # run-<id>.wandb
    assert [row["_step"] for row in history(after)] == [10, 20, 30, 40]


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("pruned", 0), ("stopped", 1), ("failed", 1)])
def test_wandb_is_told_how_it_ended(folder: Path, status: str, code: int) -> None:
    pytest.importorskip("wandb")
    logger = WandB()
    logger.start(folder, CONFIG, 0)
    logger.finish({"status": status, "reason": "because"})
    path = ended(folder)
    [end] = [r.exit for r in written(path) if r.WhichOneof("record_type") == "exit"]
    assert end.exit_code == code
    told = summary(path)
    assert (told["status"], told["reason"]) == (status, "because")


def test_a_run_that_is_killed_and_goes_on_is_one_run_to_all(tmp_path: Path, tracked: Callable[[Path], Any]) -> None:
    pytest.importorskip("wandb")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    words = ["data=iris", "epochs=6", "name=run", "logger=[mlflow,wandb,tensorboard]", "trainer.save_every=2epochs"]
    line = [sys.executable, "-m", "dltrain", *words, "trainer.threads=1"]
    outside = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # that of this process
    outside |= {"PYTHONPATH": str(Path(__file__).parents[1])}
    for fault, code in (("evaluated:kill:4", -signal.SIGKILL), ("", 0)):
        environment = outside | ({"DLTRAIN_FAULT": fault} if fault else {})
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
        assert "warning: logger" not in done.stdout
    folder = tmp_path / "outputs" / "run"
    truth = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [one["step"] for one in truth]
    losses = [one["valid/loss"] for one in truth]
    assert len(set(steps)) == 6
    assert tracked(tmp_path / "outputs").curve("valid/loss") == list(zip(steps, losses, strict=True))
    path = ended(folder)
    assert [(row["_step"], row["valid/loss"]) for row in history(path)] == list(zip(steps, losses, strict=True))
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("valid/loss")] == steps
    assert tracked(tmp_path / "outputs").data.params["optimizer.lr"] == "0.001"


def test_both_can_be_chosen_with_settings() -> None:
    chosen = compose(["logger=[mlflow,wandb]", "logger.mlflow.experiment=mine", "logger.wandb.project=ours"])["logger"]
    assert (chosen["mlflow"]["experiment"], chosen["wandb"]["project"]) == ("mine", "ours")
