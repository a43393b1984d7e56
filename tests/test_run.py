"""A run is a folder named by what it is: its hash, lock, life and end, and how the commands find it."""

import copy
import json
import os
import shutil
import signal
import socket
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import yaml
from faults.forks import WORDS, Launch, Server, outcome

from dltrain.compose import compose
from dltrain.errors import ConfigError
from dltrain.opening import digest, identity
from dltrain.run import Run, find, lock

QUICK = ["data=xor", "data.rows=80", "model.hidden=[4]", "epochs=2", "batch_size=16", "trainer.threads=1"]
CSV = ["data=csv", "data.path=rows.csv", "data.target=y", *QUICK[2:]]


def hashed(*words: str) -> str:
    return digest(identity(compose(list(words))))


def rows(path: Path, first: str = "0.5") -> None:
    lines = [f"{first if i == 0 else i},{i % 7},{'ab'[i % 2]}" for i in range(60)]
    path.write_text("\n".join(["x,z,y", *lines]) + "\n")


def folders(root: Path) -> list[str]:
    """The names of all folders in a root of runs, hidden ones too."""
    return sorted(path.name for path in root.iterdir()) if root.is_dir() else []


def said_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "result.json").read_text()))


def until(launch: Launch, phases: Path, place: str, times: int = 1) -> None:
    """Wait until a launched command has passed a place so often."""
    while not phases.exists() or phases.read_text().split().count(place) < times:
        assert not launch.over(), launch.wait()
        time.sleep(0.002)


# --- names


@pytest.mark.parametrize(
    "words",
    [
        ["optimizer.lr=0.001", "seed=0"],
        ["seed=0", "optimizer.lr=0.001"],
        ["optimizer.lr=1e-3"],
        ["optimizer=adamw", "model=mlp"],
        ["model.dropout=0"],
        ["trainer.threads=2", "trainer.save_every=1", "trainer.compile=true", "trainer.deterministic=false"],
        ["logger=[tensorboard]"],
        ["name=other", "output_root=elsewhere", "fresh=true"],
        ["shards=1"],
        ["epochs=50"],
    ],
)
def test_what_does_not_change_a_result_does_not_change_the_hash(words: list[str]) -> None:
    assert hashed(*words) == hashed()


def test_one_and_one_point_zero_are_one() -> None:
    assert hashed("optimizer.lr=1") == hashed("optimizer.lr=1.0") != hashed()


CHANGES = [
    *("seed=1", "epochs=51", "batch_size=65", "batch_size=all", "clip_norm=1", "shards=2", "exact=true", "ema=0.9"),
    *("precision=bfloat16", "monitor=valid/loss", "evaluate_every=2", "data=iris", "data.split.valid=0.2"),
    *("data.split.kind=random", "data.split.seed=1", "pipeline=none", "pipeline=pca", "pipeline=quantile"),
    *("model=linear", "model.hidden=[256]", "model.dropout=0.1", "model.norm=layer", "activation=gelu"),
    *("task.threshold=0.4", "loss=mse", "loss.label_smoothing=0.1", "loss.class_weights=balanced", "optimizer=sgd"),
    *("optimizer.lr=0.002", "optimizer.weight_decay=0", "optimizer.betas=[0.9,0.99]", "scheduler=cosine"),
    *("regularizer=[l2]", "regularizer=[l1]", "regularizer=[early_stopping]", "regularizer=[mixup]"),
]


def test_everything_that_changes_a_result_changes_the_hash() -> None:
    hashes = {word: hashed(word) for word in CHANGES} | {"": hashed()}
    twice = [pair for pair in hashes.items() if list(hashes.values()).count(pair[1]) > 1]
    assert not twice


def test_the_order_of_the_pipeline_counts_and_of_other_mappings_does_not() -> None:
    config = compose(["pipeline=pca"])
    assert len(config["pipeline"]) > 1
    turned = copy.deepcopy(config)
    turned["pipeline"] = dict(reversed(config["pipeline"].items()))
    assert digest(identity(turned)) != digest(identity(config))
    turned = copy.deepcopy(config)
    turned["model"] = dict(reversed(config["model"].items()))
    assert digest(identity(turned)) == digest(identity(config))


def test_the_content_of_a_file_counts_and_its_path_does_not(tmp_path: Path) -> None:
    rows(tmp_path / "rows.csv")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "rows.csv", tmp_path / "elsewhere" / "renamed.csv")
    words = ["data=csv", "data.target=y"]
    here = hashed(*words, f"data.path={tmp_path}/rows.csv")
    assert hashed(*words, f"data.path={tmp_path}/elsewhere/renamed.csv") == here
    rows(tmp_path / "rows.csv", "0.25")
    assert hashed(*words, f"data.path={tmp_path}/rows.csv") != here


def test_the_source_of_a_trusted_module_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "mynets_of_a_run.py"
    source.write_text("size = 1\n")
    before = hashed("trust=[mynets_of_a_run]")
    assert before != hashed()
    source.write_text("size = 2\n")
    assert hashed("trust=[mynets_of_a_run]") != before
    with pytest.raises(ConfigError, match="trust must name modules that can be imported from here, got nonets"):
        hashed("trust=[nonets]")


def test_a_life_of_a_run(server: Server, tmp_path: Path) -> None:
    """Named by its hash, trained once, shown after that, trained again when asked, another when its data changes."""
    rows(tmp_path / "rows.csv")
    with chdir(tmp_path):
        name = f"csv-mlp-{hashed(*CSV)[:8]}"
    code, said = server.run(CSV, tmp_path)
    assert code == 0, said
    root = tmp_path / "outputs"
    assert folders(root) == [name]
    first, written = outcome(root / name), (root / name / "result.json").stat().st_mtime_ns
    assert yaml.safe_load((root / name / "overrides.yaml").read_text()) == CSV

    code, said = server.run([*reversed(CSV), "trainer.save_every=1", "logger=[]"], tmp_path)
    assert code == 0, said
    assert f"{name} is finished; fresh=true trains it again" in said
    assert (root / name / "result.json").stat().st_mtime_ns == written

    code, said = server.run([*CSV, "fresh=true"], tmp_path)
    assert code == 0, said
    assert folders(root) == [name, f"{name}~1"]
    assert outcome(root / name) == outcome(root / f"{name}~1") == first
    assert server.run([*CSV, "fresh=true"], tmp_path)[0] == 0
    assert folders(root) == [name, f"{name}~1", f"{name}~2"]

    rows(tmp_path / "rows.csv", "0.25")
    assert server.run(CSV, tmp_path)[0] == 0
    assert len(folders(root)) == 4


def test_fresh_continues_a_run_that_is_not_finished(server: Server, tmp_path: Path) -> None:
    words = [*QUICK, "name=run", "fresh=true", "trainer.save_every=1"]
    assert server.run(words, tmp_path, FAULT="conclude:kill")[0] == -signal.SIGKILL
    code, said = server.run(words, tmp_path)
    assert code == 0, said
    assert "continuing at epoch 2" in said
    assert folders(tmp_path / "outputs") == ["run"]


def test_a_name_is_not_given_to_another_run(server: Server, tmp_path: Path) -> None:
    rows(tmp_path / "rows.csv")
    assert server.run([*CSV, "name=mine"], tmp_path)[0] == 0
    before = outcome(tmp_path / "outputs" / "mine")
    code, said = server.run([*CSV, "name=mine", "optimizer.lr=0.5", "seed=2"], tmp_path)
    assert code == 2
    assert (
        "name must be free or of the same settings, got mine, a run in which "
        "data.split.seed was 0, now 2; optimizer.lr was 0.001, now 0.5; seed was 0, now 2"
    ) in said
    rows(tmp_path / "rows.csv", "0.25")
    code, said = server.run([*CSV, "name=mine"], tmp_path)
    assert code == 2
    assert "got mine, a run in which the content of data.path was another, now changed" in said
    assert outcome(tmp_path / "outputs" / "mine") == before


# --- the lock


def test_two_processes_on_one_run(server: Server, tmp_path: Path) -> None:
    phases = tmp_path / "phases"
    for place in ("data", "evaluate"):
        phases.unlink(missing_ok=True)
        first = server.start([*QUICK, "name=run"], tmp_path, PHASES=str(phases), FAULT=f"{place}:sleep")
        until(first, phases, place)
        for command in ([*QUICK, "name=run"], ["resume", "run=run"])[: 1 + (place == "evaluate")]:
            code, said = server.run(command, tmp_path)
            assert code == 73
            assert f"dltrain: run run is in use by host {socket.gethostname()}, pid {first.pid}," in said
        first.kill(signal.SIGKILL)
        first.wait()
    assert folders(tmp_path / "outputs") == ["run"]
    assert server.run([*QUICK, "name=run"], tmp_path)[0] == 0


def test_what_a_killed_start_left_is_used_again(server: Server, tmp_path: Path) -> None:
    for place in ("data", "build", "restore", "publish"):
        assert server.run([*QUICK, "name=run"], tmp_path, FAULT=f"{place}:kill")[0] == -signal.SIGKILL
        assert folders(tmp_path / "outputs") == [".run.new"]
    (tmp_path / "outputs" / ".run.new" / "checkpoints").mkdir()
    (tmp_path / "outputs" / ".run.new" / "checkpoints" / "step-00000099").mkdir()
    code, said = server.run([*QUICK, "name=run"], tmp_path)
    assert code == 0, said
    assert "rejected" not in said
    assert folders(tmp_path / "outputs") == ["run"]


def test_a_lock_of_a_folder_that_was_removed_is_none(tmp_path: Path) -> None:
    assert lock(tmp_path / "nowhere") is None
    held = lock(tmp_path)
    assert held is not None
    held.close()


WRONG = {
    "a value": (["optimizer.lr=-1"], 2, "optimizer.lr must be above 0"),
    "at build": (["model.hidden=[0]"], 2, "model.hidden"),
    "a loss": (["loss=mse"], 2, "loss=mse must go with a target of numbers"),
    "no file": (["data=csv", "data.path=none.csv", "data.target=y"], 65, "none.csv: no such file"),
    "a file": (["data=csv", "data.path=constant.csv", "data.target=y"], 65, "constant.csv"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_leaves_nothing_behind(wrong: str, server: Server, tmp_path: Path) -> None:
    words, expected, sentence = WRONG[wrong]
    (tmp_path / "constant.csv").write_text("x,y\n" + "".join(f"{i},a\n" for i in range(50)))
    base = QUICK if words[0].split("=")[0] != "data" else QUICK[2:]
    for root in ("outputs", "deep/er/outputs"):
        code, said = server.run([*base, *words, f"output_root={root}"], tmp_path)
        assert code == expected, said
        assert sentence in said
        assert "Traceback" not in said
        assert folders(tmp_path) == ["constant.csv"]
    (tmp_path / "mine").mkdir()
    assert server.run([*base, *words, "output_root=mine"], tmp_path)[0] == expected
    assert folders(tmp_path) == ["constant.csv", "mine"], "a folder that was there stays"


# --- finding runs


def made(root: Path, name: str, status: str = "finished", score: float = 0.0, **config: Any) -> Path:
    """A folder that looks like a run."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(compose([]) | {"format": 1, "hash": name} | config))
    result = {"status": status, "monitor": "log_loss", "direction": "min", "valid": {"log_loss": score}}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("found") / "outputs"
    for age, (name, score) in enumerate((("digits-mlp-11", 0.3), ("digits-mlp-12", 0.1), ("digits-cnn-11", 0.2))):
        folder = made(root, name, score=score)
        (folder / "result.json").touch()
        os.utime(folder / "result.json", (age, age))
    made(root, "digits-mlp-13", status="running", score=0.01)
    os.utime(root / "digits-mlp-13" / "result.json", (-5, -5))
    (root / ".hidden.new").mkdir()
    (root / "sweeps").mkdir()
    return root


def test_a_run_is_found(root: Path) -> None:
    assert find("digits-c", str(root)).name == "digits-cnn-11"
    assert find("digits-mlp-12", str(root)).name == "digits-mlp-12"
    assert find(str(root / "digits-mlp-12"), "nowhere").folder == root / "digits-mlp-12"
    assert find("last", str(root)).name == "digits-cnn-11"
    assert find("best", str(root)).name == "digits-mlp-12"


def test_the_whole_name_wins_over_a_beginning(tmp_path: Path) -> None:
    made(tmp_path, "a")
    made(tmp_path, "ab")
    assert find("a", str(tmp_path)).name == "a"


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (
            "digits-mlp",
            "run must be the beginning of one name, got digits-mlp, which begins digits-mlp-11, ",
        ),
        ("digits-nlp-12", "got digits-nlp-12; did you mean digits-mlp-12?"),
        ("sweeps", "run must be a run in "),
        (".hidden", "run must be a run in "),
        ("", "run must be "),
    ],
)
def test_a_run_that_is_not_found(word: str, sentence: str, root: Path) -> None:
    with pytest.raises(ConfigError) as error:
        find(word, str(root))
    assert sentence in str(error.value)


def test_where_there_are_no_runs(tmp_path: Path) -> None:
    for word, sentence in (
        ("last", "run=last must have a run in"),
        ("best", "run=best must have a finished run in"),
        ("some", "run must be a run in"),
        (str(tmp_path), "which has no config.yaml"),
    ):
        with pytest.raises(ConfigError) as error:
            find(word, str(tmp_path))
        assert sentence in str(error.value)


# --- resume


def test_more_epochs_are_a_run_as_if_it_had_been_that_long(server: Server, tmp_path: Path) -> None:
    words = [*QUICK, "model.dropout=0.3", "ema=0.9", "trainer.save_every=3steps"]
    (tmp_path / "straight").mkdir()
    code, said = server.run([*words, "epochs=5"], tmp_path / "straight")
    assert code == 0, said
    assert server.run([*words, "name=short"], tmp_path)[0] == 0
    before = outcome(tmp_path / "outputs" / "short")
    code, said = server.run(["resume", "run=short", "epochs=5"], tmp_path)
    assert code == 0, said
    assert "continuing at epoch 2" in said
    [name] = folders(tmp_path / "straight" / "outputs")
    assert folders(tmp_path / "outputs") == ["short", name]
    assert outcome(tmp_path / "outputs" / name) == outcome(tmp_path / "straight" / "outputs" / name)
    assert outcome(tmp_path / "outputs" / "short") == before
    code, said = server.run(["resume", "run=short", "epochs=5"], tmp_path)
    assert code == 0, said
    assert f"{name} is finished" in said
    code, said = server.run([*words, "epochs=5"], tmp_path)
    assert f"{name} is finished" in said, "and its own command finds it"
    code, said = server.run(["resume", "run=short", "epochs=1"], tmp_path)
    assert code == 2
    assert "epochs must be more than the 2 of run short, got 1" in said


def test_fewer_epochs_than_a_killed_run_has_made(server: Server, tmp_path: Path) -> None:
    """Its result.json still says what was known when it was started."""
    words = [*QUICK, "epochs=9", "trainer.save_every=1", "name=run"]
    assert server.run(words, tmp_path, FAULT="saved:kill:5")[0] == -signal.SIGKILL
    code, said = server.run(["resume", "run=run", "epochs=2"], tmp_path)
    assert code == 2, said
    assert "epochs must be at least the " in said
    assert folders(tmp_path / "outputs") == ["run"]


@pytest.fixture(scope="module")
def trained(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and the file that it was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    rows(folder / "rows.csv")
    code, said = server.run([*CSV, "scheduler=cosine", "name=run"], folder)
    assert code == 0, said
    return folder


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("optimizer.lr=0.5", "optimizer.lr must stay 0.001 in a run that is continued, got 0.5"),
        ("model=linear", "model"),
        ("seed=4", "seed must stay 0 in a run that is continued, got 4"),
        ("batch_size=8", "batch_size must stay 16 in a run that is continued, got 8"),
        ("epochs=9", "epochs must stay as it is with scheduler=cosine, whose curve depends on the last step"),
        ("optimizer.rl=1", "optimizer.rl: no such setting of optimizer=adamw"),
    ],
)
def test_what_would_change_the_mathematics_is_refused_by_name(
    word: str, sentence: str, server: Server, trained: Path
) -> None:
    before = outcome(trained / "outputs" / "run")
    code, said = server.run(["resume", "run=run", word], trained)
    assert code == 2, said
    assert sentence in said
    assert "Traceback" not in said
    assert folders(trained / "outputs") == ["run"]
    assert outcome(trained / "outputs" / "run") == before


def test_resume_of_another_file_is_refused(server: Server, trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "copy")
    config = folder / "outputs" / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(trained), str(folder)))
    rows(folder / "rows.csv", "0.25")
    for command in (["resume", "run=run"], ["evaluate", "run=run"]):
        code, said = server.run(command, folder)
        assert code == 65
        assert "rows.csv: has changed since run run was " in said


# --- predict and evaluate


def unfinished(run: Path) -> None:
    shutil.rmtree(run / "model")
    (run / "result.json").write_text(json.dumps({"status": "stopped"}))


def damaged(run: Path) -> None:
    content = bytearray((run / "model" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "model" / "model.safetensors").write_bytes(content)


def newer(run: Path) -> None:
    manifest = json.loads((run / "model" / "manifest.json").read_text())
    (run / "model" / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))


def gone(run: Path) -> None:
    shutil.rmtree(run)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (unfinished, "run must be a finished run, got run, which is stopped; dltrain resume run=run"),
        (damaged, "run must have an undamaged model, got run: model.safetensors does not have the content"),
        (newer, "model must be of format 1 or older, got 2; update dltrain"),
        (gone, "run must be a run in outputs, got run"),
    ],
)
def test_a_run_that_cannot_be_applied(
    make: Any, sentence: str, command: str, server: Server, trained: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained, tmp_path / "copy")
    make(folder / "outputs" / "run")
    code, said = server.run([command, "run=run", "input=rows.csv"], folder)
    assert code == 2, said
    assert said.startswith(f"dltrain: {sentence}")
    assert len(said.splitlines()) == 1
    assert not (folder / "predictions.csv").exists()


# --- signals, and losses that are not finite


def test_sigterm_saves_and_the_same_command_continues(
    server: Server, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "outputs" / "run"
    for number, place in enumerate(("evaluate", "save-state", "evaluate", "conclude")):
        code, said = server.run(WORDS, tmp_path, FAULT=f"{place}:term:{2 if place != 'conclude' else 1}")
        if place == "conclude":
            break  # nothing is left to be saved: it finishes
        assert code == 75, said
        assert "and saved; run again to continue" in said
        assert said_of(run)["status"] == "stopped"
        assert "continuing at" in said or number == 0
    assert code == 0, said
    assert outcome(run) == undisturbed


@pytest.mark.parametrize("place", ["data", "build", "restore", "publish"])
def test_sigterm_before_training_leaves_nothing(place: str, server: Server, tmp_path: Path) -> None:
    code, said = server.run([*QUICK, "name=run"], tmp_path, FAULT=f"{place}:term")
    assert code == 75, said
    assert "stopped before training began; nothing was lost" in said
    assert folders(tmp_path) == []


def test_one_interrupt_saves(server: Server, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    phases = tmp_path / "phases"
    launch = server.start(WORDS, tmp_path, PHASES=str(phases))
    until(launch, phases, "train")
    launch.kill(signal.SIGINT)
    code, said = launch.wait()
    assert code == 75, said
    assert said_of(tmp_path / "outputs" / "run")["status"] == "stopped"
    assert server.run(WORDS, tmp_path)[0] == 0
    assert outcome(tmp_path / "outputs" / "run") == undisturbed


def test_two_interrupts_exit_at_once(server: Server, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    phases = tmp_path / "phases"
    launch = server.start(WORDS, tmp_path, PHASES=str(phases), FAULT="evaluate:sleep:2")
    until(launch, phases, "evaluate", 2)
    launch.kill(signal.SIGINT)
    time.sleep(0.5)
    assert not launch.over(), "one waits for the evaluation"
    launch.kill(signal.SIGINT)
    code, said = launch.wait()
    assert code == 130, said
    assert "Traceback" not in said
    assert server.run(WORDS, tmp_path)[0] == 0
    assert outcome(tmp_path / "outputs" / "run") == undisturbed


def test_a_loss_that_is_not_finite_ends_the_run(server: Server, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    words = [*QUICK, "optimizer.lr=1e30", "optimizer.weight_decay=0", "trainer.save_every=1steps", "name=run"]
    for attempt in range(2):
        code, said = server.run(words, tmp_path)
        assert code == 76, said
        assert "dltrain: step 2: the loss or a gradient became infinite or not a number" in " ".join(said.split())
        assert "Traceback" not in said
        run = tmp_path / "outputs" / "run"
        result = said_of(run)
        assert result["status"] == "failed", attempt
        assert result["reason"].startswith("step 2: ")
        [checkpoint] = (run / "checkpoints").glob("step-*")
        assert checkpoint.name == "step-00000001"
        assert all(value.isfinite().all() for value in load_file(checkpoint / "model.safetensors").values())
        assert not (run / "model").exists()


def test_a_run_is_named_as_it_is_found_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "outputs" / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("trust: [mine, yours]\n")
    monkeypatch.chdir(tmp_path)
    assert Run(folder).command("resume") == "dltrain resume run=run 'trust=[mine,yours]'"
    monkeypatch.chdir(tmp_path.parent)  # there, run=run names no run
    assert Run(folder).command("resume") == f"dltrain resume run={folder} 'trust=[mine,yours]'"
