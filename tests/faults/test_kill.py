"""`kill -9` anywhere and the same command again, on other processes, come to the bits of a run left alone."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from faults.campaign import PLACES, readable
from faults.forks import STOP_AT_50, WORDS, Server, outcome

from dltrain.player import Finite

ON_EVERY_RANK = ("data", "build", "restore", "publish", "train", "evaluate", "evaluated", "conclude", "best")
ON_RANK_0 = (
    *("save", "save-model", "save-optim", "save-ema", "save-state", "save-manifest", "rename", "renamed"),
    *("write-best", "prune", "saved", "finished"),
)


def test_the_run_uses_all_that_is_saved(undisturbed: dict[str, str]) -> None:
    """The comparison is of a run in which every piece of state matters."""
    result = json.loads(undisturbed["result.json"])
    assert result["stopped_early"]
    assert 1 < result["best_epoch"] < result["epochs"]
    kinds = {name.rpartition("|")[2] for name in undisturbed if "optim.safetensors" in name}
    assert {"step", "exp_avg", "exp_avg_sq"} <= kinds
    assert any("ema.safetensors" in name for name in undisturbed)
    assert any("running_mean" in name for name in undisturbed)


def test_a_kill_at_every_named_place(server: Server, undisturbed: dict[str, str], tmp_path: Path) -> None:
    """One run, killed again and again, each time at the first place of another kind, of the last rank where it can be.

    Every launch is on other processes than the one before.
    """
    damaged: list[str] = []
    for number, place in enumerate([*ON_EVERY_RANK[:5], *ON_RANK_0[:-1], *ON_EVERY_RANK[5:], "finished"]):
        name, ranks = [*PLACES.items()][number % len(PLACES)]
        rank = 0 if place in ON_RANK_0 else ranks - 1
        words = [*WORDS, f"trainer={name.split()[0]}"]
        launch = server.start(words, tmp_path, ranks=ranks, FAULT=f"{place}@{rank}:kill")
        code, said = launch.wait()
        assert launch.codes[rank] == code == -signal.SIGKILL, f"{place} {name}: {said}"
        readable(tmp_path, damaged)
    code, said = server.run(WORDS, tmp_path)
    assert (code, damaged) == (0, []), said
    assert "is finished" in said
    assert outcome(tmp_path / "outputs" / "run") == undisturbed


FORGET = """
from dltrain import course, order, step, train
unpack = train.unpack
def forgetful(task, players, trainer, tensors, state):
    position, player = state["position"], state["players"]["network"]
    {}
    unpack(task, players, trainer, tensors, state)
train.unpack = forgetful
"""
PIECES = {
    "nothing": "pass",
    "the optimizer's moments": "[v.zero_() for k, v in tensors['optim'].items() if k.endswith('|exp_avg')]",
    "their squares": "[v.zero_() for k, v in tensors['optim'].items() if k.endswith('|exp_avg_sq')]",
    "the optimizer's step": "[v.zero_() for k, v in tensors['optim'].items() if k.endswith('|step')]",
    "the learning rate": "player['groups'][0]['lr'] = 0.1",
    "the schedule": "player['scheduler']['last_epoch'] = 0",
    "weights": "[v.zero_() for k, v in tensors['model'].items() if k.endswith('weight')]",
    "batch statistics": "[v.zero_() for k, v in tensors['model'].items() if 'running_mean' in k]",
    "batch variances": "[v.fill_(1) for k, v in tensors['model'].items() if 'running_var' in k]",
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
    "what ails the network": "state['health'] |= {'text': '', 'looks': 0}",
    "the seed of the order": "course.epoch_order = lambda rows, seed, epoch: order.epoch_order(rows, seed + 1, epoch)",
    "the seed of the noise": "step.noise_seed = lambda seed, *rest: order.noise_seed(seed + 1, *rest)",
}
ACROSS = (
    *("nothing", "the optimizer's moments", "the optimizer's step", "the schedule", "batch statistics", "the average"),
    *("the batch", "the step", "the best value", "evaluations since the best", "the seed of the noise"),
)


def resumed(server: Server, killed: Path, folder: Path, place: str, patch: str = "") -> dict[str, str]:
    """What a run that was killed at step 50 of 56 comes to elsewhere."""
    shutil.copytree(killed, folder)
    assert max(path.name for path in (folder / "outputs/run/checkpoints").glob("step-*")) == "step-00000050"
    code, said = server.run([*WORDS, f"trainer={place.split()[0]}"], folder, patch, PLACES[place])
    assert code == 0, said
    assert patch or "continuing at epoch 6, step 50\n" in said
    return outcome(folder / "outputs" / "run")


@pytest.mark.parametrize("piece", PIECES)
def test_a_forgotten_piece_is_noticed(
    piece: str, server: Server, undisturbed: dict[str, str], killed_at_50: Path, tmp_path: Path
) -> None:
    """The comparison can fail: it does for every single piece of state that is not restored."""
    found = resumed(server, killed_at_50, tmp_path / "copy", "single", FORGET.format(PIECES[piece]))
    assert (found == undisturbed) == (piece == "nothing")


@pytest.mark.parametrize("place", ["ddp x 2", "fsdp x 2"])
@pytest.mark.parametrize("piece", ACROSS)
def test_a_forgotten_piece_is_noticed_on_several_ranks(
    piece: str, place: str, server: Server, undisturbed: dict[str, str], killed_at_50: Path, tmp_path: Path
) -> None:
    found = resumed(server, killed_at_50, tmp_path / "copy", place, FORGET.format(PIECES[piece]))
    assert (found == undisturbed) == (piece == "nothing")


@pytest.mark.parametrize("piece", ["pass", "position['stopped_early'] = False"])
def test_a_forgotten_stop_is_noticed(piece: str, server: Server, undisturbed: dict[str, str], tmp_path: Path) -> None:
    """A run that was killed after early stopping has stopped."""
    assert server.run(WORDS, tmp_path, FAULT="conclude:kill")[0] == -signal.SIGKILL
    code, said = server.run(WORDS, tmp_path, FORGET.format(piece))
    assert code == 0, said
    assert (outcome(tmp_path / "outputs" / "run") == undisturbed) == (piece == "pass")


DRAW = """
import random, numpy, torch
torch.manual_seed(99), torch.rand(1000), numpy.random.rand(1000), random.random()
"""


@pytest.mark.parametrize("place", ["single", "ddp x 2"])
def test_no_generator_is_part_of_the_state(
    place: str, server: Server, undisturbed: dict[str, str], killed_at_50: Path, tmp_path: Path
) -> None:
    """Order and noise are functions of seed, epoch, step and shard: what was drawn before a restart does not matter."""
    patch = FORGET.format(DRAW.strip().replace("\n", "; "))
    assert resumed(server, killed_at_50, tmp_path / "copy", place, patch) == undisturbed


SCALED = """
from dltrain.player import Finite
made = Finite.__init__
Finite.__init__ = lambda self, device, scaled: made(self, device, scaled=True)
"""


def test_a_forgotten_scale_is_noticed(server: Server, tmp_path: Path) -> None:
    """No CPU trains in float16, but float32 can be scaled as if it were that."""
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    alone.mkdir()
    killed.mkdir()
    assert server.run(WORDS, alone, SCALED)[0] == 0
    assert server.run(WORDS, killed, SCALED + STOP_AT_50)[0] == -signal.SIGKILL
    for number, piece in enumerate(["pass", "state['scaler'] = []"]):
        found = resumed(server, killed, tmp_path / str(number), "single", SCALED + FORGET.format(piece))
        assert (found == outcome(alone / "outputs" / "run")) == (piece == "pass")


def test_the_scale_of_float16_doubles_as_if_nothing_had_happened() -> None:
    scaled = [Finite(torch.device("cpu"), scaled=True) for _ in range(3)]
    before, restored, forgetful = scaled

    def step(finite: Finite, value: float) -> None:
        finite.divide([torch.tensor([value])], 1)
        finite.stepped()

    for value in (1.0, float("inf"), 1.0, 1.0):
        step(before, value)
    restored.load(json.loads(json.dumps(before.state())))
    assert before.state() == restored.state() == [2.0**15, 2]
    for finite in scaled:
        for _ in range(1998):
            step(finite, 1.0)
    assert before.state() == restored.state() == [2.0**16, 0]  # it doubles after 2000 good steps
    assert forgetful.state() == [2.0**16, 1998]


CONFIGS = Path(__file__).parents[2] / "configs"
CHOICES = [f"{group}={path.stem}" for group in ("optimizer", "scheduler") for path in (CONFIGS / group).glob("*.yaml")]
SMALL = "data=xor data.rows=200 model.hidden=[8] epochs=5 batch_size=40 trainer.save_every=3steps trainer.threads=1"
MORE = {  # settings with which something is kept, and moves within a few epochs
    "optimizer=sgd": ["optimizer.momentum=0.9"],
    "scheduler=plateau": ["scheduler.patience=1", "scheduler.threshold=1"],
    "scheduler=step": ["scheduler.step_size=2"],
}


@pytest.mark.parametrize("word", sorted(CHOICES))
def test_every_optimizer_and_scheduler_goes_on(word: str, server: Server, tmp_path: Path) -> None:
    """What each of them keeps is saved, all of it."""
    words = [*SMALL.split(), "name=run", word, *MORE.get(word, [])]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    alone.mkdir()
    killed.mkdir()
    assert server.run(words, killed, FAULT="saved:kill:5")[0] == -signal.SIGKILL
    for folder in (alone, killed):
        code, said = server.run(words, folder)
        assert code == 0, said
        assert ("continuing at" in said) == (folder == killed)
    assert outcome(alone / "outputs" / "run") == outcome(killed / "outputs" / "run")


def test_a_checkpoint_of_four_ranks_continues_everywhere(
    server: Server, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """What `fsdp` on four ranks wrote is read by every other trainer as it is."""
    words = [*WORDS, "trainer=fsdp"]
    launch = server.start(words, tmp_path, STOP_AT_50, ranks=4)
    code, said = launch.wait()
    assert launch.codes[0] == code == -signal.SIGKILL, said
    for place in ("single", "ddp x 2", "fsdp x 2"):
        copy = tmp_path.with_name(f"{tmp_path.name} {place}")
        assert resumed(server, tmp_path, copy, place) == undisturbed


def test_predict_reads_what_four_ranks_trained(server: Server, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("a,b\n0.1,0.9\n1,1\n0,0\n0.3,-2\n")
    predicted = []
    for name, ranks in (("single", 1), ("fsdp", 4)):
        words = [word for word in WORDS if not word.startswith("name=")]
        code, said = server.run([*words, f"trainer={name}", f"name={name}"], tmp_path, ranks=ranks)
        assert code == 0, said
        code, said = server.run(["predict", f"run={name}", "input=new.csv", f"out={name}.csv"], tmp_path)
        assert code == 0, said
        predicted.append((tmp_path / f"{name}.csv").read_bytes())
    assert predicted[0] == predicted[1]
    assert predicted[0].startswith(b"row,prediction,p_0,p_1\n0,")
    assert predicted[0].count(b"\n") == 5
