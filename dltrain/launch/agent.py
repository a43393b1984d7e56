"""One start of this machine's workers through torchrun's elastic agent, and how they came to their end."""

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dltrain.errors import Elsewhere, Stopped, UserError
from dltrain.launch.nodes import Nodes
from dltrain.launch.rank import LOST
from dltrain.run import Config, Run

FINAL = (2, 65, 73, 74, 75, 76)  # exit codes after which trying again would not help
LAST_LINES = 10  # of a rank's log, that are shown when it fails


@dataclass
class Failure:
    """How the rank that failed first came to its end."""

    code: int
    text: str
    tail: list[str]  # the last lines of its log
    elsewhere: bool = False  # it only noticed that another had gone


def once(
    run: Run, name: str, config: Config, n: int, last_step: int | None, nodes: Nodes | None = None, number: int = 0
) -> Failure | None:
    """Start the workers of this node and wait for them; None if all went well. Raises Stopped after a signal."""
    trainer = config["trainer"]
    with tempfile.TemporaryDirectory(prefix="dltrain-") as folder, Stopping(Path(folder)) as stopping:
        from torch.distributed import DistError
        from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        _hush()
        launch = LaunchConfig(
            min_nodes=trainer["nodes"],
            max_nodes=trainer["nodes"],
            nproc_per_node=n // trainer["nodes"],
            run_id=f"{name} {number}" if nodes else uuid.uuid4().hex,
            rdzv_backend="static" if nodes else "c10d",
            rdzv_endpoint=trainer["rdzv_endpoint"] if nodes else "localhost:0",
            rdzv_configs={"rank": nodes.number, "timeout": 60} if nodes else {},
            max_restarts=0,  # it would restart on any exit
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle="SIGQUIT",  # Stopping hears the others
            shutdown_timeout=max(30, int(trainer["timeout"])),
        )
        words = [str(run.folder.absolute()), name, json.dumps(config["trust"]), str(last_step or ""), str(os.getpid())]
        sys.stdout.flush()
        try:
            stopping.begin()
            elastic_launch(launch, sys.executable)("-m", "dltrain.launch", *words, folder)
        except ChildFailedError as error:
            return _failure(run, error.failures, n, trainer["timeout"])
        except DistError:
            return Failure(128 + signal.SIGKILL, "the nodes do not find each other", [], elsewhere=True)
        except SignalException:
            _follow_name(run, name)
            if run.result().get("status") != "finished":
                raise _ended(run, Path(folder)) from None
        finally:
            _follow_name(run, name)
    return None


def _hush() -> None:
    """Torch's launcher says nothing: we say what there is to say."""
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _ended(run: Run, folder: Path) -> UserError:
    """How workers that were asked to stop came to their end."""
    for file in sorted(folder.rglob("error.json")):
        error = json.loads(file.read_text(encoding="utf-8"))
        if error["code"] not in (LOST, Stopped.exit_code):
            raised = "" if error["code"] in FINAL else f"rank {error['rank']} "
            return Elsewhere(error["code"], raised + error["message"])
    if not (result := run.result()):
        return Stopped("stopped before training began; nothing was lost")
    return Stopped(result.get("reason") or "stopped before anything new was saved; run again to continue")


def _follow_name(run: Run, name: str) -> None:
    """A worker gives a new run its name."""
    if (there := run.folder.with_name(name)).is_dir():
        run.folder = there


class Stopping:
    """The first SIGTERM or SIGINT lets the workers save and stop; a second SIGINT kills them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.begun = folder, False, False

    def __enter__(self) -> "Stopping":
        self.before = {number: signal.signal(number, self._arrived) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def begin(self) -> None:
        """From now on there are workers to be told, and a signal raises SignalException; one that came before, too."""
        self.begun = True
        if self.asked:
            self._tell()

    def _tell(self) -> None:
        from torch.distributed.elastic.multiprocessing.api import SignalException

        raise SignalException("stopping", signal.SIGTERM)  # the agent hands it on to the workers, and waits

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, frame: Any) -> None:
        if not self.asked:
            self.asked = True
            if self.begun:
                self._tell()
        elif number == signal.SIGINT:
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
        return Failure(128 + signal.SIGKILL, text, tail, elsewhere=not silent)
    if first.exitcode < 0:
        hint = ", as the system does when memory runs out" if first.exitcode == -signal.SIGKILL else ""
        return Failure(128 - first.exitcode, f"rank {rank} of {n} was killed by {first.signal_name()}{hint}", tail)
    said = first.message if first.exitcode in FINAL else f"rank {rank} of {n} {first.message}"
    return Failure(first.exitcode, said, tail)
