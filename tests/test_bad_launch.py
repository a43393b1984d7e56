"""What can be wrong with where a run shall go: one sentence each, once, exit 2, soon, and no folder left behind."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launches import DDP, OURS, SMALL, Started, free_port, launch
from runs import launch as train_here

from dltrain import cli
from dltrain.launch import plan

DEVICES = "trainer.devices must be a whole number of at least 1, or auto, got"
ENDPOINT = "trainer.rdzv_endpoint must be written as host:port, got"
TWO_NODES = ("trainer=ddp", "trainer.nodes=2")
BAD = {
    "no devices": (["trainer=ddp", "trainer.devices=0"], f"{DEVICES} 0"),
    "fewer devices": (["trainer=ddp", "trainer.devices=-1"], f"{DEVICES} -1"),
    "devices by name": (["trainer=fsdp", "trainer.devices=x"], f"{DEVICES} x"),
    "no nodes": (["trainer=ddp", "trainer.nodes=0"], "trainer.nodes must be a whole number of at least 1, got 0"),
    "restarts": (
        ["trainer=ddp", "trainer.max_restarts=-1"],
        "trainer.max_restarts must be at least 0, got -1",
    ),
    "shards": (
        ["trainer=ddp", "trainer.devices=2", "shards=3"],
        "shards must be a multiple of the 2 processes, got 3 (shards=2 or 4 would do)",
    ),
    "fewer shards": (
        ["trainer=fsdp", "trainer.devices=4", "shards=2"],
        "shards must be a multiple of the 4 processes, got 2 (shards=4 would do)",
    ),
    "exact shards": (
        ["trainer=ddp", "trainer.devices=2", "shards=6", "exact=true"],
        "shards must be a power of two when exact=true, got 6; shards=4 or 8 would do",
    ),
    "exact processes": (
        ["trainer=ddp", "trainer.devices=3", "exact=true"],
        "exact=true must have a power of two of processes, got 3; 2 or 4 would do",
    ),
    "batch": (
        ["trainer=ddp", "trainer.devices=2", "batch_size=1"],
        "batch_size must be at least the 2 shards, one row each, got 1",
    ),
    "batch of one process": (["shards=4", "batch_size=3"], "batch_size must be at least the 4 shards"),
    "no endpoint": (
        [*TWO_NODES],
        "trainer.rdzv_endpoint must be the host:port of the first of several nodes, got null",
    ),
    "host alone": ([*TWO_NODES, "trainer.rdzv_endpoint=here"], f"{ENDPOINT} here"),
    "port alone": ([*TWO_NODES, "trainer.rdzv_endpoint=':29500'"], f"{ENDPOINT} :29500"),
    "no port": ([*TWO_NODES, "trainer.rdzv_endpoint='here:'"], f"{ENDPOINT} here:"),
    "port by name": ([*TWO_NODES, "trainer.rdzv_endpoint='here:http'"], f"{ENDPOINT} here:http"),
    "high port": ([*TWO_NODES, "trainer.rdzv_endpoint='here:70000'"], f"{ENDPOINT} here:70000"),
    "port nought": ([*TWO_NODES, "trainer.rdzv_endpoint='here:0'"], f"{ENDPOINT} here:0"),
    "unknown host": (
        [*TWO_NODES, "trainer.rdzv_endpoint=nowhere.invalid:29500"],
        "trainer.rdzv_endpoint must be the host:port of the first node, got nowhere.invalid:29500,"
        " which names no host that is known here",
    ),
    "backend": (["trainer=ddp", "trainer.backend=mpi"], "trainer.backend must be one of auto, gloo, nccl, got mpi"),
    "nccl": (
        ["trainer=ddp", "trainer.backend=nccl", "trainer.device=cpu"],
        "trainer.backend must be gloo or auto without a GPU, got nccl",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_one_sentence(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, sentence = BAD[case]
    monkeypatch.chdir(tmp_path)
    assert cli.run([*SMALL, *words]) == 2
    said = capsys.readouterr()
    [line] = said.err.splitlines()
    assert line.startswith(f"dltrain: {sentence}")
    assert not list(tmp_path.iterdir())


def test_no_torch_is_imported(tmp_path: Path) -> None:
    """All of these in one process, to the end of which torch was never needed."""
    code = f"import sys\nfrom dltrain import cli\nfor words in {[words for words, _ in BAD.values()]!r}:\n"
    code += f"    assert cli.run([*{list(SMALL)!r}, *words]) == 2\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(BAD)


def test_more_gpus_than_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "visible_gpus", lambda: 2)
    assert cli.run([*SMALL, "trainer=ddp", "trainer.devices=4"]) == 2
    assert capsys.readouterr().err == "dltrain: trainer.devices must be at most the 2 GPUs of this machine, got 4\n"
    assert not list(tmp_path.iterdir())


def test_a_run_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It cannot go on as two: its one shard was recorded."""
    monkeypatch.chdir(tmp_path)
    train_here(*SMALL[:3], "epochs=1", name="one")
    capsys.readouterr()
    assert cli.run(["resume", "run=one", "trainer=ddp", "trainer.devices=2", "epochs=2"]) == 2
    assert capsys.readouterr().err == (
        "dltrain: shards must be a multiple of the 2 processes, got 1 "
        "(recorded when this run started on one process); start with shards=2 to train on either\n"
    )


def test_muon_with_fsdp(tmp_path: Path) -> None:
    """What only the ranks can find out is said once, too."""
    code, run = launch(tmp_path, *DDP, "trainer=fsdp", "optimizer=muon")
    assert code == 2, run.said
    [line] = run.err.splitlines()
    assert line.startswith("dltrain: optimizer must be one of sgd, adam, ")
    assert "with trainer=fsdp, got muon" in line
    assert not (tmp_path / "outputs").exists()


# Ranks that somebody else starts


def ranks(folder: Path, port: int, *words: str, address: str = "127.0.0.1") -> list[Started]:
    """Two ranks, started as srun would on two nodes."""
    env = {"SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0", "SLURM_TASKS_PER_NODE": "1(x2)"}
    env |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    return [Started(folder, [*SMALL, *words], SLURM_PROCID=str(r), SLURM_NODEID=str(r), **env) for r in range(2)]


@contextmanager
def stranger() -> Iterator[int]:
    """A port that another program holds, which never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def refused(started: list[Started], seconds: float = 60) -> list[str]:
    """Both end with 2 and no more than a sentence each; gives what they said."""
    assert [one.wait(seconds) for one in started] == [2, 2], [one.said for one in started]
    assert all(one.out == "" for one in started)
    assert all(line.startswith("dltrain: ") for one in started for line in one.err.splitlines())
    assert all(len(one.err.splitlines()) <= 1 for one in started)
    assert not (started[0].folder / "outputs").exists()
    return [one.err for one in started]


def test_single_where_two_were_started(tmp_path: Path) -> None:
    said = refused(ranks(tmp_path, free_port()))
    assert said == ["dltrain: trainer must be ddp or fsdp where 2 processes were started, got single\n", ""]


def test_a_master_that_is_not_known(tmp_path: Path) -> None:
    for said in refused(ranks(tmp_path, free_port(), "trainer=ddp", address="nowhere.invalid")):
        assert "got nowhere.invalid" in said
        assert "names no host that is known here" in said


def test_a_master_port_that_is_taken(tmp_path: Path) -> None:
    with stranger() as port:
        first, second = refused(ranks(tmp_path, port, "trainer=ddp"))
    assert first == f"dltrain: MASTER_PORT must be a free port of this machine, got {port}, which is taken\n"
    assert f"must be where rank 0 listens, got 127.0.0.1:{port}, where another program listens" in second


@pytest.mark.slow
def test_a_master_that_nobody_finds(tmp_path: Path) -> None:
    """An address kept for documentation, where nobody listens."""
    first, second = refused(ranks(tmp_path, free_port(), "trainer=ddp", address="192.0.2.1"))
    assert "where 0 of 1 other ranks came in 20 seconds" in first
    assert "where nobody answered for 20 seconds" in second


def test_an_endpoint_port_that_is_taken(tmp_path: Path) -> None:
    with stranger() as port:
        began = time.monotonic()
        words = [*DDP, "trainer.nodes=2", f"trainer.rdzv_endpoint=127.0.0.1:{port}"]
        started = Started(tmp_path, words, OURS)
        assert started.wait(60) == 2, started.said
        assert time.monotonic() - began < 60
    assert started.err == (
        "dltrain: trainer.rdzv_endpoint must be the host:port of the first node,"
        f" got 127.0.0.1:{port}, where another program listens\n"
    )
    assert not (tmp_path / "outputs").exists()


def test_a_configuration_error_under_torchrun(tmp_path: Path) -> None:
    from launches import TORCHRUN

    code, run = launch(tmp_path, *SMALL, "trainer=ddp", "batch_size=1", command=[*TORCHRUN, "2", "-m", "dltrain"])
    assert code != 0
    assert run.said.count("batch_size must be at least the 2 shards, one row each, got 1") == 1
    assert "dltrain/" not in run.said.replace("torch", "")
    assert not (tmp_path / "outputs").exists()
