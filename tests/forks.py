"""Commands in processes of their own, at once: a server that has imported everything forks for each."""

import hashlib
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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

    def start(self, words: list[str], folder: Path, patch: str = "", **faults: str) -> "Launch":
        """Start `dltrain words` in a folder; `PHASES` and `FAULT` as in dltrain.faults; `patch` is Python run first."""
        output = folder / f".output-{os.urandom(4).hex()}"
        output.touch()  # it may be killed before it opens it
        return Launch(
            self, self.ask(words=words, folder=str(folder), output=str(output), patch=patch, **faults), output
        )

    def run(self, words: list[str], folder: Path, patch: str = "", **faults: str) -> tuple[int, str]:
        """Run a command to its end: its exit code (minus the signal that killed it) and all that it said."""
        return self.start(words, folder, patch, **faults).wait()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


class Launch:
    """A command under way."""

    def __init__(self, server: Server, pid: int, output: Path) -> None:
        self.server, self.pid, self.output = server, pid, output

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)  # it is not reaped before wait(), so its number is not another's

    def over(self) -> bool:
        state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "Z"

    def wait(self) -> tuple[int, str]:
        code = self.server.ask(wait=self.pid)
        said = self.output.read_text(encoding="utf-8")
        self.output.unlink()
        return code, said


# dropout, batch statistics, a schedule over all steps, an average, early stopping, two shards, and saves and
# evaluations in the middle of epochs of 8 steps; it stops early at step 56 of 64, with the best evaluation at step 35
SETTINGS = (
    "data=xor data.rows=3000 data.noise=0.5 data.split.valid=0.85 data.split.test=0.11 model.hidden=[8] "
    "model.dropout=0.2 model.norm=batch scheduler=onecycle scheduler.peak=3 optimizer.lr=0.1 ema=0.8 clip_norm=1 "
    "shards=2 batch_size=16 epochs=8 evaluate_every=7steps regularizer=[early_stopping] "
    "regularizer.early_stopping.patience=3 trainer.save_every=5steps trainer.threads=1 seed=3 name=run"
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


def outcome(run: Path) -> dict[str, Any]:
    """All that a run came to, bit for bit: its newest checkpoint, bundle, metrics and result, without the clock."""
    newest = max((run / "checkpoints").glob("step-*"))
    found: dict[str, Any] = {"newest": newest.name, "best": (run / "checkpoints" / "best").read_text()}
    for path in [*newest.iterdir(), *(run / "model").iterdir()]:
        if path.suffix == ".safetensors":
            found |= {f"{path.relative_to(run)}: {name}": value for name, value in tensors(path).items()}
        elif path.name not in ("manifest.json", "state.json"):
            found[str(path.relative_to(run))] = hashlib.sha256(path.read_bytes()).hexdigest()
    found["state"] = timeless(json.loads((newest / "state.json").read_text()))
    found["metrics"] = [timeless(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return found | {"result": timeless(json.loads((run / "result.json").read_text()))}


def tensors(path: Path) -> dict[str, str]:
    """Kind, shape and content of every tensor in a file, as text."""
    from safetensors.torch import load_file

    return {
        name: f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(value.numpy().tobytes()).hexdigest()}"
        for name, value in load_file(path).items()
    }


def timeless(value: Any) -> Any:
    """The same without what the clock says."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in CLOCK}
    return value


LATE = ["dltrain." + name for name in ("app", "worker", "losses", "schedulers", "models.mlp", "tasks.supervised")]
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
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif not (answer := os.fork()):
            return child(request)
        print(answer, flush=True)
    return 0


def child(request: Mapping[str, Any]) -> int:
    from dltrain import cli, faults

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(request["output"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(request["folder"])
    faults.PHASES, faults.FAULT = request.get("PHASES"), request.get("FAULT")
    exec(request["patch"], {})
    return cli.run(request["words"])


if __name__ == "__main__":
    sys.exit(serve())
