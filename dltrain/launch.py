"""Start a run's processes: this one, several through torchrun's elastic agent, or one rank of somebody else's launch.

The parent composes and holds the run; workers read nothing but its folder. Under torchrun or SLURM rank 0 is the
parent, and the other ranks follow it from run to run.
"""

import contextlib
import ctypes
import errno
import itertools
import json
import logging
import os
import re
import shlex
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dltrain.errors import ConfigError, Elsewhere, Failed, Stopped, UserError, must, whole
from dltrain.faults import point
from dltrain.report.terminal import Terminal
from dltrain.run import Config, Run

FINAL = (2, 65, 73, 74, 75, 76)  # exit codes after which trying again would not help
LOST = 71  # of a rank that only noticed that another has gone
PATIENCE = 5  # seconds in which the agent shall notice who has gone before those who noticed go themselves
JOIN = 25  # seconds in which a node must have found the first
LAST_LINES = 10  # of a rank's log, that are shown when it fails
SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}


# Who starts whom


def slurm() -> None:
    """Take what srun says about its tasks for what torchrun would say."""
    env = os.environ
    step = "SLURM_STEP_ID" in env or env.get("ENVIRONMENT") != "BATCH"  # a batch script has a task number, too
    if "RANK" in env or not step or not all(name in env for name in SLURM.values()) or env["SLURM_NTASKS"] == "1":
        return
    env.update({name: env[theirs] for name, theirs in SLURM.items()})
    env["GROUP_RANK"] = env.get("SLURM_NODEID", "0")
    per_node = re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", "")))
    env["LOCAL_WORLD_SIZE"] = per_node[0] if per_node else env["WORLD_SIZE"]
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST", "localhost")
    first = re.sub(r"\[(\d+)[^\]]*\].*", r"\1", nodes)  # node[03-07,9] begins with node03
    env.setdefault("MASTER_ADDR", first.split(",")[0])
    env.setdefault("MASTER_PORT", str(20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000))


def external() -> bool:
    """True if torchrun or SLURM started this process as one of several ranks."""
    slurm()
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def follows() -> bool:
    """True of a rank that another rank leads."""
    return external() and os.environ["RANK"] != "0"


def processes(config: Config) -> int:
    """How many processes a run gets, on all nodes; raises ConfigError for settings that do not fit together."""
    trainer, name = config["trainer"], config["choices"]["trainer"]
    n = int(os.environ["WORLD_SIZE"]) if external() else 1
    if "devices" in trainer:
        n = _several(trainer, n)
    elif n > 1:
        raise ConfigError(f"trainer must be ddp or fsdp where {n} processes were started, got {name}")
    _fit(config, n)
    return n


def _several(trainer: Config, started: int) -> int:
    devices, nodes, endpoint = trainer["devices"], trainer["nodes"], trainer["rdzv_endpoint"]
    must(devices == "auto" or whole(devices, 1), "trainer.devices", "a whole number of at least 1, or auto", devices)
    must(whole(nodes, 1), "trainer.nodes", "a whole number of at least 1", nodes)
    must(
        whole(trainer["max_restarts"], 0),
        "trainer.max_restarts",
        "a whole number of at least 0",
        trainer["max_restarts"],
    )
    backends = ("auto", "gloo", "nccl")
    must(trainer["backend"] in backends, "trainer.backend", f"one of {', '.join(backends)}", trainer["backend"])
    if external():
        if devices not in ("auto", int(os.environ.get("LOCAL_WORLD_SIZE", started))):
            raise ConfigError(f"trainer.devices must be auto where processes were started already, got {devices}")
        return started
    gpus = visible_gpus() if trainer["device"] in ("auto", "cuda") else 0
    if devices != "auto" and 0 < gpus < devices:
        raise ConfigError(f"trainer.devices must be at most the {gpus} GPUs of this machine, got {devices}")
    if trainer["backend"] == "nccl" and not gpus:
        raise ConfigError("trainer.backend must be gloo or auto without a GPU, got nccl")
    if nodes > 1 and not endpoint:
        raise ConfigError(
            "trainer.rdzv_endpoint must be the host:port of the first of several nodes, got null;"
            " type the same one on every node"
        )
    if endpoint is not None and not re.fullmatch(r"[^:\s]+:\d{1,5}", str(endpoint)):
        raise ConfigError(f"trainer.rdzv_endpoint must be written as host:port, got {endpoint}")
    return nodes * (devices if devices != "auto" else gpus or 2)


def visible_gpus() -> int:
    """How many GPUs there are, without importing torch where there are none."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def _fit(config: Config, n: int) -> None:
    """Raise ConfigError if the shards cannot be spread over n processes, or a batch over the shards."""
    shards, batch = config["shards"] or n, config["batch_size"]
    if shards % n:
        fitting = f"shards={n * max(1, shards // n)} or {n * (shards // n + 1)} would do"
        if "hash" in config:  # it is a run's
            fitting = f"recorded when this run started; start with shards={n} to train on either"
        raise ConfigError(f"shards must be a multiple of the {n} processes, got {shards} ({fitting})")
    if config["exact"] and n & (n - 1):
        raise ConfigError(
            f"exact=true must have a power of two of processes, got {n};"
            f" {2 ** (n.bit_length() - 1)} or {2 ** n.bit_length()} would do"
        )
    if isinstance(batch, int) and batch < shards:
        raise ConfigError(f"batch_size must be at least the {shards} shards, one row each, got {batch}")


# The parent


def start(run: Run, name: str, config: Config, terminal: Terminal) -> Config:
    """Train a run where its trainer says, and return its result."""
    if "devices" in config["trainer"] and not external():
        return _launched(run, name, config, terminal)
    from dltrain.worker import work

    if external():
        _say({"folder": str(run.folder.absolute()), "name": name, "trust": config["trust"]})
    return work(run, name, config, terminal)


def _launched(run: Run, name: str, config: Config, terminal: Terminal) -> Config:
    """Start the workers, again after one was killed (`max_restarts` times) or raised (once); return the result."""
    n, left, raised = processes(config), config["trainer"]["max_restarts"], False
    while (failure := _once(run, name, config, n)) is not None:
        if failure.code in FINAL:
            raise Elsewhere(failure.code, failure.text)
        killed = failure.code > 128
        if (killed and not left) or (not killed and raised):
            if result := run.result():  # it had begun
                run.write("result.json", {**result, "status": "failed", "reason": failure.text})
            command = run.name if run.folder.parent.name == "outputs" else str(run.folder)
            raise Failed(failure.code, failure.text, failure.tail, f"dltrain resume run={shlex.quote(command)}")
        left, raised = left - killed, raised or not killed
        terminal.warn(f"{failure.text}; starting again")
    return run.result()


@dataclass
class Failure:
    """How the rank that failed first came to its end."""

    code: int
    text: str
    tail: list[str]  # the last lines of its log


def _once(run: Run, name: str, config: Config, n: int) -> Failure | None:
    """Start the workers of this node and wait for them; None if all went well. Raises Stopped after a signal."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    trainer = config["trainer"]
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL + 1)  # we say what there is to say
    with tempfile.TemporaryDirectory(prefix="dltrain-") as folder, Stopping(Path(folder)):
        launch = LaunchConfig(
            min_nodes=trainer["nodes"],
            max_nodes=trainer["nodes"],
            nproc_per_node=n // trainer["nodes"],
            run_id=name if trainer["nodes"] > 1 else uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=_endpoint(trainer),
            max_restarts=0,  # it would restart on any exit
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle="SIGQUIT",  # Stopping hears the others
            shutdown_timeout=max(30, int(trainer["timeout"])),
        )
        words = [str(run.folder.absolute()), name, json.dumps(config["trust"]), str(os.getpid()), folder]
        sys.stdout.flush()
        try:
            elastic_launch(launch, sys.executable)("-m", "dltrain.launch", *words)
        except ChildFailedError as error:
            return _failure(run, error.failures, n, trainer["timeout"])
        except SignalException:
            _follow_name(run, name)
            if run.result().get("status") != "finished":
                raise Stopped(run.result().get("reason") or "stopped before training began; nothing was lost") from None
        finally:
            _follow_name(run, name)
    return None


def _follow_name(run: Run, name: str) -> None:
    """A worker gives a new run its name."""
    if (there := run.folder.with_name(name)).is_dir():
        run.folder = there


def _endpoint(trainer: Config) -> str:
    """Where several nodes meet, once it can be reached or is this machine; raises ConfigError otherwise."""
    if trainer["nodes"] == 1:
        return "localhost:0"
    endpoint = str(trainer["rdzv_endpoint"])
    host, _, port = endpoint.rpartition(":")
    refused = f"trainer.rdzv_endpoint must be the host:port of the first node, got {endpoint}"
    until = time.monotonic() + JOIN
    try:
        address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][4][0]
    except (OSError, OverflowError) as error:
        raise ConfigError(f"{refused}, which names no host that is known here") from error
    if _here(str(address), int(port)):
        return endpoint
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=2):
            return endpoint
        time.sleep(0.5)
    raise ConfigError(f"{refused}, where nobody answered for {JOIN} seconds; start the first node first")


def _here(address: str, port: int) -> bool:
    """True if an address is this machine's; raises ConfigError if the port is taken there."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(f"trainer.rdzv_endpoint must have a free port, got {port}, which is taken") from error
            return False
    return True


class Stopping:
    """The first SIGTERM or SIGINT lets the workers save and stop; a second SIGINT kills them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, False

    def __enter__(self) -> None:
        self.before = {number: signal.signal(number, self._arrived) for number in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, frame: Any) -> None:
        from torch.distributed.elastic.multiprocessing.api import SignalException

        if not self.asked:
            self.asked = True
            raise SignalException("stopping", signal.SIGTERM)  # the agent hands it on to the workers, and waits
        if number == signal.SIGINT:
            for file in self.folder.glob("*.pid"):
                with contextlib.suppress(ProcessLookupError, ValueError):
                    os.kill(int(file.read_text()), signal.SIGKILL)
            raise KeyboardInterrupt


def _failure(run: Run, failures: Mapping[int, Any], n: int, timeout: float) -> Failure:
    """What the agent saw first: the others were stopped by it, or noticed that one had gone."""
    rank, first = next(iter(failures.items()))
    log = run.folder / "logs" / f"rank{rank}.log"
    tail = log.read_text(errors="replace").splitlines()[-LAST_LINES:] if log.is_file() else []
    if first.exitcode == LOST:
        silent = [str(other) for other, failure in failures.items() if failure.exitcode == -signal.SIGKILL]
        text = f"rank {', '.join(silent) or 'another'} of {n} did not answer for {timeout:g} seconds (trainer.timeout)"
        return Failure(128 + signal.SIGKILL, text, tail)
    if first.exitcode < 0:
        hint = ", as the system does when memory runs out" if first.exitcode == -signal.SIGKILL else ""
        return Failure(128 - first.exitcode, f"rank {rank} of {n} was killed by {first.signal_name()}{hint}", tail)
    said = first.message if first.exitcode in FINAL else f"rank {rank} of {n} {first.message}"
    return Failure(first.exitcode, said, tail)


# One of the workers


def main() -> None:
    """Be a rank of a run: `python -m dltrain.launch <folder> <name> <trust> <pid of the parent> <folder of pids>`."""
    folder, name, trust, parent, pids = sys.argv[1:]
    die_with(int(parent))
    rank = int(os.environ["RANK"])
    (Path(pids) / f"{rank}.pid").write_text(str(os.getpid()))
    run = Run(Path(folder))
    (run.folder / "logs").mkdir(exist_ok=True)
    log = (run.folder / "logs" / f"rank{rank}.log").open("ab", buffering=0)
    os.dup2(log.fileno(), 2)
    if rank:  # rank 0 alone speaks
        os.dup2(log.fileno(), 1)
    print(
        f"{datetime.now():%Y-%m-%d %H:%M:%S} rank {rank} of {os.environ['WORLD_SIZE']}, pid {os.getpid()}",
        file=sys.stderr,
    )
    code = _rank(run, name, json.loads(trust), rank)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what is left of the process group may abort a process that ends as usual


def _rank(run: Run, name: str, trust: list[str], rank: int) -> int:
    try:
        point("spawn")
        from dltrain.worker import work

        work(run, name, run.trusted(trust), Terminal(quiet=rank > 0))
    except UserError as error:
        return _record(str(error), error.exit_code)
    except BaseException as error:
        traceback.print_exc()
        from dltrain.distributed.processes import lost

        if lost(error):
            time.sleep(PATIENCE)
            return _record(str(error), LOST)
        return _record(f"raised {type(error).__name__}: {' '.join(str(error).split())}", 1)
    return 0


def _record(text: str, code: int) -> int:
    """Tell the agent what happened."""
    content = {"message": text, "timestamp": int(time.time())}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(content), encoding="utf-8")
    print(text, file=sys.stderr)
    return code


def die_with(parent: int) -> None:
    """End this process when its parent ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it ended before we asked
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# The ranks of somebody else's launch

_said = itertools.count()


def _say(message: dict[str, Any]) -> None:
    """Tell the ranks that follow what comes next."""
    from dltrain.distributed.processes import store

    store().set(f"message {next(_said)}", json.dumps(message))


def follow() -> int:
    """Be a rank in every run that rank 0 starts; returns the exit code that rank 0 ends with."""
    from dltrain.distributed.processes import lost, store
    from dltrain.worker import work

    try:
        for number in itertools.count():
            while not store().check([f"message {number}"]):
                time.sleep(0.02)
            message = json.loads(store().get(f"message {number}"))
            if "end" in message:
                store().add("gone", 1)
                return int(message["end"])
            run = Run(Path(message["folder"]))
            with contextlib.suppress(UserError):  # rank 0 says it
                work(run, message["name"], run.trusted(message["trust"]), Terminal(quiet=True))
    except ConfigError as error:
        if os.environ.get("LOCAL_RANK") == "0":  # on another node, where nobody else would say it
            print(f"dltrain: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        if lost(error):
            time.sleep(PATIENCE)
        return 1
    return 0


def end(code: int) -> None:
    """Let the ranks that follow go, and wait until they have: rank 0 may be where they are told."""
    from dltrain.distributed.processes import store

    with contextlib.suppress(UserError, RuntimeError):
        _say({"end": code})
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and store().add("gone", 0) < int(os.environ["WORLD_SIZE"]) - 1:
            time.sleep(0.02)


if __name__ == "__main__":
    main()
