"""Commands in processes of their own, at once: a server that has imported everything forks for each.

A command may be several ranks, as torchrun starts them; whoever waits for it is their agent.
"""

import contextlib
import faulthandler
import gc
import hashlib
import importlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HANG = 120  # seconds after which a command that was waited for hangs
PORTS = itertools.count(15000 + os.getpid() % 10000)  # below those that the system gives to connections


class Hang(AssertionError):
    """A command that did not end; its message is what it said, and where each of its threads was."""


class Server:
    """Starts commands; talks to the process that forks them in lines of JSON."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "ignore", __file__]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lock = threading.Lock()

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.lock:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        assert answer, "the fork server has died"
        return json.loads(answer)

    def start(self, words: list[str], folder: Path, patch: str = "", ranks: int = 1, **faults: str) -> "Launch":
        """Start `dltrain words` in a folder; `PHASES` (of rank 0) and `FAULT` as in dltrain.faults.

        `patch` is Python that is run first, on every rank.
        """
        output = folder / f".output-{os.urandom(4).hex()}"
        output.touch()  # it may be killed before it opens it
        request = {"words": words, "folder": str(folder), "output": str(output), "patch": patch, **faults}
        return Launch(self, self.ask(**request, ranks=ranks, port=free_port()), output)

    def run(
        self, words: list[str], folder: Path, patch: str = "", ranks: int = 1, seconds: float = HANG, **faults: str
    ) -> tuple[int, str]:
        """Run a command to its end: its exit code (minus the signal that killed it) and all that it said."""
        return self.start(words, folder, patch, ranks, **faults).wait(seconds)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port := next(PORTS)))
            return port


class Launch:
    """A command under way: one process, or one for each rank."""

    def __init__(self, server: Server, pids: list[int], output: Path) -> None:
        self.server, self.pids, self.output = server, pids, output
        self.codes: dict[int, int] = {}  # of the ranks that have ended, in the order in which that was seen

    @property
    def pid(self) -> int:
        """The process that reads the words."""
        return self.pids[0]

    def kill(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one rank, or to all; to none whose end was seen, as its number may be another's by now."""
        for other, pid in enumerate(self.pids):
            if rank in (None, other) and other not in self.codes:
                os.kill(pid, number)

    def over(self) -> bool:
        """True once a rank has ended."""
        return bool(self.codes) or any(_state(pid) == "Z" for pid in self.pids)

    def wait(self, seconds: float = HANG, notice: float = 0.0) -> tuple[int, str]:
        """The exit code (the first that is not 0) and all that was said; raises Hang after that time.

        As an agent does, kills the ranks that are left `notice` seconds after one has failed.
        """
        until, failed = time.monotonic() + seconds, False
        while len(self.codes) < len(self.pids):
            for rank, pid in enumerate(self.pids):
                if rank not in self.codes and _state(pid) == "Z":
                    self.codes[rank] = self.server.ask(wait=pid)
            if not failed and any(self.codes.values()):
                failed = True
                time.sleep(notice)
                self.kill(signal.SIGKILL)
            if time.monotonic() > until:
                self._hang(seconds)
            time.sleep(0.001)
        return next((code for code in self.codes.values() if code), 0), self._said()

    def _hang(self, seconds: float) -> None:
        left = [rank for rank in range(len(self.pids)) if rank not in self.codes]
        self.kill(signal.SIGSTOP)
        until = time.monotonic() + 20
        for rank in left:  # one after the other: faulthandler writes where each is, all of them into one file
            self.kill(signal.SIGABRT, rank)
            self.kill(signal.SIGCONT, rank)
            while _state(self.pids[rank]) != "Z" and time.monotonic() < until:
                time.sleep(0.01)
        self.kill(signal.SIGKILL)
        for rank in left:
            self.codes[rank] = self.server.ask(wait=self.pids[rank])
        raise Hang(f"ranks {left} of {len(self.pids)} did not end in {seconds:g} seconds\n{self._said()}")

    def _said(self) -> str:
        said = self.output.read_text(encoding="utf-8")
        self.output.unlink()
        return said

    def orphans(self, patience: float = 2.0) -> list[str]:
        """The command lines of what is left of a launch that has ended: processes that its processes started."""
        until = time.monotonic() + patience
        while (left := _members(set(self.pids))) and time.monotonic() < until:
            time.sleep(0.01)
        return left


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _members(groups: set[int]) -> list[str]:
    """The living processes of some process groups."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(group) in groups and state != "Z":
                found.append(f"{folder.name} {(folder / 'cmdline').read_text()}".replace("\0", " "))
    return found


# dropout, batch statistics, a schedule over all steps, an average, clipping, a penalty, early stopping, four shards,
# and saves and evaluations in the middle of epochs of 8 steps, the last of 7 rows, where a shard would be too small
# and joins its neighbour; it stops early at step 56 of 64, with the best evaluation at step 35
SETTINGS = (
    "data=xor data.rows=2990 data.noise=0.5 data.split.valid=0.85 data.split.test=0.11 model.hidden=[8] "
    "model.dropout=0.2 model.norm=batch scheduler=onecycle scheduler.peak=3 optimizer.lr=0.1 ema=0.8 clip_norm=1 "
    "exact=true shards=4 batch_size=16 epochs=8 evaluate_every=7steps regularizer=[early_stopping,l1] "
    "regularizer.early_stopping.patience=3 trainer.save_every=5steps trainer.threads=1 seed=3 name=run report=false"
)
WORDS = SETTINGS.split()
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
CLOCK = ("time", "seconds", "recorded_seconds", "rows_per_second")  # what no two runs have in common
WHERE = (
    "trainer",
    "processes",
    "together",
    "threads",
    "device",
    "compile",
    "deterministic",
)  # what says where a run ended


def outcome(run: Path) -> dict[str, str]:
    """All that a run came to, bit for bit, wherever that was: its last checkpoint, bundle, metrics and result."""
    steps = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    found = {"steps": " ".join(steps), "best": (run / "checkpoints" / "best").read_text()}
    for path in [*(run / "checkpoints" / steps[-1]).iterdir(), *(run / "model").iterdir()]:
        name = str(path.relative_to(run))
        if path.suffix == ".safetensors":
            found |= {f"{name}: {key}": value for key, value in tensors(path).items()}
        elif path.suffix != ".json":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name != "manifest.json":  # it knows the clock, by the hash of a file
            found[name] = canonical(path.read_text())
    found["fingerprint"] = hashlib.sha256((run / "fingerprint").read_bytes()).hexdigest()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    found |= {f"metrics.jsonl: {number}": canonical(line) for number, line in enumerate(lines)}
    return found | {name: canonical((run / name).read_text()) for name in ("data.json", "result.json")}


def tensors(path: Path) -> dict[str, str]:
    """Kind, shape and content of every tensor in a file, as text."""
    from safetensors.torch import load_file

    return {
        name: f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(value.numpy().tobytes()).hexdigest()}"
        for name, value in load_file(path).items()
    }


def canonical(text: str) -> str:
    """JSON in one form, without what the clock says and where it was."""

    def pruned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: pruned(item) for key, item in value.items() if key not in (*CLOCK, *WHERE)}
        return [pruned(item) for item in value] if isinstance(value, list) else value

    return json.dumps(pruned(json.loads(text)), sort_keys=True)


LATE = ["dltrain." + name for name in ("app", "launch", "worker", "losses", "schedulers", "models.mlp")]
LATE += ["dltrain." + name for name in ("tasks.supervised", "distributed.ddp", "distributed.fsdp")]
LATE += ["dltrain.data." + name for name in ("bundled", "csv", "xor")] + ["hydra", "pyarrow"]


def serve() -> int:
    """Fork for every request; returns in the children alone, with their exit code, so that they end as programs do."""
    sys.path.insert(0, str(Path(__file__).parent))
    for name in LATE:
        importlib.import_module(name)
    from dltrain import compose, metrics

    compose.compose(["data=xor"])
    metrics.load()
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)])  # imports a compiler
    gc.freeze()  # else every command looks through all of this at its end, which takes longer than the command
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer: Any = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = []
            for rank in range(request["ranks"]):
                if not (pid := os.fork()):
                    return child(request, rank)
                answer.append(pid)
        print(json.dumps(answer), flush=True)
    return 0


def child(request: Mapping[str, Any], rank: int) -> int:
    """Be one rank of a command, in a process group of its own."""
    from dltrain import cli, faults, launch

    os.setpgid(0, 0)
    launch.die_with(os.getppid())  # nothing outlives the tests
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(request["output"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    os.chdir(request["folder"])
    faults.PHASES, faults.FAULT = None if rank else request.get("PHASES"), request.get("FAULT")
    if request["ranks"] == 1:
        exec(request["patch"], {})
        return cli.run(request["words"])
    ranks = str(request["ranks"])
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": ranks, "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": ranks}
    os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"])}
    exec(request["patch"], {})
    return cli.rank(request["words"])


if __name__ == "__main__":
    sys.exit(serve())
