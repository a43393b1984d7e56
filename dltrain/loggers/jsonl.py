"""metrics.jsonl: one JSON object a line, for programs and for whoever opens the folder."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from dltrain.errors import DiskError, must, whole
from dltrain.lines import read_line
from dltrain.loggers import Logger, Record


class JSONL(Logger):
    """Append each record to the file of that name in the run's folder; raises DiskError when it cannot be written."""

    required = True

    def __init__(self, path: str | Path = "metrics.jsonl") -> None:
        inside = Path(str(path)).name == str(path) and str(path) not in ("", "..")
        must(inside, "path of JSONL", "the name of a file in the run's folder", path)
        self.path = Path(str(path))
        self.file: TextIO | None = None

    def start(self, folder: Path, config: dict[str, Any], step: int) -> None:
        self.path = Path(folder) / self.path
        with self._disk():
            self.path.touch()
            self.truncate(step)
            self.file = self.path.open("a", encoding="utf-8")

    def truncate(self, step: int) -> None:
        """Cut the file before the first record after `step`, or the first line that was not written to its end."""
        keep = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") or (at := _step(line)) is None or at > step:
                    break
                keep += len(line)
        os.truncate(self.path, keep)

    def log(self, record: Record) -> None:
        assert self.file is not None, "log() before start()"
        with self._disk():
            self.file.write(json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n")
            self.file.flush()

    def sync(self) -> None:
        assert self.file is not None, "sync() before start()"
        with self._disk():
            os.fsync(self.file.fileno())

    def finish(self, result: dict[str, Any]) -> None:
        self.sync()
        assert self.file is not None
        with self._disk():
            self.file.close()

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DiskError(f"cannot write {self.path}: {error.strerror or error}") from error


def _step(line: bytes) -> int | None:
    """The step of a record; None if the line is not one."""
    step = (read_line(line) or {}).get("step")
    return step if whole(step) else None


def _finite(value: Any) -> Any:
    """The same value with null for what JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
