"""trials.jsonl of a sweep: one line for every trial that has ended."""

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from dltrain.errors import DiskError, RunInUse
from dltrain.lines import read_line

Line = dict[str, Any]  # trial (from 1), exit, words, message, run, status, params, values, seconds


class Records:
    """The lines, the last of each trial; held by one process at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "trials.jsonl"
        self.lines: dict[int, Line] = {}
        self.file: IO[bytes] | None = None

    def open(self) -> None:
        """Hold the file and read it; raises RunInUse if another process holds it, DiskError if it cannot be made."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a+b")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise DiskError(f"cannot write the sweep's folder {self.folder}: {reason}") from error
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunInUse(f"sweep {self.folder.name} is in use by another process") from None
        self.lines.clear()
        self.file.seek(0)
        whole = 0
        for line in self.file:
            if not line.endswith(b"\n") or (found := _read(line)) is None:  # the power went while it was written
                break
            whole += len(line)
            self.lines[found["trial"]] = found
        self.file.truncate(whole)

    def add(self, line: Line) -> None:
        """Keep a line where a crash does not reach it."""
        assert self.file is not None
        self.file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.lines[line["trial"]] = line

    def close(self) -> None:
        if self.file:
            self.file.close()


def _read(line: bytes) -> Line | None:
    found = read_line(line) or {}
    return found if isinstance(found.get("trial"), int) and "exit" in found else None
