"""Checkpoints: whole, verified, rejected with a reason when damaged, and nothing lost when the disk is full."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.forks import WORDS, Server, outcome
from torch import nn

from dltrain.checkpoint import Checkpoints, pack, unpack, verify
from dltrain.distributed import Single
from dltrain.player import Finite, Player


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
    result = json.loads(found["result.json"])
    assert result["best_epoch"] == result["epochs"]


def test_a_checkpoint_of_a_newer_dltrain_is_left_alone(server: Server, killed_at_50: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(killed_at_50, tmp_path / "copy")
    change("manifest.json", format=2)(step(folder))
    code, said = server.run(WORDS, folder)
    assert code == 2
    assert "step-00000050 must be of format 1 or older, got 2; update dltrain" in said
    assert step(folder).is_dir()


FILES = [f"save-{file}" for file in ("model", "optim", "ema", "state", "manifest")]
FILES += ["rename", "renamed", "write-best", "prune"]


@pytest.mark.parametrize("place", FILES)
def test_a_full_disk_costs_nothing_that_was_saved(
    place: str, server: Server, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    code, said = server.run(WORDS, tmp_path, FAULT=f"{place}:full:4")
    assert code == 74, said
    assert "dltrain: no space left on device" in said
    assert "Traceback" not in said
    run = tmp_path / "outputs" / "run"
    assert json.loads((run / "result.json").read_text())["status"] == "failed"
    for path in sorted((run / "checkpoints").glob("step-*")):
        verify(path)
    code, said = server.run(WORDS, tmp_path)
    assert code == 0, said
    assert "continuing at" in said
    assert outcome(run) == undisturbed


def test_what_the_system_says_of_a_file_that_does_not_fit(server: Server, tmp_path: Path) -> None:
    """safetensors wraps errors of the system in one of its own."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    words = ["data=xor", "data.rows=80", "model.hidden=[64,64]", "epochs=1", "name=run"]
    code, said = server.run(words, tmp_path, limit)
    assert code == 74, said
    assert "dltrain: cannot write " in said
    assert "File too large" in said
    assert "Traceback" not in said
    code, said = server.run(words, tmp_path)
    assert code == 0, said


SINGLE = Single("cpu")
OPTIMIZERS = {
    "AdamW": {},
    "SGD": {"momentum": 0.9},
    "RMSprop": {"centered": True},
    "Adagrad": {},
    "Rprop": {},
    "Adafactor": {},
    "NAdam": {},
}


def player(optimizer: str, seed: int) -> tuple[nn.Module, Player]:
    torch.manual_seed(seed)
    task = nn.ModuleDict({"network": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))})
    network = task["network"]
    network[0].bias.requires_grad_(False)  # numbers of parameters and of states differ
    made = getattr(torch.optim, optimizer)(network.named_parameters(), lr=0.01, **OPTIMIZERS[optimizer])
    schedule = torch.optim.lr_scheduler.StepLR(made, 2, 0.5)
    return task, Player("network", network, made, schedule, True, [], None, 0.9, SINGLE)


def steps(task: nn.Module, moved: Player, numbers: range) -> None:
    for number in numbers:
        torch.manual_seed(number)
        moved.zero_grad()
        task["network"](torch.randn(8, 3)).square().sum().backward()
        moved.step(torch.zeros(()), 8, Finite(torch.device("cpu"), False))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_packed_through_files_and_unpacked(optimizer: str, tmp_path: Path) -> None:
    """Three steps, a checkpoint, three more: as six without one, for every kind of optimizer state."""
    task, moved = player(optimizer, 0)
    steps(task, moved, range(3))
    checkpoints = Checkpoints(tmp_path / "checkpoints", pytest.fail)
    tensors, state = pack(task, {"network": moved}, SINGLE)
    checkpoints.save(3, tensors, state | {"position": {"step": 3}}, None)
    steps(task, moved, range(3, 6))
    checkpoints.wait()
    other, again = player(optimizer, 1)
    unpack(other, {"network": again}, SINGLE, *checkpoints.read(3))
    steps(other, again, range(3, 6))
    found, expected = (pack(t, {"network": p}, SINGLE) for t, p in ((other, again), (task, moved)))
    assert json.dumps(found[1]) == json.dumps(expected[1])
    assert found[0].keys() == expected[0].keys() >= {"model", "ema"}
    for file, group in expected[0].items():
        assert group.keys() == found[0][file].keys()
        assert all(torch.equal(value, found[0][file][name]) for name, value in group.items()), file


def test_milestones_outlive_a_file() -> None:
    """JSON has no numbers for keys."""
    (task, moved), (other, again) = player("SGD", 0), player("SGD", 1)
    for one in (moved, again):
        one.scheduler = torch.optim.lr_scheduler.MultiStepLR(one.optimizer, [2, 4], 0.1)
    steps(task, moved, range(3))
    tensors, state = pack(task, {"network": moved}, SINGLE)
    unpack(other, {"network": again}, SINGLE, tensors, json.loads(json.dumps(state)))
    assert again.lr == pytest.approx(0.001)
    steps(other, again, range(3, 5))
    assert again.lr == pytest.approx(0.0001)


def test_a_checkpoint_is_a_copy(tmp_path: Path) -> None:
    """Training goes on while it is written."""
    task, moved = player("AdamW", 0)
    tensors, _ = pack(task, {"network": moved}, SINGLE)
    before = {name: value.clone() for name, value in tensors["model"].items()}
    steps(task, moved, range(2))
    assert all(torch.equal(value, tensors["model"][name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("bests", "kept"),
    [
        ([None] * 6, [4, 5, 6]),
        ([1, 2, 3, 4, 5, 6], [4, 5, 6]),
        ([1, 1, 1, 1, 1, 1], [1, 4, 5, 6]),
        ([1, 2, 2, 2, 5, 5], [2, 4, 5, 6]),  # 4 still names 2
    ],
)
def test_the_last_three_and_their_bests_are_kept(bests: list[int | None], kept: list[int], tmp_path: Path) -> None:
    task, moved = player("AdamW", 0)
    checkpoints = Checkpoints(tmp_path / "checkpoints", pytest.fail)
    for number, best in enumerate(bests, start=1):
        checkpoints.save(number, *pack(task, {"network": moved}, SINGLE), best)
    checkpoints.wait()
    assert checkpoints.steps() == kept
    assert bests[-1] is None or (checkpoints.folder / "best").read_text() == f"step-{bests[-1]:08d}\n"
    hidden = [path.name for path in checkpoints.folder.iterdir() if path.name.startswith(".")]
    assert hidden == [], "nothing half written or half removed is left"


def test_nothing_in_a_run_is_pickled(killed_at_50: Path) -> None:
    run = killed_at_50 / "outputs" / "run"
    names = {path.name for path in run.rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in names} <= {".safetensors", ".json", ".jsonl", ".yaml", ".lock", ""}
    for path in run.rglob("*.safetensors"):
        size = int.from_bytes(path.read_bytes()[:8], "little")
        assert json.loads(path.read_bytes()[8 : 8 + size]), "a header of JSON, as safetensors has"
