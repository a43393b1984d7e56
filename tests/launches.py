"""Whole launches of `python -m dltrain` for tests: each in a session of its own, with all it starts and leaves."""

import atexit
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dltrain.checkpoint import Checkpoints, verify

SMALL = ("data=xor", "data.rows=600", "model.hidden=[8]", "epochs=2", "name=run")  # 7 steps an epoch
DDP = (*SMALL, "trainer=ddp", "trainer.devices=2")
OURS = [sys.executable, "-m", "dltrain"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
ENDING = 20  # seconds in which everything must be over after the parent is


class Started:
    """A command under way in a folder, where its temporary files go, too."""

    def __init__(self, folder: Path, words: Sequence[str], command: Sequence[str] = OURS, **env: str) -> None:
        self.folder, self.mark, self.run = folder, uuid.uuid4().hex, folder / "outputs" / "run"
        self.ours = command is OURS
        self.temporary = folder / f"temporary-{self.mark}"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.phases = folder / f"phases-{self.mark}"
        self.phases.touch()
        self.began = time.monotonic()
        more = {"DLTRAIN_PHASES": str(self.phases), "DLTRAIN_TEST": self.mark, "TMPDIR": str(self.temporary)}
        with (folder / f"out-{self.mark}").open("wb") as out, (folder / f"err-{self.mark}").open("wb") as err:
            self.process = subprocess.Popen(
                [*command, *words],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | more | env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        atexit.register(self.signal_group, signal.SIGKILL)  # of a test that failed

    @property
    def out(self) -> str:
        return (self.folder / f"out-{self.mark}").read_text()

    @property
    def err(self) -> str:
        return (self.folder / f"err-{self.mark}").read_text()

    @property
    def said(self) -> str:
        return f"{self.out}\n{self.err}"

    @property
    def result(self) -> dict[str, Any]:
        return dict(json.loads((self.run / "result.json").read_text()))

    def log(self, rank: int) -> str:
        return (self.run / "logs" / f"rank{rank}.log").read_text()

    def alive(self) -> list[int]:
        """Every process of this launch that is not over."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                mine = f"DLTRAIN_TEST={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
                over = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if mine and not over:
                found.append(int(entry.name))
        return found

    def rank(self, number: int) -> int:
        """The process of a rank that is under way."""
        return next(
            pid
            for pid in self.alive()
            if f"RANK={number}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            and pid != self.process.pid
        )

    def passed(self, place: str, times: int = 1) -> None:
        """Wait until a named place was passed, over all ranks and starts."""
        while self.phases.read_text().split().count(place) < times:
            assert self.process.poll() is None, f"over before {place}: {self.said}"
            assert time.monotonic() - self.began < 120, f"never came to {place}: {self.said}"
            time.sleep(0.01)

    def signal(self, number: int) -> None:
        """Send a signal to the parent."""
        self.process.send_signal(number)

    def signal_group(self, number: int) -> None:
        """Send a signal to all of its session, as a terminal does with Ctrl-C."""
        for pid in self.alive() if number == signal.SIGKILL else []:
            os.kill(pid, number)
        if number != signal.SIGKILL:
            os.killpg(self.process.pid, number)

    def wait(self, seconds: float = 150) -> int:
        """Its exit code, once it is over; nothing that it started lives on, and its temporary files are gone."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not over after {seconds} s: {self.said}") from None
        finally:
            until = time.monotonic() + (ENDING if self.process.returncode is not None else 0)
            while (left := self.alive()) and time.monotonic() < until:
                time.sleep(0.05)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        assert not left, f"{len(left)} processes lived on: {self.said}"
        if code >= 0:
            assert not list(self.temporary.glob("dltrain-*"))
            assert not list(self.folder.glob("outputs/*/.rows*")) + list(self.folder.glob("outputs/.*/.rows*"))
            if self.ours:
                assert not re.search(
                    "^Traceback|^  File|^[WE]\\d|distributed/elastic|Warning:", self.said, re.MULTILINE
                )
        return code if code >= 0 else 128 - code


def launch(folder: Path, *words: str, command: Sequence[str] = OURS, **env: str) -> tuple[int, Started]:
    """Run a command to its end."""
    started = Started(folder, words, command, **env)
    return started.wait(), started


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def weights(folder: Path) -> str:
    """What the run of a folder came to."""
    return str(json.loads((folder / "outputs/run/result.json").read_text())["weights_sha256"])


def folders(folder: Path) -> list[str]:
    """The names of all that lies in `outputs`, hidden or not."""
    return sorted(path.name for path in (folder / "outputs").iterdir()) if (folder / "outputs").exists() else []


def saved(run: Path) -> list[int]:
    """The steps of a run's checkpoints, all of which are whole."""
    checkpoints = Checkpoints(run / "checkpoints", pytest.fail)
    for step in checkpoints.steps():
        verify(checkpoints.folder / f"step-{step:08d}", step)
    return checkpoints.steps()


def epochs(said: str) -> list[int]:
    """The epochs that were told, in order."""
    return [int(number) for number in re.findall(r"^epoch (\d+)/", said, re.MULTILINE)]
