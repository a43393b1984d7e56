"""Data by content, for the name of a run: files are hashed, never parsed. Standard library only: it answers at once."""

import hashlib
from pathlib import Path
from typing import Any

from dltrain.errors import ConfigError, DataError, nearest


def content_hash(data: dict[str, Any]) -> dict[str, Any]:
    """The `data` mapping of a config with every path replaced by the SHA-256 of what is there.

    A folder is hashed by its listing. Raises DataError for a file that is missing or empty, ConfigError for no path.
    """
    content = {}
    for key, value in data.items():
        if key == "path" or (key.endswith("_path") and value is not None):
            path = find(f"data.{key}", value)
            if "delimiter" in data:  # a source that has one reads files
                path = file(f"data.{key}", value)
            value = folder_sha256(path) if path.is_dir() else file_sha256(path)
        content[key] = value
    return content


def find(setting: str, value: Any) -> Path:
    """The path a setting names, `~` expanded; raises when nothing is there."""
    if value is None or isinstance(value, bool | int | float | list | dict) or value == "":
        raise ConfigError(f"{setting} must be a file, got {'null' if value is None else repr(value)}")
    path = Path(value).expanduser()
    if path.exists():
        return path
    if not path.parent.is_dir():
        raise DataError(f"{value}: no such file (there is no folder {path.parent})")
    others = [item.name for item in path.parent.iterdir() if item.is_file() and not item.name.startswith(".")]
    raise DataError(f"{value}: no such file{nearest(path.name, others)}")


def file(setting: str, value: Any) -> Path:
    """The readable, non-empty file a setting names; raises DataError otherwise."""
    path = find(setting, value)
    if path.is_dir():
        raise DataError(f"{value}: is a folder; {setting} must be a file")
    try:
        with path.open("rb") as stream:
            empty = not stream.read(1)
    except PermissionError as error:
        raise DataError(f"{value}: not allowed to read it") from error
    if empty:
        raise DataError(f"{path.name}: the file is empty")
    return path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_sha256(path: Path) -> str:
    """SHA-256 of a folder's listing: relative names and sizes of its files, sorted."""
    digest = hashlib.sha256()
    for item in sorted(path.rglob("*")):
        if item.is_file():
            digest.update(f"{item.relative_to(path).as_posix()}\0{item.stat().st_size}\n".encode())
    return digest.hexdigest()
