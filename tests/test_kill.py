"""`kill -9` at any moment and the same command again come to the same bits as a run that nobody disturbed."""

import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forks import Launch, Server, outcome

from dltrain.checkpoint import Checkpoints, verify

# dropout, batch statistics, a schedule over all steps, an average, early stopping, two shards, and saves and
# evaluations in the middle of epochs of 8 steps; it stops early at step 56 of 64, with the best evaluation at step 35
SETTINGS = (
    "data=xor data.rows=3000 data.noise=0.5 data.split.valid=0.85 data.split.test=0.11 model.hidden=[8] "
    "model.dropout=0.2 model.norm=batch scheduler=onecycle scheduler.peak=3 optimizer.lr=0.1 ema=0.8 clip_norm=1 "
    "shards=2 batch_size=16 epochs=8 evaluate_every=7steps regularizer=[early_stopping] "
    "regularizer.early_stopping.patience=3 trainer.save_every=5steps trainer.threads=1 seed=3 name=run"
)
WORDS = SETTINGS.split()
KILLS, LEAST = 30, 5  # in all; inside a save, in data or start-up, in evaluation
PLACES = ("start-up", "save", "evaluation")


@pytest.fixture(scope="module")
def undisturbed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    code, said = server.run(WORDS, folder)
    assert code == 0, said
    return outcome(folder / "outputs" / "run")


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


STOP_AT_50 = """
import os, signal
from dltrain.checkpoint import Checkpoints
write = Checkpoints._write
def killed(self, step, *rest):
    write(self, step, *rest)
    if step == 50:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints._write = killed
"""
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


@pytest.fixture(scope="module")
def killed_at_50(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    code, said = server.run(WORDS, folder, STOP_AT_50)
    assert code == -signal.SIGKILL, said
    return folder


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


def step(folder: Path, number: int = 50) -> Path:
    return folder / f"outputs/run/checkpoints/step-{number:08d}"


def change(name: str, **entries: Any) -> Callable[[Path], None]:
    """Overwrite entries of a checkpoint's JSON file."""

    def changed(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return changed


def flipped(name: str) -> Callable[[Path], None]:
    """Flip one bit in the middle of a file."""

    def flip(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return flip


def cut(folder: Path) -> None:
    path = folder / "optim.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def escaping(folder: Path) -> None:
    """A manifest that names a file outside, with its true size and hash."""
    manifest = json.loads((folder / "manifest.json").read_text())
    shutil.copy(folder / "state.json", folder.parent / "state.json")
    manifest["files"]["../state.json"] = manifest["files"].pop("state.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def linked(folder: Path) -> None:
    (folder / "state.json").rename(folder.parent / "state.json")
    (folder / "state.json").symlink_to(folder.parent / "state.json")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped weights": (flipped("model.safetensors"), "model.safetensors does not have the content its manifest says"),
    "flipped moments": (flipped("optim.safetensors"), "optim.safetensors does not have the content its manifest says"),
    "flipped state": (flipped("state.json"), "state.json does not have the content its manifest says"),
    "cut short": (cut, "bytes, its manifest says"),
    "a file missing": (without("ema.safetensors"), "ema.safetensors is missing"),
    "no manifest": (without("manifest.json"), "manifest.json cannot be read (FileNotFoundError)"),
    "a manifest of zeros": (
        lambda folder: (folder / "manifest.json").write_bytes(bytes(500)) and None,
        "manifest.json cannot be read (JSONDecodeError)",
    ),
    "a manifest that is not text": (
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\xfd") and None,
        "manifest.json cannot be read (UnicodeDecodeError)",
    ),
    "a manifest of a list": (change("manifest.json", files=["model.safetensors"]), "manifest.json cannot be read"),
    "a manifest of another step": (change("manifest.json", step=49), "manifest.json is of step 49"),
    "a name that leads outside": (escaping, "../state.json is missing"),
    "a link": (linked, "state.json is missing"),
    "files that are not listed": (change("manifest.json", files={}), "manifest.json does not list"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_rejected_with_a_reason(
    damage: str, server: Server, undisturbed: dict[str, Any], killed_at_50: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(killed_at_50, tmp_path / "copy")
    make, reason = DAMAGE[damage]
    make(step(folder))
    code, said = server.run(WORDS, folder)
    assert code == 0, said
    assert "checkpoint step-00000050 was rejected" in " ".join(said.split())
    assert reason in " ".join(said.split())
    assert "step 45" in said, "it falls back to the one before"
    assert outcome(folder / "outputs" / "run") == undisturbed


def test_all_damaged_starts_over(
    server: Server, undisturbed: dict[str, Any], killed_at_50: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(killed_at_50, tmp_path / "copy")
    steps = sorted((folder / "outputs/run/checkpoints").glob("step-*"))
    assert len(steps) == 4, "the last three and the best"
    for path in steps:
        flipped("model.safetensors")(path)
    code, said = server.run(WORDS, folder)
    assert code == 0, said
    assert said.count("was rejected") == 4
    assert "continuing" not in said
    assert "no checkpoint can be read; training starts over" in " ".join(said.split())
    assert outcome(folder / "outputs" / "run") == undisturbed


def test_a_damaged_best_checkpoint_gives_the_last_weights(
    server: Server, undisturbed: dict[str, Any], killed_at_50: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(killed_at_50, tmp_path / "copy")
    flipped("ema.safetensors")(step(folder, 35))
    code, said = server.run(WORDS, folder)
    assert code == 0, said
    assert "the best checkpoint, step-00000035, was rejected" in " ".join(said.split())
    assert "the last weights are used instead" in " ".join(said.split())
    found = outcome(folder / "outputs" / "run")
    last = {name: value for name, value in found.items() if "ema.safetensors: network.head.weight" in name}
    assert found["model/model.safetensors: network.head.weight"] == next(iter(last.values()))
    assert undisturbed["model/model.safetensors: network.head.weight"] != next(iter(last.values()))
    assert found["result"]["best_epoch"] == found["result"]["epochs"]


def test_a_checkpoint_of_a_newer_dltrain_is_left_alone(server: Server, killed_at_50: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(killed_at_50, tmp_path / "copy")
    change("manifest.json", format=2)(step(folder))
    code, said = server.run(WORDS, folder)
    assert code == 2
    assert "step-00000050 must be of format 1 or older, got 2; update dltrain" in said
    assert step(folder).is_dir()
