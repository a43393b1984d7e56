"""Named places at which tests inject faults; they cost nothing unless one of these stands in the environment.

DLTRAIN_PHASES=<file>          append the name of every place that is passed, so that a test knows where a kill fell
DLTRAIN_FAULT=<place>:<what>   the first time that place is passed: kill, stop, raise, full (disk), term, or sleep
DLTRAIN_FAULT=<place>:<what>:<n>  the n-th time
DLTRAIN_FAULT=<place>@<rank>:...  on that rank alone

Two faults return to their place: nan (the loss there becomes one) and slow (it took a fifth of a second).
"""

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path

PHASES, FAULT = os.environ.get("DLTRAIN_PHASES"), os.environ.get("DLTRAIN_FAULT")
passed: Counter[str] = Counter()


def point(place: str) -> bool:
    """Pass a named place; True if what is computed there shall become not a number."""
    if PHASES is None and FAULT is None:
        return False
    passed[place] += 1
    if PHASES is not None:
        with Path(PHASES).open("ab", buffering=0) as file:  # one write call: whole lines survive a kill
            file.write(f"{place}\n".encode())
    if FAULT is not None:
        where, what, *times = FAULT.split(":")
        where, _, rank = where.partition("@")
        here = where == place and rank in ("", os.environ.get("RANK", "0"))
        if here and (what == "slow" or passed[place] == int(times[0] if times else 1)):
            return _happen(place, what)
    return False


def _happen(place: str, what: str) -> bool:
    match what:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "term":
            os.kill(os.getpid(), signal.SIGTERM)
        case "sleep":
            time.sleep(3600)
        case "slow":
            time.sleep(0.2)
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)
        case "raise":
            raise RuntimeError(f"injected at {place}")
    return what == "nan"
