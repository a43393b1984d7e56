"""The ranks of somebody else's launch: rank 0 leads, and the others follow it from run to run."""

import contextlib
import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dltrain.errors import ConfigError, UserError, tell
from dltrain.launch.plan import external, follows
from dltrain.launch.rank import PATIENCE
from dltrain.report.terminal import Terminal
from dltrain.run import Run

if TYPE_CHECKING:
    from dltrain.distributed.single import Single

_said = itertools.count()


def say(message: dict[str, Any]) -> None:
    """Tell the ranks that follow what comes next."""
    from dltrain.distributed.processes import store

    store().set(f"message {next(_said)}", json.dumps(message))


@contextlib.contextmanager
def together(words: list[str]) -> Iterator["Single"]:
    """The ranks that share a command, all of which carry out its words; mostly this process alone."""
    from dltrain.distributed.processes import Processes
    from dltrain.distributed.single import Single

    if external() and not follows():
        say({"words": words})
    with Processes(device="cpu") if external() else Single("cpu") as ranks:
        yield ranks


def lead(command: Callable[[], int]) -> int:
    """Be rank 0: carry out a command while the others follow; returns its exit code."""
    from dltrain.distributed.processes import store

    try:
        store()  # at once: the others do not wait for long
        code = command()
    except ConfigError as error:
        return tell(error)
    except SystemExit as error:
        return int(error.code or 0)
    except Exception as error:
        return apart(error)
    _end(code)
    return code


def apart(error: Exception) -> int:
    """Say what went wrong in a rank that cannot go on; returns the exit code."""
    from dltrain.distributed.processes import lost

    if lost(error):
        if not follows():
            print("dltrain: another rank has gone or does not answer; the same command continues", file=sys.stderr)
        time.sleep(PATIENCE)
    else:
        traceback.print_exception(error)
    return 1


def follow(dispatch: Callable[[list[str]], int]) -> int:
    """Be a rank in all that rank 0 starts, runs and other commands; returns the exit code that rank 0 ends with."""
    from dltrain.distributed.processes import store
    from dltrain.worker import work

    try:
        for number in itertools.count():
            while not store().check([f"message {number}"]):
                time.sleep(0.02)
            message = json.loads(store().get(f"message {number}"))
            if "end" in message:
                store().add("gone", 1)
                return int(message["end"])
            with contextlib.suppress(UserError):  # rank 0 says it
                if "words" in message:
                    dispatch(message["words"])
                else:
                    run = Run(Path(message["folder"]))
                    work(run, message["name"], run.trusted(message["trust"]), Terminal(quiet=True))
    except ConfigError as error:
        first = os.environ.get("LOCAL_RANK") == "0"  # on another node, where nobody else would say it
        return tell(error) if first else error.exit_code
    except Exception as error:
        return apart(error)
    return 0


def _end(code: int) -> None:
    """Let the ranks that follow go, and wait until they have: rank 0 may be where they are told."""
    from dltrain.distributed.processes import store

    with contextlib.suppress(UserError, RuntimeError):
        say({"end": code})
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and store().add("gone", 0) < int(os.environ["WORLD_SIZE"]) - 1:
            time.sleep(0.02)
