"""Files with one JSON object a line, to which a line is added whenever something has ended."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_line(line: bytes) -> dict[str, Any] | None:
    """The object that a line says; None of one that was torn when the power went, or says something else."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, without lines that say none; nothing if there is no file."""
    if path.is_file():
        with path.open("rb") as file:
            yield from (found for line in file if (found := read_line(line)) is not None)
