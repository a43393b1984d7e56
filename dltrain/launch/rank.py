"""One of the workers that dltrain starts: it reads nothing but the folder of its run."""

import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from datetime import datetime
from pathlib import Path

from dltrain.errors import UserError, of_disk
from dltrain.faults import point
from dltrain.report.terminal import Terminal
from dltrain.run import Run

LOST = 71  # exit code of a rank that only noticed that another has gone
PATIENCE = 5  # seconds in which the agent shall notice who has gone before those who noticed go themselves


def main() -> None:
    """Be a rank: `python -m dltrain.launch <folder> <name> <trust> <last step> <pid of the parent> <pids>`."""
    folder, name, trust, last_step, parent, pids = sys.argv[1:]
    die_with(int(parent))
    rank = int(os.environ["RANK"])
    (Path(pids) / f"{rank}.pid").write_text(str(os.getpid()))
    run = Run(Path(folder))
    (run.folder / "logs").mkdir(exist_ok=True)
    log = (run.folder / "logs" / f"rank{rank}.log").open("ab", buffering=0)
    os.dup2(log.fileno(), 2)
    if rank or last_step:  # rank 0 alone speaks, and only of whole runs
        os.dup2(log.fileno(), 1)
    print(
        f"{datetime.now():%Y-%m-%d %H:%M:%S} rank {rank} of {os.environ['WORLD_SIZE']}, pid {os.getpid()}",
        file=sys.stderr,
    )
    code = _rank(run, name, json.loads(trust), rank, int(last_step) if last_step else None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what is left of the process group may abort a process that ends as usual


def _rank(run: Run, name: str, trust: list[str], rank: int, last_step: int | None) -> int:
    try:
        point("spawn")
        from dltrain.worker import work

        work(run, name, run.trusted(trust), Terminal(quiet=rank > 0), last_step)
    except UserError as error:
        return _record(str(error), error.exit_code)
    except BaseException as error:
        if isinstance(error, OSError) and (refused := of_disk(error)):
            return _record(str(refused), refused.exit_code)
        traceback.print_exc()
        from dltrain.distributed.processes import lost

        if lost(error):
            time.sleep(PATIENCE)
            return _record(str(error), LOST)
        return _record(f"raised {type(error).__name__}: {' '.join(str(error).split())}", 1, shown=True)
    return 0


def _record(text: str, code: int, shown: bool = False) -> int:
    """Tell the agent what happened, and the log unless that shows it."""
    content = {"message": text, "timestamp": int(time.time()), "code": code, "rank": os.environ["RANK"]}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(content), encoding="utf-8")
    if not shown:
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
