"""Runs of several processes that are killed, stopped and started elsewhere: real launches of whole commands."""

import signal
from pathlib import Path

import pytest
from launches import DDP, epochs, launch

CONTINUE = "dltrain: continue with  dltrain resume run=run"


def test_a_killed_rank_is_started_again(tmp_path: Path) -> None:
    code, run = launch(tmp_path, *DDP, DLTRAIN_FAULT="batch@1:kill:10")
    assert code == 0, run.said
    killed = "rank 1 of 2 was killed by SIGKILL, as the system does when memory runs out; starting again"
    assert run.out.count(killed) == 1
    assert run.err == ""
    assert epochs(run.out) == [1, 2]
    assert "continuing at epoch 1, step 7" in run.out
    assert run.result["status"] == "finished"
    assert run.log(0).count("rank 0 of 2, pid") == run.log(1).count("rank 1 of 2, pid") == 2


def test_a_rank_that_may_not_be_started_again(tmp_path: Path) -> None:
    code, run = launch(tmp_path, *DDP, "trainer.max_restarts=0", DLTRAIN_FAULT="batch@1:kill:10")
    assert code == 128 + signal.SIGKILL, run.said
    lines = run.err.splitlines()
    assert lines[0] == "dltrain: rank 1 of 2 was killed by SIGKILL, as the system does when memory runs out"
    assert lines[-1] == CONTINUE
    assert run.result["status"] == "failed"
    code, run = launch(tmp_path, *CONTINUE.split()[4:])
    assert code == 0, run.said
    assert epochs(run.out) == [2]


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        ("spawn", "spawn@1:raise"),
        ("batch", "batch@1:raise:5"),
        ("evaluate", "evaluate@0:raise"),
        ("evaluate", "evaluate@1:raise"),
    ],
)
def test_a_rank_that_raises(place: str, fault: str, tmp_path: Path) -> None:
    """It is named with its exception, started again once, and given up after the second time."""
    code, run = launch(tmp_path, *DDP, DLTRAIN_FAULT=fault)
    rank = fault.partition("@")[2][0]
    sentence = f"rank {rank} of 2 raised RuntimeError: injected at {place}"
    assert code == 1, run.said
    assert run.out.count(f"warning: {sentence}; starting again") == 1
    lines = run.err.splitlines()
    assert lines[0] == f"dltrain: {sentence}"
    assert lines[-1] == CONTINUE
    assert len(lines) <= 15
    assert run.out.count("a  data=xor") <= 1
