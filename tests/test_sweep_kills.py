"""Searches that are killed at random moments, and go on by the same command: nothing is lost, nothing is done twice."""

import json
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults.forks import HANG, Server

IRIS = ("data=iris", "model.hidden=[8]", "epochs=6", "name=search", "trainer.threads=1", "report=false")
ALONE = "sweep.together=false"  # trials side by side equal those alone not to the bit
GRID = ("-m", *IRIS, ALONE, "optimizer.lr=0.1,0.03,0.01", "seed=0,1", "activation=relu,tanh")
SPACE = (
    "optimizer.lr=tag(log,interval(1e-3,3e-1))",
    "optimizer.weight_decay=interval(0,1)",
    "activation=relu,tanh,gelu",
)
RANDOM = ("-m", *IRIS, ALONE, "sweep=random", "sweep.n_trials=20", *SPACE)
CANCER = ("data=breast_cancer", "batch_size=64", "epochs=8", *IRIS[1:2], *IRIS[3:])
TPE = ("-m", *CANCER, "sweep=tpe", "sweep.n_trials=30", "sweep.pruner=median", *SPACE)
SEARCHES = {"grid": (GRID, 12), "random": (RANDOM, 20), "tpe": (TPE, 30)}
KILLS = 3


def lines(folder: Path) -> list[dict[str, Any]]:
    """What trials.jsonl says, without how long it took."""
    path = folder / "outputs/sweeps/search/trials.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines() if line] if path.is_file() else []
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def outcome(run: Path) -> dict[str, Any]:
    """What must be equal to the bit of two runs of the same settings."""
    result = json.loads((run / "result.json").read_text())
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, result["epochs"] + 1))  # each epoch once
    curve = [{key: value for key, value in record.items() if "/" in key} for record in records]
    kept = ("status", "epochs", "best_epoch", "valid", "test", "weights_sha256", "evaluations")
    return {"curve": curve, **{key: result.get(key) for key in kept}}


def outcomes(folder: Path) -> dict[str, dict[str, Any]]:
    """Those of all runs there are."""
    assert not list(folder.glob("outputs/.*")) + list(folder.glob("outputs/*~*"))
    return {path.parent.name: outcome(path.parent) for path in folder.glob("outputs/*/config.yaml")}


def ended(folder: Path) -> dict[str, int]:
    """When each run that has ended wrote its result."""
    found = {path: json.loads(path.read_text()) for path in folder.glob("outputs/*/result.json")}
    over = [path for path, result in found.items() if result["status"] in ("finished", "pruned")]
    return {str(path): path.stat().st_mtime_ns for path in over}


def trained(folder: Path) -> int:
    """Epochs that the runs have recorded: how far a search has come, however busy the machine."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("outputs/*/metrics.jsonl"))


def kill(server: Server, words: tuple[str, ...], folder: Path, epochs: int, chance: random.Random) -> dict[str, int]:
    """Start a search of so many epochs, and kill it, again and again; returns what had ended before a kill."""
    over: dict[str, int] = {}
    for _ in range(KILLS):
        enough = trained(folder) + round(epochs * chance.uniform(0.08, 0.2))
        launch, began = server.start(list(words), folder), time.monotonic()
        while trained(folder) < enough:
            assert not launch.over(), launch.wait()
            assert time.monotonic() - began < HANG
            time.sleep(0.003)
        time.sleep(chance.uniform(0, 0.05))  # anywhere in an epoch, or between two trials
        launch.kill(signal.SIGKILL)
        assert launch.wait()[0] == -signal.SIGKILL
        over |= ended(folder)
    return over


@dataclass
class Continued:
    """A search that was killed and came to its end all the same, and one that nobody touched."""

    whole: Path
    killed: Path
    number: int  # trials that had ended when the last start took it up
    said: str  # by the last start


def completed(server: Server, words: tuple[str, ...], folder: Path) -> str:
    """What a search says that ends well."""
    code, said = server.run(list(words), folder, seconds=600)
    assert code == 0, said
    return said


def continued(server: Server, words: tuple[str, ...], home: Path, chance: str) -> Continued:
    """Carry out a search untouched, and again with kills; what had ended before a kill is not touched again."""
    whole, killed = home / "whole", home / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    completed(server, words, whole)
    over = kill(server, words, killed, trained(whole), random.Random(chance))
    number = len(lines(killed))
    said = completed(server, words, killed)
    assert over.items() <= ended(killed).items()
    return Continued(whole, killed, number, said)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_that_is_killed(name: str, server: Server, tmp_path: Path) -> None:
    words, number = SEARCHES[name]
    found = continued(server, words, tmp_path, name)
    assert 0 < found.number < number
    assert found.said.count(f"of {number} trials, 0 failed") == 1
    every = lines(found.killed)
    assert every == lines(found.whole)  # the same trials in the same order, with the same values
    assert [line["trial"] for line in every] == list(range(1, number + 1))
    assert len({json.dumps(line["params"]) for line in every}) == number
    assert outcomes(found.killed) == outcomes(found.whole)  # as many trainings as trials, to the bit
    assert len(outcomes(found.killed)) == number
    if name == "tpe":
        assert 0 < sum(line["status"] == "pruned" for line in every) < number
    before = ended(found.killed)
    completed(server, words, found.killed)
    assert ended(found.killed) == before


@pytest.mark.slow
def test_a_killed_search_of_trials_side_by_side(server: Server, tmp_path: Path) -> None:
    """Another kill makes other stacks, which round otherwise: the numbers are close, the counts are exact."""
    words = (*(word for word in GRID if word != ALONE), "sweep.together=true", "epochs=60")
    both = continued(server, words, tmp_path, "beside")
    expected, found = ({line["trial"]: line for line in lines(folder)} for folder in (both.whole, both.killed))
    assert sorted(found) == sorted(expected) == list(range(1, 13))
    assert len(outcomes(both.killed)) == 12
    together = [json.loads(path.read_text())["together"] for path in both.killed.glob("outputs/*/result.json")]
    assert max(together) > 1
    for number, line in found.items():
        assert line["run"] == expected[number]["run"]
        assert line["values"] == pytest.approx(expected[number]["values"], rel=1e-4)
    best = [
        min(some.values(), key=lambda line: line["values"]["valid/log_loss"])["trial"] for some in (found, expected)
    ]
    assert best[0] == best[1]
