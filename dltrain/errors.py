"""What a user can get wrong, each with its exit code. Anything else that is raised is a bug and keeps its traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Shown as one sentence, without a traceback."""

    exit_code = 1


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


class Stopped(UserError):
    """Stopped by a signal after saving; the same command continues."""

    exit_code = 75


class NonFinite(UserError):
    """The loss or a gradient became infinite or not a number."""

    exit_code = 76


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
