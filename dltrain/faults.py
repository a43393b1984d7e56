"""Named places at which tests inject faults; they cost nothing unless one of these stands in the environment.

DLTRAIN_PHASES=<file>          append the name of every place that is passed, so that a test knows where a kill fell
DLTRAIN_FAULT=<place>:<what>   the first time that place is passed: kill, stop, raise, full (disk), term, or sleep
DLTRAIN_FAULT=<place>:<what>:<n>  the n-th time
"""

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path

PHASES, FAULT = os.environ.get("DLTRAIN_PHASES"), os.environ.get("DLTRAIN_FAULT")
passed: Counter[str] = Counter()


def point(place: str) -> None:
    """Pass a named place."""
    if PHASES is None and FAULT is None:
        return
    passed[place] += 1
    if PHASES is not None:
        with Path(PHASES).open("ab", buffering=0) as file:  # one write call: whole lines survive a kill
            file.write(f"{place}\n".encode())
    if FAULT is not None:
        where, what, *times = FAULT.split(":")
        if where == place and passed[place] == int(times[0] if times else 1):
            _happen(place, what)


def _happen(place: str, what: str) -> None:
    match what:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "term":
            os.kill(os.getpid(), signal.SIGTERM)
        case "sleep":
            time.sleep(3600)
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)
        case "raise":
            raise RuntimeError(f"injected at {place}")
