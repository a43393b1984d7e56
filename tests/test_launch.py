"""Runs of several processes that are killed, stopped and started elsewhere: real launches of whole commands."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
import yaml
from launches import DDP, OURS, SMALL, Started, epochs, folders, launch, saved, weights
from runs import launch as train_here
from runs import working

CONTINUE = "dltrain: continue with  dltrain resume run=run"
RESUME = CONTINUE.split()[4:]
STOPPED = r"dltrain: stopped at epoch \d, step \d+, and saved; run again to continue\n"
LONG = 15  # lines at most that a failure takes on the screen


def on(trainer: str, *words: str) -> list[str]:
    """A run of two processes that comes to the same bits as `alone`."""
    return [*SMALL, f"trainer={trainer}", "trainer.devices=2", "exact=true", *words]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights that nobody disturbed, of one process."""
    with working(tmp_path_factory.mktemp("alone")):
        return str(train_here(*SMALL[:-1], "exact=true", "shards=2", name="run").result["weights_sha256"])


def finishes(folder: Path, words: list[str], from_step: int, alone: str) -> Started:
    """A command goes on from the newest checkpoint, and comes to the weights that nobody disturbed."""
    code, run = launch(folder, *words)
    assert code == 0, run.said
    assert f"continuing at epoch {from_step // 7}, step {from_step}\n" in run.out
    assert run.err == ""
    assert run.result["status"] == "finished"
    assert weights(folder) == alone
    assert folders(folder) == ["run"]
    assert not list((run.run / "checkpoints").glob(".*"))
    return run


# A rank fails


@pytest.mark.parametrize("trainer", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_killed_rank_is_started_again(trainer: str, alone: str, tmp_path: Path) -> None:
    code, run = launch(tmp_path, *on(trainer), DLTRAIN_FAULT="batch@1:kill:10")
    assert code == 0, run.said
    killed = "rank 1 of 2 was killed by SIGKILL, as the system does when memory runs out; starting again"
    assert run.out.count(killed) == 1
    assert run.err == ""
    assert epochs(run.out) == [1, 2]
    assert "continuing at epoch 1, step 7" in run.out
    assert run.result["status"] == "finished"
    assert weights(tmp_path) == alone
    assert run.log(0).count("rank 0 of 2, pid") == run.log(1).count("rank 1 of 2, pid") == 2


@pytest.mark.slow
def test_a_rank_that_may_not_be_started_again(alone: str, tmp_path: Path) -> None:
    code, run = launch(tmp_path, *on("ddp", "trainer.max_restarts=0"), DLTRAIN_FAULT="batch@1:kill:10")
    assert code == 128 + signal.SIGKILL, run.said
    lines = run.err.splitlines()
    assert lines[0] == "dltrain: rank 1 of 2 was killed by SIGKILL, as the system does when memory runs out"
    assert lines[-1] == CONTINUE
    assert len(lines) <= LONG
    assert run.result["status"] == "failed"
    assert epochs(finishes(tmp_path, RESUME, 7, alone).out) == [2]


def test_a_run_of_two_processes_goes_on_as_one(alone: str, tmp_path: Path) -> None:
    """What was typed for the trainer before says nothing of one that has no such setting."""
    typed = ("trainer.max_restarts=0", "trainer.save_every=7steps")
    code, run = launch(tmp_path, *on("ddp", *typed), DLTRAIN_FAULT="batch@1:kill:10")
    assert code == 128 + signal.SIGKILL, run.said
    run = finishes(tmp_path, [*RESUME, "trainer=single"], 7, alone)
    assert run.result["processes"] == 1
    config = yaml.safe_load((run.run / "config.yaml").read_text())
    assert config["trainer"]["save_every"] == "7steps"
    assert "devices" not in config["trainer"]
    code, run = launch(tmp_path, *RESUME, "trainer=single", "trainer.devices=2")
    assert code == 2
    assert "trainer.devices: no such setting of trainer=single" in run.err


@pytest.mark.parametrize(
    ("trainer", "fault"),
    [
        ("fsdp", "batch@1:raise:5"),
        pytest.param("ddp", "spawn@1:raise", marks=pytest.mark.slow),
        pytest.param("ddp", "evaluate@0:raise", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_raises(trainer: str, fault: str, tmp_path: Path) -> None:
    """It is named with its exception, started again once, and given up after the second time."""
    code, run = launch(tmp_path, *on(trainer), DLTRAIN_FAULT=fault)
    place, rank = fault.split(":")[0].split("@")
    sentence = f"rank {rank} of 2 raised RuntimeError: injected at {place}"
    assert code == 1, run.said
    assert run.out.count(f"warning: {sentence}; starting again") == 1
    lines = run.err.splitlines()
    assert lines[0] == f"dltrain: {sentence}"
    assert len(lines) <= LONG
    assert run.out.count("a  data=xor") <= 1
    if place == "spawn":  # there is nothing yet to go on with
        assert lines[-1].startswith("dltrain: continue with  dltrain data=xor data.rows=600 'model.hidden=[8]'")
        assert folders(tmp_path) == []
    else:
        assert lines[-1] == CONTINUE
        assert run.result["status"] == "failed"
        assert run.result["reason"] == sentence
        assert folders(tmp_path) == ["run"]


@pytest.mark.slow
def test_a_rank_that_does_not_answer(alone: str, tmp_path: Path) -> None:
    words = on("ddp", "trainer.timeout=5")
    code, run = launch(tmp_path, *words, "trainer.max_restarts=0", DLTRAIN_FAULT="batch@1:stop:10")
    assert code == 128 + signal.SIGKILL, run.said
    lines = run.err.splitlines()
    assert lines[0] == "dltrain: rank 1 of 2 did not answer for 5 seconds (trainer.timeout)"
    assert lines[-1] == CONTINUE
    assert len(lines) <= LONG
    assert run.result["status"] == "failed"
    assert saved(run.run) == [7]
    finishes(tmp_path, words, 7, alone)


# All of it is killed


@pytest.mark.slow
@pytest.mark.parametrize(("trainer", "everything"), [("ddp", False), ("fsdp", True)])
def test_after_kill_9(trainer: str, everything: bool, alone: str, tmp_path: Path) -> None:
    """Of the parent, whose workers die with it, or of everything at once."""
    run = Started(tmp_path, on(trainer), DLTRAIN_FAULT="batch:slow")
    run.passed("batch", 2 * 9)
    (run.signal_group if everything else run.signal)(signal.SIGKILL)
    killed = time.monotonic()
    assert run.wait() == 128 + signal.SIGKILL
    assert time.monotonic() - killed < 5
    assert run.result["status"] == "running"
    assert saved(run.run) == [7]
    finishes(tmp_path, on(trainer), 7, alone)


# It is asked to stop


@pytest.mark.parametrize(("trainer", "ctrl_c"), [("ddp", True), ("fsdp", False)])
def test_a_run_is_asked_to_stop(trainer: str, ctrl_c: bool, alone: str, tmp_path: Path) -> None:
    """By Ctrl-C, which reaches all of the group, or by a SIGTERM for the parent alone."""
    run = Started(tmp_path, on(trainer), DLTRAIN_FAULT="batch:slow")
    run.passed("batch", 2 * 9)
    if ctrl_c:
        run.signal_group(signal.SIGINT)
    else:
        run.signal(signal.SIGTERM)
    assert run.wait() == 75, run.said
    assert re.fullmatch(STOPPED, run.err)
    assert run.result["status"] == "stopped"
    step = saved(run.run)[-1]
    assert 9 <= step <= 13
    assert f"step {step}, and saved" in run.err
    finishes(tmp_path, on(trainer), step, alone)


def test_a_second_ctrl_c_waits_for_nobody(tmp_path: Path) -> None:
    """The first one waits for a rank that does not come to save."""
    run = Started(tmp_path, on("ddp"), DLTRAIN_FAULT="batch@1:sleep:10")
    run.passed("batch", 2 * 10)
    run.signal_group(signal.SIGINT)
    time.sleep(2)
    assert run.process.poll() is None
    assert len(run.alive()) == 3
    run.signal_group(signal.SIGINT)
    again = time.monotonic()
    assert run.wait() == 130, run.said
    assert time.monotonic() - again < 5
    assert run.err == ""
    assert saved(run.run) == [7]


def test_a_run_that_is_stopped_before_it_trains(tmp_path: Path) -> None:
    run = Started(tmp_path, on("ddp"), DLTRAIN_FAULT="spawn:sleep")
    run.passed("spawn", 2)
    run.signal_group(signal.SIGINT)
    assert run.wait() == 75, run.said
    assert run.err == "dltrain: stopped before training began; nothing was lost\n"
    assert folders(tmp_path) == []


# The disk is full


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    """In every file of a save in turn: what was saved before stays, and the same command goes on from there."""
    words, here = ["ema=0.9", "epochs=8", "trainer.save_every=1epochs"], tmp_path / "alone"
    here.mkdir()
    for number, place in enumerate(("save-model", "save-optim", "save-ema", "save-state", "save-manifest", "rename")):
        code, run = launch(tmp_path, *on("ddp", *words), DLTRAIN_FAULT=f"{place}:full:2")
        assert code == 74, run.said
        assert run.err == f"dltrain: no space left on device: {place}\n"
        assert run.result["status"] == "failed"
        assert saved(run.run)[-1] == 7 * (number + 1)
    with working(here):
        alone = train_here(*SMALL[:3], *words, "exact=true", "shards=2", name="run").result["weights_sha256"]
    finishes(tmp_path, on("ddp", *words), 7 * 6, str(alone))


# Several at once


@pytest.mark.slow
def test_ten_launches_at_once(tmp_path: Path) -> None:
    """Five of one run, of which one trains it, and five of others, which do not meet at its port."""
    names = ["run"] * 5 + ["a", "b", "c", "d", "e"]
    words = [*SMALL[:-1], *DDP[len(SMALL) :]]
    started = [Started(tmp_path, [*words, f"name={name}"], OURS, DLTRAIN_FAULT="batch:slow") for name in names]
    for one in started:
        one.process.wait(300)
    codes = [one.wait() for one in started]
    assert sorted(codes[:5]) == [0, 73, 73, 73, 73], [one.said for one in started[:5]]
    assert codes[5:] == [0] * 5, [one.said for one in started[5:]]
    for one, code in zip(started, codes, strict=True):
        assert re.fullmatch(r"dltrain: run run is in use by host .*, pid \d+, since .*\n" if code else "", one.err)
    assert folders(tmp_path) == sorted({*names})
    results = [json.loads((tmp_path / "outputs" / name / "result.json").read_text()) for name in names]
    assert {result["status"] for result in results} == {"finished"}
    assert len({result["weights_sha256"] for result in results}) == 1
