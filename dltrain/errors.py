"""What a user can get wrong, each with its exit code. Anything else that is raised is a bug and keeps its traceback."""

import difflib
import errno
import math
import sys
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """Shown as one sentence, without a traceback."""

    exit_code = 1

    def lines(self) -> list[str]:
        """What is shown."""
        return str(self).splitlines()


class ConfigError(UserError):
    """A setting: *setting* must *requirement*, got *value*."""

    exit_code = 2


class DataError(UserError):
    """Rows: file, row and column, what was expected, what was found."""

    exit_code = 65


class RunInUse(UserError):
    """Another process writes this run."""

    exit_code = 73


class DiskError(UserError):
    """The disk is full, read-only or not ours to write."""

    exit_code = 74


def of_disk(error: OSError) -> DiskError | None:
    """What a full, read-only or foreign disk means to the user; None of any other error."""
    if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT):
        return None
    where = f": {error.filename}" if error.filename else ""
    return DiskError(f"{(error.strerror or str(error)).lower()}{where}")


class Stopped(UserError):
    """Stopped by a signal after saving; the same command continues."""

    exit_code = 75


class NonFinite(UserError):
    """The loss or a gradient became infinite or not a number."""

    exit_code = 76


class Elsewhere(UserError):
    """What another process of this run has said already, with its exit code."""

    def __init__(self, exit_code: int, text: str = "") -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Failed(Elsewhere):
    """A rank failed for good: its exit code, the last lines of its log, the command that goes on from there."""

    def __init__(self, exit_code: int, text: str, log: list[str], command: str) -> None:
        super().__init__(exit_code, text)
        self.log, self.command = log, command

    def lines(self) -> list[str]:
        return [*super().lines(), *(["", *self.log] if self.log else []), "", f"continue with  {self.command}"]


def tell(error: UserError) -> int:
    """Say on standard error what a user can do something about; returns the exit code."""
    sys.stdout.flush()
    print("\n".join(f"dltrain: {line}".rstrip() for line in error.lines()), file=sys.stderr)
    return error.exit_code


def nearest(word: str, choices: Iterable[str]) -> str:
    """The tail of a sentence about an unknown word: the nearest right one, and all of them.

    >>> nearest("adamv", ["sgd", "adamw"])
    '; did you mean adamw? (adamw, sgd)'
    """
    known = sorted({str(choice) for choice in choices})
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not near:  # a change of case only
        near = [choice for choice in known if choice.lower() == word.lower()]
    hint = f"; did you mean {near[0]}?" if near else ""
    listed = ", ".join(known[:30]) + (f", ... {len(known)} in all" if len(known) > 30 else "")
    return f"{hint} ({listed})" if known else hint


def must(right: bool, setting: str, requirement: str, value: Any) -> None:
    """Raise `<setting> must be <requirement>, got <value>` unless right."""
    if not right:
        raise ConfigError(f"{setting} must be {requirement}, got {show(value)}")


def whole(value: Any, least: float = -math.inf) -> bool:
    """True of an int of at least `least` that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def real(value: Any) -> bool:
    """True of a finite int or float that is not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def show(value: Any) -> str:
    """A value as it is typed.

    >>> show([64, None, True]), show("")
    ('[64, null, true]', "''")
    """
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case "":
            return "''"
        case list():
            return f"[{', '.join(map(show, value))}]"
        case dict():
            return f"{{{', '.join(f'{key}: {show(item)}' for key, item in value.items())}}}"
    return str(value)
