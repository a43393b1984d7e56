"""metrics.jsonl across kills, a logger that fails, and what TensorBoard's own reader finds."""

import importlib.util
import json
import math
import os
from pathlib import Path

import pytest

from dltrain.errors import ConfigError, DiskError
from dltrain.loggers import Logger, Loggers
from dltrain.loggers.jsonl import JSONL
from dltrain.loggers.tensorboard import TensorBoard

CONFIG = {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.001, "betas": [0.9, 0.999]}, "seed": 0, "name": None}


def record(step, loss=0.5):
    return {"step": step, "epoch": step // 10, "time": step / 100, "lr": 0.001, "train/loss": loss, "valid/loss": loss}


def written(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_jsonl_is_one_object_a_line_readable_while_training(tmp_path):
    logger = JSONL()
    logger.start(tmp_path, CONFIG, 0)
    for step in (10, 20):
        logger.log(record(step) | {"valid/f1/größe 尺寸": 0.1})
        assert written(tmp_path / "metrics.jsonl")[-1]["step"] == step
    logger.sync()
    logger.finish({"status": "finished"})
    assert written(tmp_path / "metrics.jsonl") == [record(s) | {"valid/f1/größe 尺寸": 0.1} for s in (10, 20)]


def test_jsonl_has_null_for_what_json_cannot_say(tmp_path):
    logger = JSONL()
    logger.start(tmp_path, CONFIG, 0)
    logger.log(record(10, math.nan) | {"lr": [0.1, math.inf], "norm": {"a": -math.inf}})
    logger.finish({})
    text = (tmp_path / "metrics.jsonl").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["train/loss"] is None
    assert found["lr"] == [0.1, None]
    assert found["norm"] == {"a": None}


@pytest.mark.parametrize("torn", ["", '{"step": 40, "train/lo', "[]\n", "\0\0\0\0", '{"epoch": 1}\n'])
def test_jsonl_resumes_after_a_step_without_what_came_later(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps(record(step)) + "\n" for step in (10, 20, 30))
    path.write_text(whole + torn)
    logger = JSONL()
    logger.start(tmp_path, CONFIG, 20)
    logger.log(record(30, 0.25))
    logger.finish({})
    assert written(path) == [record(10), record(20), record(30, 0.25)]

    path.write_text(whole + torn)
    again = JSONL()
    again.start(tmp_path, CONFIG, 35)
    again.finish({})
    assert path.read_text() == whole


def test_jsonl_survives_the_folder_being_renamed(tmp_path):
    (tmp_path / ".run.new").mkdir()
    logger = JSONL()
    logger.start(tmp_path / ".run.new", CONFIG, 0)
    (tmp_path / ".run.new").rename(tmp_path / "run")
    logger.log(record(10))
    logger.finish({})
    assert written(tmp_path / "run" / "metrics.jsonl") == [record(10)]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a disk that is always full")
def test_a_full_disk_ends_training_with_one_sentence(tmp_path):
    logger = JSONL()
    logger.start(tmp_path, CONFIG, 0)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, logger.file.fileno())
    os.close(full)
    with pytest.raises(DiskError, match=r"cannot write .*metrics\.jsonl: No space left on device"):
        Loggers([logger], pytest.fail).log(record(10))
    with pytest.raises(OSError, match="No space left"):
        logger.file.close()


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(DiskError, match=r"cannot write .*: No such file or directory"):
        JSONL().start(tmp_path / "gone", CONFIG, 0)


class Failing(Logger):
    def __init__(self, verb):
        self.verb, self.calls = verb, 0
        setattr(self, verb, self.fail)

    def fail(self, *given):
        self.calls += 1
        raise ConnectionError("[Errno 111]\nrefused")


@pytest.mark.parametrize("verb", ["start", "log", "sync", "finish"])
def test_a_logger_that_fails_is_named_once_and_training_goes_on(tmp_path, verb):
    failing, warnings = Failing(verb), []
    loggers = Loggers([failing, JSONL()], warnings.append)
    loggers.start(tmp_path, CONFIG, 0)
    for step in (10, 20):
        loggers.log(record(step))
        loggers.sync()
    loggers.finish({"status": "finished"})
    assert failing.calls == 1
    assert warnings == ["logger Failing failed and is left out from here on (ConnectionError: [Errno 111] refused)"]
    assert written(tmp_path / "metrics.jsonl") == [record(10), record(20)]


def test_a_bug_in_the_required_logger_is_not_hidden(tmp_path):
    loggers = Loggers([JSONL()], pytest.fail)
    loggers.start(tmp_path, CONFIG, 0)
    with pytest.raises(TypeError):
        loggers.log({"step": 1, "train/loss": object()})
    loggers.finish({})


def test_tensorboard_that_is_not_installed_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        TensorBoard()
    assert str(caught.value) == "logger=tensorboard needs pip install 'dltrain[tensorboard]'"


@pytest.fixture
def events():
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(folder):
        found = accumulator.EventAccumulator(str(folder / "tensorboard"))
        found.Reload()
        return found

    return read


def test_tensorboard_reads_back_every_point(tmp_path, events):
    logger = TensorBoard()
    logger.start(tmp_path, CONFIG, 0)
    for step in (10, 20):
        logger.log(record(step, step / 4) | {"valid/f1": math.nan, "note": "text"})
    logger.finish({"status": "finished", "valid": {"accuracy": 0.75}, "test": {"accuracy": 0.5, "auroc": None}})
    found = events(tmp_path)
    scalars = {"epoch", "time", "lr", "train/loss", "valid/loss", "final/valid/accuracy", "final/test/accuracy"}
    assert set(found.Tags()["scalars"]) == scalars
    assert [(point.step, point.value) for point in found.Scalars("train/loss")] == [(10, 2.5), (20, 5.0)]
    assert [(point.step, point.value) for point in found.Scalars("final/test/accuracy")] == [(20, 0.5)]
    assert [child.name for child in (tmp_path / "tensorboard").iterdir() if child.is_dir()] == []


def test_tensorboard_has_the_settings_as_hyperparameters(tmp_path, events):
    from tensorboard.plugins.hparams import plugin_data_pb2

    logger = TensorBoard()
    logger.start(tmp_path, CONFIG, 0)
    logger.finish({"valid": {}, "test": {}})
    content = events(tmp_path).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hyperparameters = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert hyperparameters["optimizer.lr"].number_value == 0.001
    assert hyperparameters["optimizer.betas"].string_value == "[0.9, 0.999]"
    assert hyperparameters["seed"].number_value == 0
    assert hyperparameters["name"].string_value == "None"


def test_no_point_stands_twice_after_a_resume(tmp_path, events):
    killed = TensorBoard()
    killed.start(tmp_path, CONFIG, 0)
    for step in (10, 20, 30):
        killed.log(record(step, 1.0))
    killed.sync()  # and no finish
    resumed = TensorBoard()
    resumed.start(tmp_path, CONFIG, 20)
    for step in (30, 40):
        resumed.log(record(step, 2.0))
    resumed.finish({})
    points = [(point.step, point.value) for point in events(tmp_path).Scalars("train/loss")]
    assert points == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]
    killed.writer.close()
