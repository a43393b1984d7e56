"""Ranks that others start: torchrun, SLURM, and the same command typed on several machines, here all on this one."""

import json
import signal
import socket
import time
from pathlib import Path

import pytest
from launches import SMALL, TORCHRUN, Started, folders, free_port, saved, weights
from runs import launch as train_here
from runs import working

from dltrain import cli

EXACT = (*SMALL, "exact=true")
SWEEP = ("-m", *SMALL[:-1], "name=search", "exact=true", "shards=2", "optimizer.lr=0.01,1e30,0.02")


def slurm(folder: Path, n: int, *words: str) -> list[Started]:
    """As many processes of a command as srun would start on this machine."""
    port = free_port()
    while not 20000 <= port < 40000:  # as follows from the number of a job
        port = free_port()
    env = {"SLURM_JOB_ID": str(port - 20000), "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(n), "SLURM_NODEID": "0"}
    env |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": str(n)}
    return [Started(folder, words, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), **env) for rank in range(n)]


def torchrun(folder: Path, n: int, *words: str) -> Started:
    command = [*TORCHRUN, str(n), "--master-port", str(free_port()), "-m", "dltrain"]
    return Started(folder, words, command)


def whole(folder: Path, processes: int, alone: str) -> None:
    """There is one run, which has come to the weights of one process."""
    assert folders(folder) == ["run"]
    run = folder / "outputs" / "run"
    assert len(list(folder.glob("outputs/**/config.yaml"))) == 1
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["processes"] == processes
    assert weights(folder) == alone


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The weights that one process comes to, by the shards of its batches."""
    found = {}
    for shards in (2, 4):
        with working(tmp_path_factory.mktemp("alone")):
            run = train_here(*SMALL[:-1], "exact=true", f"shards={shards}", name="run")
            found[shards] = str(run.result["weights_sha256"])
    return found


@pytest.mark.parametrize("trainer", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_torchrun(trainer: str, alone: dict[int, str], tmp_path: Path) -> None:
    run = torchrun(tmp_path, 4, *EXACT, "shards=4", f"trainer={trainer}")
    assert run.wait() == 0, run.said
    assert run.out.count("epoch 1/2") == 1
    whole(tmp_path, 4, alone[4])


def test_slurm(alone: dict[int, str], tmp_path: Path) -> None:
    ranks = slurm(tmp_path, 4, *EXACT, "trainer=ddp")
    assert [rank.wait() for rank in ranks] == [0] * 4, [rank.said for rank in ranks]
    assert [rank.out.count("epoch 1/2") for rank in ranks] == [1, 0, 0, 0]
    assert [rank.err for rank in ranks] == [""] * 4
    whole(tmp_path, 4, alone[4])


# Sweeps


def trials(folder: Path) -> dict[str, tuple[str, str | None]]:
    """How each run of a sweep ended, and its weights."""
    results = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("outputs/*/result.json")}
    assert folders(folder) == sorted([*results, "sweeps"])
    return {name: (result["status"], result.get("weights_sha256")) for name, result in results.items()}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str | None]]:
    """What the sweep comes to in one process."""
    with working(tmp_path_factory.mktemp("sweep")) as folder:
        assert cli.run(list(SWEEP)) == 1
    found = trials(folder)
    assert sorted(status for status, _ in found.values()) == ["failed", "finished", "finished"]
    return found


@pytest.mark.parametrize(
    "where", ["slurm", pytest.param("torchrun", marks=pytest.mark.slow), pytest.param("ours", marks=pytest.mark.slow)]
)
def test_a_sweep_with_a_trial_that_fails(where: str, swept: dict[str, tuple[str, str | None]], tmp_path: Path) -> None:
    """It goes on with the next one, wherever it was started, and says at its end what failed."""
    words = [*SWEEP, "trainer=ddp"]
    if where == "slurm":
        started = slurm(tmp_path, 2, *words)
    elif where == "torchrun":
        started = [torchrun(tmp_path, 2, *words)]
    else:
        started = [Started(tmp_path, [*words, "trainer.devices=2"])]
    assert {one.wait() for one in started} == {1}, [one.said for one in started]
    said = started[0].out + started[0].err
    assert "3 of 3 trials, 1 failed" in started[0].out
    [failed] = [line for line in said.splitlines() if line.startswith("  trial 2  exit 76  ")]
    assert "optimizer.lr=1e+30" in failed
    assert said.count("became") == 2  # when it happened, and at the end
    lines = (tmp_path / "outputs/sweeps/search/trials.jsonl").read_text().splitlines()
    assert [json.loads(line)["exit"] for line in lines] == [0, 76, 0]
    assert trials(tmp_path) == swept


# The same command on two machines


def nodes(folder: Path, *words: str, **env: str) -> list[Started]:
    """A command that is typed twice; the first one leads."""
    port = free_port()
    words = (*EXACT, "trainer.nodes=2", "trainer.devices=1", f"trainer.rdzv_endpoint=127.0.0.1:{port}", *words)
    first = Started(folder, words, **env)
    while True:  # until it listens
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert first.process.poll() is None, first.said
        time.sleep(0.1)
    return [first, Started(folder, words, **env)]


@pytest.mark.slow
def test_two_nodes(alone: dict[int, str], tmp_path: Path) -> None:
    """Both start their workers again after one of them was killed."""
    first, second = nodes(tmp_path, "trainer=ddp", DLTRAIN_FAULT="batch@1:kill:10")
    assert [first.wait(), second.wait()] == [0, 0], first.said + second.said
    assert first.err == second.err == ""
    assert first.out.count("was killed by SIGKILL") == first.out.count("starting again") == 1
    assert "continuing at epoch 1, step 7" in first.out
    assert second.out.count("\n") == 1
    assert second.out.startswith("node 2 of 2, led by 127.0.0.1:")
    whole(tmp_path, 2, alone[2])


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_node_is_killed(victim: int, alone: dict[int, str], tmp_path: Path) -> None:
    """The other one ends and says so; the same commands go on."""
    both = nodes(tmp_path, "trainer=ddp", "trainer.timeout=30", DLTRAIN_FAULT="batch:slow")
    both[victim].passed("batch", 9)
    both[victim].signal_group(signal.SIGKILL)
    assert both[victim].wait() == 128 + signal.SIGKILL
    other = both[1 - victim]
    if victim:
        assert other.wait() == 128 + signal.SIGKILL, other.said
        lines = other.err.splitlines()
        assert lines[0] == "dltrain: 1 of 1 other nodes have gone"
        assert lines[-1] == "dltrain: continue with  dltrain resume run=run"
        assert len(lines) <= 15
        assert other.result["status"] == "failed"
    else:
        assert other.wait() == 1, other.said
        assert other.err == "dltrain: the first node has gone; the same command continues\n"
        assert other.result["status"] == "running"
    assert saved(other.run) == [7]
    first, second = nodes(tmp_path, "trainer=ddp")
    assert [first.wait(), second.wait()] == [0, 0], first.said + second.said
    assert "continuing at epoch 1, step 7" in first.out
    whole(tmp_path, 2, alone[2])
