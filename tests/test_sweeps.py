"""Searches behind -m: what is tried, what is kept of it, what is said, and how they end."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import shlex
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pexpect
import pytest
from faults.forks import Server
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from scipy.stats import kstest

from dltrain import cli
from dltrain.build import Builder
from dltrain.choices import options
from dltrain.commands.compare import KNOWN
from dltrain.compose import compose, trials
from dltrain.errors import DataError, DiskError, Stopped
from dltrain.metrics import NAMES
from dltrain.sweeps.board import Board
from dltrain.sweeps.records import Records
from dltrain.sweeps.slots import spread
from dltrain.sweeps.space import Job, Space
from dltrain.sweeps.study import Study

LR = "optimizer.lr=tag(log,interval(1e-3,1e-1))"
IRIS = ("data=iris", "model.hidden=[8]", "epochs=4", "trainer.threads=1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLTRAIN_CONFIGS", raising=False)
    return tmp_path


class Fake:
    """Stands for training: a run's metric is a function of its learning rate and weight decay."""

    def __init__(self) -> None:
        self.trained: list[tuple[float, float]] = []
        self.ends: dict[int, BaseException] = {}  # by the number of the training, from 1

    def __call__(self, config: dict[str, Any], words: list[str], opening: Callable[[str], None]) -> int:
        lr, decay = config["optimizer"]["lr"], config["optimizer"]["weight_decay"]
        name = "run-" + hashlib.sha256(repr((lr, decay, config["seed"])).encode()).hexdigest()[:8]
        folder = Path(config["output_root"], name)
        folder.mkdir(parents=True, exist_ok=True)
        opening(name)
        self.trained.append((lr, decay))
        if end := self.ends.get(len(self.trained)):
            raise end
        valid = {"log_loss": (math.log10(lr) + 2) ** 2 + decay, "accuracy": 1 - decay}
        result = {"status": "finished", "monitor": "log_loss", "direction": "min", "valid": valid, "seconds": lr}
        (folder / "result.json").write_text(json.dumps(result))
        return 0


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    found = Fake()
    monkeypatch.setattr("dltrain.commands.train.train", found)
    return found


def lines(name: str = "s") -> list[dict[str, Any]]:
    path = Path("outputs/sweeps", name, "trials.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def database(name: str = "s") -> list[optuna.trial.FrozenTrial]:
    """The trials as Optuna itself reads them."""
    storage = optuna.storages.RDBStorage(f"sqlite:///outputs/sweeps/{name}/study.db")
    try:
        return optuna.load_study(study_name=None, storage=storage).trials
    finally:
        storage.remove_session()
        storage.engine.dispose()


def sweep(*words: str, code: int = 0) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert cli.run(["-m", *words, "name=s", "sweep.together=false"]) == code  # by commands.train, one by one
    return said.getvalue()


# What there is to try


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optimizer.lr=interval(0.001,0.1)", FloatDistribution(0.001, 0.1)),
        ("optimizer.lr=tag(log,interval(1e-3,1e-1))", FloatDistribution(0.001, 0.1, log=True)),
        ("optimizer.weight_decay=interval(0,1)", FloatDistribution(0, 1)),  # the setting is no whole number
        ("model.width=interval(8,64)", IntDistribution(8, 64)),
        ("model.width=tag(log,interval(8,64))", IntDistribution(8, 64, log=True)),
        ("model.width=int(interval(8.5,64.5))", IntDistribution(8, 64)),
        ("seed=range(1,10,3)", IntDistribution(1, 7, step=3)),
        ("seed=range(3)", IntDistribution(0, 2)),
        ("optimizer.lr=range(0.1,0.45,0.1)", FloatDistribution(0.1, 0.4, step=0.1)),
        ("activation=relu,tanh", CategoricalDistribution(["relu", "tanh"])),
        ("model.hidden=choice([8],[8,8])", CategoricalDistribution(["[8]", "[8,8]"])),
        ("seed=3,5", CategoricalDistribution(["3", "5"])),
    ],
)
def test_words_are_distributions(word: str, expected: object) -> None:
    space = Space(OverridesParser.create().parse_overrides([word, "epochs=3"]))
    config = {"optimizer": {"lr": 0.1, "weight_decay": 0.0}, "model": {"width": 32}, "seed": 0}
    found = space.distributions(config)
    assert found == {word.partition("=")[0]: expected}


def study(of: str, seed: int, *words: str) -> Study:
    config = {"optimizer": {"lr": 0.1, "weight_decay": 0.01}}
    return Study(Path("s"), of, seed, Space(OverridesParser.create().parse_overrides([*words])), config)


def test_random_trials_are_drawn_where_they_should() -> None:
    drawn = study("random", 0, LR, "optimizer.weight_decay=interval(0,1)")
    found = [drawn.propose(number, {}, []) for number in range(1, 201)]
    lrs = [math.log10(float(params["optimizer.lr"])) for params in found]
    decays = [float(params["optimizer.weight_decay"]) for params in found]
    assert kstest(lrs, "uniform", (-3, 2)).pvalue > 0.01
    assert kstest(decays, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(lrs, decays)[0, 1]) < 0.2
    assert study("random", 1, LR).propose(1, {}, []) != study("random", 0, LR).propose(1, {}, [])


def test_tpe_proposes_what_optuna_proposes() -> None:
    """The same sampler, seeded by the seed and the number, given the same history by hand."""
    ours, space = study("tpe", 5, LR), {"optimizer.lr": FloatDistribution(0.001, 0.1, log=True)}
    known: dict[int, dict[str, Any]] = {}
    theirs = []
    for number in range(1, 21):
        seed = int(hashlib.sha256(f"5 {number}".encode()).hexdigest()[:8], 16)
        history = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        history.add_trials(theirs)
        lr = history.ask(space).params["optimizer.lr"]
        params = ours.propose(number, known, [])
        assert params == {"optimizer.lr": repr(lr)}
        value = -((math.log10(lr) + 2) ** 2)
        theirs.append(create_trial(params={"optimizer.lr": lr}, distributions=space, value=value))
        known[number] = {"params": params, "values": {"valid/r2": value}, "better": ["max"], "status": "finished"}
        known[number] |= {"run": "", "message": ""}
    far = [abs(math.log10(trial.params["optimizer.lr"]) + 2) for trial in theirs]
    assert sum(far[10:]) < sum(far[:10])


# What is kept


def test_what_is_kept_of_a_search(fake: Fake) -> None:
    fake.ends = {2: DataError("no rows")}
    said = sweep("sweep=random", "sweep.n_trials=4", LR, code=1)
    found = lines()
    assert [(line["trial"], line["exit"], line["status"]) for line in found] == [
        (1, 0, "finished"),
        (2, 65, "failed"),
        (3, 0, "finished"),
        (4, 0, "finished"),
    ]
    trials = database()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials[1].user_attrs["message"] == "no rows"
    for line, trial, (lr, _) in zip(found, trials, fake.trained, strict=True):
        assert float(line["params"]["optimizer.lr"]) == trial.params["optimizer.lr"] == lr
        if not line["exit"]:
            assert trial.value == line["values"]["valid/log_loss"] == (math.log10(lr) + 2) ** 2 + 0.01
            assert trial.user_attrs["run"] == line["run"]
    best = min((line for line in found if line["values"]), key=lambda line: line["values"]["valid/log_loss"])
    assert f"best trial {best['trial']}  valid/log_loss" in said
    assert "4 of 4 trials, 1 failed" in said
    sweep("sweep=random", "sweep.n_trials=4", LR, code=1)  # the same command again trains nothing
    assert len(fake.trained) == 4
    sweep("sweep=random", "sweep.n_trials=6", LR, code=1)  # n_trials is a total
    assert len(fake.trained) == 6
    assert len(database()) == 6


def test_a_grid_tries_again_what_has_failed(fake: Fake) -> None:
    fake.ends = {2: DataError("no rows")}
    sweep("optimizer.lr=0.1,0.01,0.001", code=1)
    assert "3 of 3 trials, 0 failed" in sweep("optimizer.lr=0.1,0.01,0.001")
    assert [lr for lr, _ in fake.trained] == [0.1, 0.01, 0.001, 0.01]
    assert not Path("outputs/sweeps/s/study.db").exists()


def test_a_search_that_stops_where_a_trial_fails(fake: Fake) -> None:
    fake.ends = {2: RuntimeError("ours")}
    said = sweep("sweep=random", "sweep.n_trials=4", "sweep.on_fail=stop", LR, code=1)
    assert "sweep outputs/sweeps/s: 2 of 4 trials, 1 failed" in said
    sweep("sweep=random", "sweep.n_trials=4", LR, code=1)
    assert len(lines()) == len(fake.trained) == 4


def test_values_that_are_proposed_again_are_not_trained_again(fake: Fake) -> None:
    said = sweep("sweep=random", "sweep.n_trials=5", "optimizer.lr=0.1,0.01")
    assert len(fake.trained) == len(set(fake.trained)) == 2
    assert len(lines()) == len(database()) == 5
    assert sum("same_as" in line for line in lines()) == 3
    for line in lines():
        first = next(other for other in lines() if other["params"] == line["params"])
        assert line["values"] == first["values"]
    assert "of the same values" in said


def test_fresh_searches_again(fake: Fake, here: Path) -> None:
    words = ("sweep=random", "sweep.n_trials=3", LR)
    sweep(*words)
    before = lines()
    sweep(*words, "fresh=true")
    assert fake.trained[3:] == fake.trained[:3]
    assert lines("s~1") == before
    assert [line["params"] for line in lines()] == [line["params"] for line in before]
    assert sorted(path.name for path in here.glob("outputs/sweeps/*")) == ["s", "s~1"]


@pytest.mark.parametrize("how", ["random", "tpe"])
def test_a_shuffled_list_is_the_same_when_a_search_goes_on(how: str, fake: Fake) -> None:
    words = (f"sweep={how}", LR, "activation=shuffle(relu,tanh,gelu,elu,selu,silu,mish)")
    sweep(*words, "sweep.n_trials=2")
    sweep(*words, "sweep.n_trials=4")
    assert [line["trial"] for line in lines()] == [1, 2, 3, 4]


def test_a_line_that_was_not_written_to_its_end(fake: Fake) -> None:
    sweep("optimizer.lr=0.1,0.01,0.001")
    path = Path("outputs/sweeps/s/trials.jsonl")
    whole = path.read_bytes()
    for cut in (whole[:-1], whole[:-30], whole + b'{"trial": 4'):
        path.write_bytes(cut)
        assert "3 of 3 trials, 0 failed" in sweep("optimizer.lr=0.1,0.01,0.001")
        assert [line["trial"] for line in lines()] == [1, 2, 3]
    assert len(fake.trained) == 5


@pytest.mark.parametrize("moment", ["before the line", "before Optuna", "between Optuna and the next"])
def test_killed_between_two_files(moment: str, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Optuna and trials.jsonl know may differ by one trial."""
    words = ("sweep=tpe", "sweep.n_trials=4", LR)
    sweep(*words)
    expected, trained = [{**line, "words": None} for line in lines()], list(fake.trained)
    Path("outputs").rename("whole")
    fake.trained.clear()
    where: tuple[type, str] = {"before the line": (Records, "add"), "before Optuna": (Study, "ended")}.get(
        moment, (Study, "propose")
    )
    real, calls = getattr(*where), []

    def kill(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(*where, kill)
    assert cli.run(["-m", *words, "name=s", "sweep.together=false"]) == 130
    monkeypatch.setattr(*where, real)
    sweep(*words)
    assert [{**line, "words": None} for line in lines()] == expected
    again = {"before the line": [trained[2]]}.get(moment, [])  # that run shows its result
    assert sorted(fake.trained) == sorted([*trained, *again])
    assert [trial.state.name for trial in database()] == ["COMPLETE"] * 4


def test_several_metrics(fake: Fake) -> None:
    words = ("sweep=tpe", "sweep.n_trials=6", LR, "optimizer.weight_decay=interval(0,1)")
    said = sweep(*words, "sweep.metrics=[log_loss,valid/accuracy,seconds]")
    values = [tuple(line["values"].values()) for line in lines()]
    assert [line["better"] for line in lines()] == [["min", "max", "min"]] * 6
    assert [*lines()[0]["values"]] == ["valid/log_loss", "valid/accuracy", "seconds"]
    front = [trial.number + 1 for trial in optuna.load_study(study_name=None, storage=_url()).best_trials]
    shown = [int(line.split()[1]) for line in said.splitlines() if line.startswith("  trial ")]
    assert len(front) > 1
    assert sorted(shown) == sorted(front)
    assert len(set(values)) == 6


def _url() -> str:
    return "sqlite:///outputs/sweeps/s/study.db"


# Signals


def test_a_search_that_is_asked_to_stop(server: Server, here: Path) -> None:
    words = ["-m", *IRIS[:-1], "epochs=60", "trainer.threads=1", "sweep=random", "sweep.n_trials=3", LR, "name=s"]
    words += ["sweep.together=false"]
    words.remove("epochs=4")
    launch = server.start(words, here)
    while not (here / "outputs/sweeps/s/multirun.yaml").exists() and not launch.over():
        time.sleep(0.01)
    launch.kill(signal.SIGINT)  # before the first trial has begun to train
    assert launch.wait()[0] == 75
    assert lines() == []
    for number in (signal.SIGTERM, signal.SIGINT):
        before = len(list(here.glob("outputs/*/metrics.jsonl")))
        launch = server.start(words, here)
        while len(list(here.glob("outputs/*/metrics.jsonl"))) == before and not launch.over():
            time.sleep(0.01)
        launch.kill(number)
        code, said = launch.wait()
        assert code == 75, said
        assert "of 3 trials, 0 failed" in said
        assert "Traceback" not in said
    code, said = server.run(words, here)
    assert code == 0, said
    assert [line["trial"] for line in lines()] == [1, 2, 3]
    assert len(list(here.glob("outputs/*/metrics.jsonl"))) == 3


# Pruning


@pytest.fixture(scope="module")
def pruned(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search some of whose trials were pruned."""
    folder = tmp_path_factory.mktemp("pruned")
    code, said = server.run([*PRUNED], folder)
    assert code == 0, said
    return folder


PRUNED = ("-m", *IRIS, "sweep=random", "sweep.n_trials=12", "sweep.pruner=median", LR, "name=s")


def test_median_pruning(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trial ends at the first evaluation that is worse than the median of what the finished ones had come to."""
    monkeypatch.chdir(pruned)
    finished: list[list[float]] = []
    ended = 0
    for line in lines():
        records = [json.loads(text) for text in Path("outputs", line["run"], "metrics.jsonl").read_text().splitlines()]
        curve = [record["valid/log_loss"] for record in records]
        behind = [
            n
            for n in range(1, 4)  # at the last epoch there is nothing to save
            if len(finished) >= 5
            and len(curve) >= n
            and min(curve[:n]) > sorted(other[n - 1] for other in finished)[(len(finished) - 1) // 2]
        ]
        result = json.loads(Path("outputs", line["run"], "result.json").read_text())
        assert line["status"] == result["status"]
        if result["status"] == "pruned":
            ended += 1
            assert behind[0] >= len(curve) or len(finished) % 2 == 0
            assert line["evaluations"] == result["epochs"] == len(curve) < 4
            assert line["values"] == {"valid/log_loss": curve[-1]}
            assert not Path("outputs", line["run"], "model").exists()
        else:
            assert not behind or len(finished) % 2 == 0
            finished.append(curve)
    assert 2 <= ended <= 7
    assert [trial.state is TrialState.PRUNED for trial in database()] == [
        line["status"] == "pruned" for line in lines()
    ]


def test_a_pruned_trial_is_no_finished_run(
    pruned: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pruned)
    one = next(line["run"] for line in lines() if line["status"] == "pruned")
    assert cli.run(["list", "runs"]) == 0
    assert f"{one}  pruned" in capsys.readouterr().out
    Path("new.csv").write_text("a\n1\n")
    assert cli.run(["predict", f"run={one}", "input=new.csv"]) == 2
    assert capsys.readouterr().err == (
        f"dltrain: run must be a finished run, got {one}, which is pruned; dltrain resume run={one}\n"
    )
    code, said = server.run(["resume", f"run={one}"], pruned)
    assert code == 0, said
    assert json.loads(Path("outputs", one, "result.json").read_text())["epochs"] == 4
    epochs = [json.loads(text)["epoch"] for text in Path("outputs", one, "metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3, 4]


@pytest.mark.slow
def test_two_ranks_prune_what_one_prunes(pruned: Path, server: Server, here: Path) -> None:
    code, said = server.run([*PRUNED, "trainer=ddp", "exact=true", "shards=2"], here, ranks=2)
    assert code == 0, said
    alone = here / "alone"
    alone.mkdir()
    code, said = server.run([*PRUNED, "exact=true", "shards=2"], alone)
    assert code == 0, said
    found = [[line[key] for key in ("trial", "status", "params", "values", "evaluations", "run")] for line in lines()]
    os.chdir(alone)
    assert found == [
        [line[k] for k in ("trial", "status", "params", "values", "evaluations", "run")] for line in lines()
    ]
    assert {"pruned", "finished"} == {one[1] for one in found}


def test_halving_is_optunas(server: Server, here: Path) -> None:
    """Asked in the order of the trials, Optuna's own pruner ends each where it was ended."""
    words = ["-m", *IRIS, "sweep.pruner=halving", "optimizer.lr=0.1,0.03,0.01,0.003,0.001", "seed=0,1", "name=s"]
    code, said = server.run(words, here)
    assert code == 0, said
    study = optuna.create_study(pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1))
    for line in lines():
        records = [json.loads(text) for text in Path("outputs", line["run"], "metrics.jsonl").read_text().splitlines()]
        trial, cut = study.ask(), None
        for n, record in enumerate(records, 1):
            trial.report(record["valid/log_loss"], n)
            if trial.should_prune() and n < 4:
                cut = n
        assert line["evaluations"] == cut
        study.tell(trial, line["values"]["valid/log_loss"] if cut is None else None, state=cut and TrialState.PRUNED)
    assert 0 < sum(line["status"] == "pruned" for line in lines()) < 10


# Slots and the terminal


@pytest.mark.slow
def test_slots_come_to_what_one_process_comes_to(here: Path) -> None:
    words = ("-m", *IRIS, "sweep=random", "sweep.n_trials=4", "sweep.together=false", LR, "name=s")
    for root, more in (("one", ()), ("two", ("sweep.slots=2",))):
        command = [sys.executable, "-m", "dltrain", *words, *more, f"output_root={root}"]
        said = pexpect.run(shlex.join(command), timeout=300, withexitstatus=True, env={**os.environ, "COLUMNS": "50"})
        assert said[1] == 0, said[0]
    one, two = (
        {p.parent.name: json.loads(p.read_text()) for p in here.glob(f"{r}/*/result.json")} for r in ("one", "two")
    )
    assert {name: r["weights_sha256"] for name, r in one.items()} == {n: r["weights_sha256"] for n, r in two.items()}
    assert len(list(here.glob("two/sweeps/s/logs/trial-*.log"))) == 4
    assert not list(here.glob("one/sweeps/s/logs"))


@pytest.mark.slow
def test_a_slot_that_is_killed_is_a_failed_trial(here: Path) -> None:
    words = ("-m", *IRIS, "sweep=random", "sweep.n_trials=2", "sweep.slots=2", "epochs=100000", LR, "name=s")
    child = pexpect.spawn(sys.executable, ["-m", "dltrain", *words], env={**os.environ, "COLUMNS": "50"}, timeout=200)
    while len(found := list(here.glob("outputs/*/metrics.jsonl"))) < 2:
        time.sleep(0.1)
        assert child.isalive()
    pid = int((found[0].parent / "run.lock").read_text().split("pid ")[1].split(",")[0])
    os.kill(pid, signal.SIGKILL)
    child.expect("was killed by SIGKILL")
    child.kill(signal.SIGTERM)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 75
    assert [(line["exit"], line["message"]) for line in lines()] == [(137, "was killed by SIGKILL")]


@pytest.mark.slow
def test_slots_do_not_outlive_their_search(here: Path) -> None:
    words = ("-m", *IRIS, "sweep.slots=2", "epochs=100000", "seed=0,1,2", "name=s")
    child = pexpect.spawn(sys.executable, ["-m", "dltrain", *words], env={**os.environ, "COLUMNS": "50"}, timeout=200)
    while len(found := list(here.glob("outputs/*/metrics.jsonl"))) < 2:
        time.sleep(0.1)
        assert child.isalive()
    child.kill(signal.SIGKILL)
    child.wait()
    until = time.monotonic() + 60
    for path in found:
        with (path.parent / "run.lock").open() as lock:
            while time.monotonic() < until:  # the lock is free once its process has gone
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.05)
            else:
                pytest.fail(f"{path.parent.name} is trained still")


def test_slots_have_their_own_share(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def run(job: Job) -> JobReturn:
        print("said", job.number)
        told = [os.environ[key] for key in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
        return JobReturn(status=JobStatus.COMPLETED, _return_value=told)

    jobs = iter([Job(number, {}, ()) for number in (1, 2)])
    done = {job.number: returned.return_value for job, returned in spread(jobs, 2, run, here / "logs", lambda: False)}
    share = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert done == {1: ["3", share], 2: ["5", share]}
    assert (here / "logs/trial-2.log").read_text() == "said 2\n"


@pytest.mark.slow
def test_the_table_on_a_terminal(here: Path) -> None:
    words = ("-m", *IRIS, "sweep=random", "sweep.n_trials=3", LR, "name=s", "epochs=40", "sweep.together=false")
    command = shlex.join([sys.executable, "-m", "dltrain", *words])
    child = pexpect.spawn(command, dimensions=(24, 100), timeout=200, encoding="utf-8")
    child.expect(r"best +\d  ")
    child.expect(r"running +\d  ")
    child.expect(r"3 of 3 trials, 0 failed\r\n")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "finished, 40 epochs" in (here / "outputs/sweeps/s/logs/trial-1.log").read_text()
    assert (here / "outputs/sweeps/s/logs/trial-3.log").is_file()


# Side by side


def test_trials_side_by_side_are_what_they_are_alone(here: Path) -> None:
    words = ("-m", *IRIS, "activation=relu,tanh", "optimizer.lr=0.1,0.01", "seed=0,1", "name=s", "report=false")
    for value in ("true", "false"):
        with contextlib.redirect_stdout(io.StringIO()):
            assert cli.run([*words, f"sweep.together={value}", f"output_root={value}"]) == 0
    for run in here.glob("true/iris-*"):
        result, alone = (json.loads((here / root / run.name / "result.json").read_text()) for root in ("true", "false"))
        assert (result["together"], alone["together"]) == (4, 1)  # those of one activation
        assert result["test"] == pytest.approx(alone["test"], abs=1e-5)
    for root in ("true", "false"):
        found = [json.loads(line) for line in (here / root / "sweeps/s/trials.jsonl").read_text().splitlines()]
        assert sorted(line["trial"] for line in found) == list(range(1, 9))
        assert all(line["exit"] == 0 and line["values"] and line["run"] for line in found)


def test_stopped_before_any_trial_of_a_group_began(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    words = ["-m", *IRIS, "seed=0,1", "name=s", "sweep.together=true"]
    with monkeypatch.context() as patch:
        patch.setattr("dltrain.together.train.parts", interrupted)
        assert cli.run(words) == 75
    assert not [*here.glob("outputs/iris-*")]
    assert cli.run(words) == 0


def test_a_search_that_stops_at_a_failed_trial_begins_no_other_group(here: Path) -> None:
    words = ("-m", *IRIS, "activation=relu,tanh", "optimizer=sgd", "optimizer.lr=1e30,0.1", "name=s", "report=false")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.run([*words, "sweep.together=true", "sweep.on_fail=stop"]) == 1
    assert {(line["trial"], line["exit"]) for line in lines()} == {(1, 76), (2, 0)}
    assert "2 of 4 trials, 1 failed" in said.getvalue()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sweep.together=maybe"], "sweep.together must be auto, true or false, got maybe"),
        (["sweep.together=true", "sweep.slots=2"], "sweep.together must be auto or false with sweep=tpe, a pruner, "),
        (["sweep.together=true", "sweep=tpe"], "sweep.together must be auto or false with sweep=tpe, a pruner, "),
    ],
)
def test_what_cannot_go_side_by_side(
    words: list[str], sentence: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["-m", *IRIS, "optimizer.lr=0.1,0.01", *words]) == 2
    assert capsys.readouterr().err.startswith(f"dltrain: {sentence}")
    assert not list(here.iterdir())


def test_the_table_fits_a_screen_however_many_run(here: Path) -> None:
    board = Board(here, 1, {})
    board.running = {k: (Job(k, {"seed": str(k)}, ()), time.monotonic()) for k in range(1, 201)}
    said = board._table().plain.splitlines()
    assert len(said) < 20
    assert said[-1].split() == ["running", "192", "more"]


@pytest.mark.parametrize("slots", [1, 2])
def test_the_time_that_is_left(slots: int, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials end at the rate at which they ended, whether they run side by side, in slots or one after the other."""
    now = 1000.0
    monkeypatch.setattr("dltrain.sweeps.board.time", SimpleNamespace(monotonic=lambda: now))
    line = {"exit": 0, "status": "finished", "values": {"valid/rmse": 1.0}, "better": ["min"], "params": {}}
    known = {k: {**line, "trial": k} for k in range(1, 5)}  # by an earlier session, who knows when
    board = Board(here, slots, known)
    board.start(20)
    for k in range(5, 13):
        board.begins(Job(k, {}, ()), [])
    now += 30
    assert board._left() == []
    for k, seconds in ((5, 10), (6, 0), (7, 0), (8, 0)):  # four side by side
        now += seconds
        known[k] = {**line, "trial": k}
        board.ended(known[k])
    assert board._left() == [40 / 4 * 12]
    now += 5
    assert "8 of 20 trials, 0 failed, about 2:00 left" in board._table().plain
    for k in range(9, 21):
        known[k] = {**line, "trial": k}
        board.ended(known[k])
    assert board._left() == []


# What README and docs/sweeps.md say

PAGES = [Path(__file__).parents[1] / name for name in ("README.md", "docs/sweeps.md")]
TEXT = "\n".join(page.read_text(encoding="utf-8").replace("\\\n", "") for page in PAGES)
COMMANDS = re.findall(r"^    dltrain -m (.*)$", TEXT, re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_searches_that_are_shown(command: str) -> None:
    words = [word for word in shlex.split(command, comments=True) if not word.startswith("hydra")]
    for variant in trials(words)[0]:
        assert compose(variant)["choices"]["model"]
    space = Space(OverridesParser.create().parse_overrides(words))
    assert space.distributions(compose([])) if {"sweep=tpe", "sweep=random"} & {*words} else space.every()


def test_there_is_something_shown() -> None:
    assert len(COMMANDS) >= 8
    assert "docs/sweeps.md" in PAGES[0].read_text(encoding="utf-8")


# What is wrong

BAD = {
    "-m optimizer.lr=interval(0.1,1)": (
        "optimizer.lr=interval(0.1,1) must be a list or a range with sweep=grid; sweep=random and sweep=tpe take it"
    ),
    "-m sweep=random optimizer.lr=interval(1,0.1)": (
        "optimizer.lr=interval(1,0.1) must go up from its first number to its second"
    ),
    "-m sweep=random optimizer.lr=tag(log,interval(0,1)) optimizer.weight_decay=0": (
        "optimizer.lr must be above 0, got 0"
    ),
    "-m sweep=random optimizer.weight_decay=tag(log,interval(0,1))": (
        "optimizer.weight_decay=tag(log,interval(0,1)) must be above 0 to have a log scale, got 0"
    ),
    "-m sweep=random optimizer.lr=tag(log,choice(0.1,0.2))": (
        "optimizer.lr=tag(log,choice(0.1,0.2)) must be an interval to have a log scale, got a list"
    ),
    "-m sweep=random optimizer.lr=tag(lgo,interval(0.1,1))": (
        "optimizer.lr must have a tag that there is, got lgo; did you mean log? (log)"
    ),
    "-m optimizer.lr=tag(lgo,choice(0.1,1))": "optimizer.lr must have a tag that there is, got lgo; did you mean log?",
    "-m model=glob(q*)": "model=glob(q*) must have a value to sweep over, got none (cnn, decoder, ",
    "-m seed=glob(*)": "seed must be a group to have choices that match, got glob(*) (activation, data, ",
    "-m modle=glob(*)": "modle must be a group to have choices that match, got glob(*); did you mean model? (activ",
    "-m seed=choice()": "seed=choice() must have a value to sweep over, got none",
    "-m sweep=random seed=range(0)": "seed=range(0) must have a value to sweep over, got none",
    "-m sweep=random epochs=3": (
        "sweep=random must have something to go through, as in 'optimizer.lr=interval(1e-4,1e-1)'"
    ),
    "-m sweep=random sweep.n_trials=0 seed=0,1": "sweep.n_trials must be at least 1, got 0",
    "-m sweep=tpe sweep.n_trials=x seed=0,1": "sweep.n_trials must be a whole number, got x",
    "-m sweep.n_trials=3 seed=0,1": "sweep.n_trials: no such setting of sweep=grid; it belongs to sweep=random, tpe",
    "-m sweep.on_fail=go seed=0,1": "sweep.on_fail must be continue or stop, got go",
    "-m sweep.pruner=mean seed=0,1": "sweep.pruner must be none, median or halving, got mean",
    "-m sweep.slots=0 seed=0,1": "sweep.slots must be at least 1, got 0",
    "-m sweep.metrics=3 seed=0,1": "sweep.metrics must be a list of metrics such as [valid/accuracy], or null, got 3",
    "-m sweep.metrics=[acuracy] seed=0,1": (
        "sweep.metrics must be metrics of the trials, got valid/acuracy; did you mean valid/accuracy? (epochs, seconds,"
    ),
    "-m sweep=tpe sweep.metrics=[f1/price,seconds,test/f1] seed=0,1": (
        "sweep.metrics must be metrics of the trials, got valid/test/f1; did you mean valid/f1? (epochs, seconds,"
    ),
    "-m monitor=valid/acuracy seed=0,1": "monitor must be a metric, got valid/acuracy; did you mean accuracy? (accu",
    "-m monitor=log_loss,auc task=supervised": "monitor must be a metric, got auc; did you mean auroc? (accuracy, ",
    "-m sweep.metrics=[log_loss,seconds] sweep.pruner=median seed=0,1": (
        "sweep.pruner must be none with several metrics, got median"
    ),
    "-m optimzer.lr=0.1,0.2": "optimzer: no such setting; did you mean optimizer?",
    "-m optimizer.lrr=0.1,0.2": "optimizer.lrr: no such setting of optimizer=adamw; did you mean optimizer.lr?",
    "-m sweep=tpee seed=0,1": "sweep=tpee: no such sweep; did you mean tpe? (grid, random, tpe)",
    "-m hydra/sweeper=basic seed=0,1": "hydra/sweeper=basic must be left out: sweep=grid, random or tpe says how",
    "sweep=tpe": "sweep=tpe needs -m: it goes through what is swept over",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_words(words: str, fake: Fake, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(words.split()) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"dltrain: {BAD[words]}")
    assert said.err.count("\n") == 1
    assert fake.trained == []
    assert list(here.iterdir()) == []


def test_every_metric_of_a_task_is_known_before_it_is_built() -> None:
    measured = {"loss", *(name for kind in NAMES.values() for name in kind)}
    for task in options("task"):
        kind = Builder(compose([f"task={task}"])).kind("task")
        measured |= {*kind.measures}
        for name in kind.measures:
            assert KNOWN[name] == kind.measures[name]
    assert measured == {*KNOWN}


def test_a_metric_of_a_task_of_ones_own(here: Path, fake: Fake) -> None:
    Path("configs/task").mkdir(parents=True)
    Path("configs/task/mine.yaml").write_text("# mine\n_target_: mytask.Mine\n")
    Path("mytask.py").touch()
    sweep("task=mine", "trust=[mytask]", "monitor=accurasy", "sweep.metrics=[log_loss]", "optimizer.lr=1,2")
    assert len(fake.trained) == 2


@pytest.mark.parametrize("words", [[], ["sweep=random", "sweep.n_trials=2"]])
@pytest.mark.parametrize("empty", ["range(5,1)", "shuffle(range(5,1))", "choice()", "tag(log,choice())"])
def test_an_experiment_without_a_value(
    empty: str, words: list[str], fake: Fake, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("configs/experiment").mkdir(parents=True)
    Path("configs/experiment/many.yaml").write_text(
        f"# @package _global_\nhydra: {{mode: MULTIRUN, sweeper: {{params: {{seed: '{empty}'}}}}}}\n"
    )
    for said in (["experiment=many"], ["-m", f"seed={empty}"]):
        assert cli.run([*said, *words]) == 2
        assert capsys.readouterr().err == f"dltrain: seed={empty} must have a value to sweep over, got none\n"
    assert [path.name for path in here.iterdir()] == ["configs"]


@pytest.mark.parametrize("words", [[], ["sweep=random", "sweep.n_trials=2"]])
def test_what_an_experiment_sweeps_over_is_checked_before(
    words: list[str], fake: Fake, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("configs/experiment").mkdir(parents=True)
    for wrong in ("seed: [3,[]]", "seed: '3,[]'", "activation: 'relu,tnah'", "seed: 'tag(lgo,choice(1,2))'"):
        text = (
            f"# @package _global_\nhydra: {{mode: MULTIRUN, sweeper: {{params: {{optimizer.lr: '1,2', {wrong}}}}}}}\n"
        )
        Path("configs/experiment/many.yaml").write_text(text)
        assert cli.run(["experiment=many", *words]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"dltrain: {wrong.partition(':')[0]}")
        assert said.count("\n") == 1
        sweep("experiment=many", *words, "seed=5", "activation=relu")  # what is typed counts
        assert {line["params"].get("seed", "5") for line in lines()} == {"5"}
        Path("outputs").rename(here / f"outputs-{len([*here.iterdir()])}")
    assert not Path("outputs").exists()


@pytest.mark.parametrize("words", [[], ["sweep=random", "sweep.n_trials=9"]])
def test_choices_that_match(words: list[str], fake: Fake) -> None:
    Path("configs/activation").mkdir(parents=True)
    Path("configs/activation/semi.yaml").write_text("# half\n_target_: torch.nn.Identity\n")
    sweep(*words, "activation=glob([se*,mi*,_*],exclude=selu)", "seed=0")
    tried = [line["params"]["activation"] for line in lines()]
    assert set(tried) == {"mish", "semi"}
    assert words or tried == ["mish", "semi"]


def test_a_metric_that_no_trial_has(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("sweep=random", "sweep.n_trials=4", LR)
    sweep(*words, "sweep.metrics=[valid/r2]", code=2)
    known = "(seconds, valid/accuracy, valid/log_loss)"
    assert capsys.readouterr().err == (
        f"dltrain: sweep.metrics must be metrics of the trials, got valid/r2; did you mean valid/accuracy? {known}\n"
    )
    assert len(fake.trained) == 1
    assert lines() == []
    sweep(*words, "sweep.metrics=[valid/accuracy]")  # nothing was lost: the first run shows its result
    assert fake.trained[1] == fake.trained[0]


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (
            ["optimizer.lr=tag(log,interval(1e-3,1))"],
            "optimizer.lr of the search was tag(log,interval(1e-3,1e-1)), now",
        ),
        ([LR, "seed=0,1"], "seed of the search was null, now 0,1"),
        ([LR, "epochs=7"], "epochs was 50, now 7"),
        ([LR, "sweep.seed=4"], "sweep.seed was 0, now 4"),
        ([LR, "sweep=tpe"], "sweep.by was random, now tpe"),
    ],
)
def test_another_search_of_the_same_name(
    words: list[str], changed: str, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep("sweep=random", "sweep.n_trials=2", LR)
    sweep(*([] if "sweep=tpe" in words else ["sweep=random"]), "sweep.n_trials=2", *words, code=2)
    said = capsys.readouterr().err
    assert said.startswith(f"dltrain: name must be free or of the same search, got s, a search in which {changed}")
    assert said.count("\n") == 1
    sweep("sweep=random", "sweep.n_trials=3", "sweep.slots=1", "sweep.on_fail=stop", LR)  # this may change


def test_a_search_without_optuna(fake: Fake, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    sweep("sweep=tpe", LR, code=2)
    assert capsys.readouterr().err == "dltrain: sweep=tpe needs pip install 'dltrain[sweep]'\n"
    assert list(here.iterdir()) == []
    sweep("seed=0,1")  # a grid does without


def test_a_locked_database(fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("dltrain.sweeps.study.WAIT", 0.1)
    sweep("sweep=random", "sweep.n_trials=2", LR)
    other = sqlite3.connect("outputs/sweeps/s/study.db")
    other.execute("BEGIN EXCLUSIVE")
    sweep("sweep=random", "sweep.n_trials=3", LR, code=73)
    said = capsys.readouterr().err
    assert said == "dltrain: sweep s is in use: another program holds outputs/sweeps/s/study.db locked\n"
    other.close()
    sweep("sweep=random", "sweep.n_trials=3", LR)
    assert len(lines()) == len(fake.trained) == 3


def test_a_search_that_another_process_carries_out(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    sweep("optimizer.lr=0.1,0.2")
    with Path("outputs/sweeps/s/trials.jsonl").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sweep("optimizer.lr=0.1,0.2", code=73)
    assert capsys.readouterr().err == "dltrain: sweep s is in use by another process\n"


def test_a_damaged_database(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    sweep("sweep=random", "sweep.n_trials=2", LR)
    Path("outputs/sweeps/s/study.db").write_bytes(b"no database" * 1000)
    sweep("sweep=random", "sweep.n_trials=3", LR, code=2)
    said = capsys.readouterr().err
    assert said.startswith("dltrain: outputs/sweeps/s/study.db must be the database of this sweep, got one that cannot")
    assert said.count("\n") == 1


def test_a_full_disk(fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake.ends = {2: DiskError("no space left on device")}
    sweep("optimizer.lr=0.1,0.2,0.3", code=74)
    assert capsys.readouterr().err.endswith("no space left on device; the same command continues the sweep\n")
    assert len(lines()) == 1
    sweep("optimizer.lr=0.1,0.2,0.3")
    assert len(lines()) == 3
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    sweep("optimizer.lr=0.1,0.2,0.3", "name=t", code=74)
    assert capsys.readouterr().err == "dltrain: no space left\n"


def test_a_stopped_trial_is_not_recorded(fake: Fake) -> None:
    fake.ends = {2: Stopped("saved")}
    assert "1 of 3 trials, 0 failed" in sweep("optimizer.lr=0.1,0.2,0.3", code=75)
    assert len(lines()) == 1
