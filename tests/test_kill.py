"""`kill -9` at any moment and the same command again come to the same bits as a run that nobody disturbed."""

import json
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from forks import WORDS, Launch, Server, outcome

from dltrain.checkpoint import Checkpoints, verify

KILLS, LEAST = 30, 5  # in all; inside a save, in data or start-up, in evaluation
PLACES = ("start-up", "save", "evaluation")


def test_the_run_uses_all_that_is_saved(undisturbed: dict[str, Any]) -> None:
    """The comparison is of a run in which every piece of state matters."""
    result = undisturbed["result"]
    assert result["stopped_early"]
    assert 1 < result["best_epoch"] < result["epochs"]
    kinds = [name.rpartition("|")[2] for name in undisturbed if "optim.safetensors" in name]
    assert {"step", "exp_avg", "exp_avg_sq"} <= set(kinds)
    assert any("ema.safetensors" in name for name in undisturbed)
    assert any("running_mean" in name for name in undisturbed)


def test_thirty_kills(server: Server, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    chance = random.Random(20)
    killed: Counter[str] = Counter()
    finished, launches = 0, 0
    while finished < 3 or killed.total() < KILLS or min(killed[place] for place in PLACES) < LEAST:
        folder = tmp_path / str(finished)
        folder.mkdir()
        over = False
        while not over:
            launches += 1
            assert launches < 250, f"too few kills where they were wanted: {dict(killed)}"
            over, place = disturbed(server, folder, chance, killed)
            killed[place] += not over
            readable(folder / "outputs" / "run")
        assert outcome(folder / "outputs" / "run") == undisturbed
        finished += 1
    print(f"{launches} launches, {killed.total()} kills in {finished} runs: {dict(killed)}")


EVERYWHERE = (
    *("data", "build", "restore", "publish", "train", "save", "save-model", "save-optim", "save-ema", "save-state"),
    *(
        "save-manifest",
        "rename",
        "renamed",
        "write-best",
        "prune",
        "saved",
        "evaluate",
        "evaluated",
        "conclude",
        "best",
    ),
)


def test_a_kill_at_every_named_place(server: Server, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """One run, killed again and again, each time at the first place of another kind."""
    for place in EVERYWHERE:
        code, said = server.run(WORDS, tmp_path, FAULT=f"{place}:kill")
        assert code == -signal.SIGKILL, f"{place}: {said}"
        readable(tmp_path / "outputs" / "run")
    code, said = server.run(WORDS, tmp_path)
    assert code == 0, said
    assert outcome(tmp_path / "outputs" / "run") == undisturbed


def disturbed(server: Server, folder: Path, chance: random.Random, killed: Counter[str]) -> tuple[bool, str]:
    """Launch and kill at a random moment, mostly of the kind that was hit least; whether it ended first, and where."""
    phases = folder / "phases"
    phases.write_text("")
    launch = server.start(WORDS, folder, PHASES=str(phases))
    wanted = chance.choice([*PLACES, min(PLACES, key=lambda place: killed[place]), "training", "end", "any"])
    if killed.total() >= 10 * (1 + int(folder.name)):  # enough of this run
        wanted = "never"
    await_moment(launch, phases, wanted, chance)
    launch.kill(signal.SIGKILL)
    code, said = launch.wait()
    assert code in (0, -signal.SIGKILL), said
    return code == 0, where(phases.read_text().split())


def await_moment(launch: Launch, phases: Path, wanted: str, chance: random.Random) -> None:
    """Return at a random moment of the wanted kind, or when the command is over."""
    first, times, delay = {
        "start-up": ("data", 1, chance.uniform(0, 0.1)),
        "save": ("save", chance.randint(1, 12), chance.choice([0, chance.uniform(0, 0.02)])),
        "evaluation": ("evaluate", chance.randint(1, 6), 0),
        "training": ("train", 1, chance.uniform(0, 0.5)),
        "end": ("conclude", 1, chance.choice([0, chance.uniform(0, 0.03)])),
        "any": ("", 1, chance.uniform(0, 1)),
        "never": ("never", 1, 0),
    }[wanted]
    while first and phases.read_text().split().count(first) < times and not launch.over():
        time.sleep(0.0003)
    time.sleep(delay)


def where(phases: list[str]) -> str:
    """The place of a kill, by the places that were passed."""

    def last(place: str) -> int:
        return max((number for number, passed in enumerate(phases) if passed == place), default=-1)

    if "train" not in phases:
        return "start-up"
    if last("evaluate") > last("evaluated"):
        return "evaluation"
    if last("save") > last("saved"):
        return "save"
    return "end" if "conclude" in phases else "training"


def readable(run: Path) -> None:
    """Every checkpoint that was published verifies and reads, and so does every other file that has its name."""
    checkpoints = Checkpoints(run / "checkpoints", pytest.fail)
    for step in checkpoints.steps():
        tensors, state = checkpoints.read(step)
        assert state["position"]["step"] == step
        assert {"model", "optim", "ema"} <= set(tensors)
    if (run / "model").is_dir():
        verify(run / "model")
    for path in run.glob("*.json"):
        json.loads(path.read_text())


FORGET = """
from dltrain.checkpoint import Checkpoints
newest = Checkpoints.newest
def forgetful(self):
    tensors, state = newest(self)
    position, player = state["position"], state["players"]["network"]
    {}
    return tensors, state
Checkpoints.newest = forgetful
"""
PIECES = {
    "nothing": "pass",
    "the optimizer's moments": "[v.zero_() for k, v in tensors['optim'].items() if '|exp_avg' in k]",
    "the optimizer's step": "[v.zero_() for k, v in tensors['optim'].items() if k.endswith('|step')]",
    "the learning rate": "player['groups'][0]['lr'] = 0.1",
    "the schedule": "player['scheduler']['last_epoch'] = 0",
    "weights": "[v.zero_() for k, v in tensors['model'].items() if k.endswith('weight')]",
    "batch statistics": "[v.zero_() for k, v in tensors['model'].items() if 'running_mean' in k]",
    "the average": "tensors['ema'] = {k: tensors['model'][k] for k in tensors['ema']}",
    "the epoch": "position['epoch'] = 0",
    "the batch": "position['batch'] = 0",
    "the step": "position['step'] = 0",
    "the rows": "position['rows'] = 0",
    "the running losses": "position['losses'] = {}",
    "the best value": "position['best_value'] = None",
    "the best step": "position['best_step'] = None",
    "the best epoch": "position['best_epoch'] = None",
    "evaluations since the best": "position['since_best'] = 0",
}


@pytest.mark.parametrize("piece", PIECES)
def test_a_forgotten_piece_is_noticed(
    piece: str, server: Server, undisturbed: dict[str, Any], killed_at_50: Path, tmp_path: Path
) -> None:
    """The comparison can fail: it does for every single piece of state that is not restored."""
    folder = shutil.copytree(killed_at_50, tmp_path / "copy")
    assert [path.name for path in sorted((folder / "outputs/run/checkpoints").glob("step-*"))][-1] == "step-00000050"
    code, said = server.run(WORDS, folder, FORGET.format(PIECES[piece]))
    assert code == 0, said
    assert (outcome(folder / "outputs" / "run") == undisturbed) == (piece == "nothing")
