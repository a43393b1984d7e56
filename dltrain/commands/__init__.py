"""What can be done, one command a file. A command is a module with `run(words) -> int` and, mostly, `Options`.

`Options` is a dataclass: its fields are the settings that may be typed as key=value, the comment on a field's line says
what it is. `train` alone is a Hydra application (see dltrain/app.py).
"""

import ast
import builtins
import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import IO, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from dltrain.errors import ConfigError, DiskError, nearest

Given = TypeVar("Given")


@dataclass(frozen=True)
class Setting:
    """A field of a command's Options, as its source says."""

    name: str
    default: str | None  # None: must be given
    about: str


def commands() -> dict[str, Path]:
    """The file of every command by its name."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return {file.stem: file for file in files if not file.stem.startswith("_")}


def about(name: str) -> str:
    """The first sentence of a command's file."""
    text = commands()[name].read_text(encoding="utf-8")
    return text.removeprefix('"""').partition('"""')[0].partition("\n")[0]


def settings(name: str) -> list[Setting]:
    """What a command takes, read from its source: importing it may be slow."""
    text = commands()[name].read_text(encoding="utf-8")
    lines = text.splitlines()
    found = []
    for node in ast.parse(text).body:
        if not isinstance(node, ast.ClassDef) or node.name != "Options":
            continue
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                comment = lines[item.lineno - 1].partition("  # ")[2]
                default = ast.unparse(item.value).strip("'\"") if item.value else None
                default = {"None": "", "field(default_factory=list)": ""}.get(default or "", default)
                found.append(Setting(item.target.id, default, comment))
    return found


def parse(words: list[str], options: type[Given]) -> Given:
    """Read `key=value` words into a dataclass; text is literal. Raises ConfigError with everything that is wrong."""
    names = [setting.name for setting in fields(options)]  # type: ignore[arg-type]
    given, rest = _read(words, names)
    return _made(options, given, [_unknown(word, names) for word in rest])


def parse_known(words: list[str], options: type[Given]) -> tuple[Given, list[str]]:
    """As `parse`, for a command that hands the other settings on: they are returned too."""
    names = [setting.name for setting in fields(options)]  # type: ignore[arg-type]
    given, rest = _read(words, names)
    wrong = [_unknown(word, names) for word in rest if word[:1] == "-" or ("=" not in word and word[:1] != "~")]
    return _made(options, given, wrong), rest


def _read(words: list[str], names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split words into the settings of these names, as text, and the others."""
    given: dict[str, str] = {}
    rest: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in names:
            given[key] = value
        else:
            rest.append(word)
    return given, rest


def _unknown(word: str, names: list[str]) -> str:
    key, equals, value = word.partition("=")
    bare = key.lstrip("-").replace("-", "_")
    if key.startswith("-") and bare in names:
        return f"{word} must be written as {bare}={value or '...'}"
    if not equals:
        return f"{word} must be written as key=value{nearest(bare, names)}"
    return f"{key}: no such setting{nearest(bare, names)}"


def _made(options: type[Given], given: dict[str, str], found: list[str]) -> Given:
    hints = get_type_hints(options)
    values: dict[str, Any] = {}
    for setting in fields(options):  # type: ignore[arg-type]
        if setting.name in given:
            try:
                values[setting.name] = _value(given[setting.name], hints[setting.name])
            except ValueError as error:
                found.append(f"{setting.name} must be {error}, got {given[setting.name] or repr('')}")
        elif setting.default is MISSING and setting.default_factory is MISSING:
            found.append(f"{setting.name} must be given, as {setting.name}=...")
    if found:
        raise ConfigError("\n".join(found))
    return options(**values)


def _value(text: str, hint: Any) -> Any:
    """A typed word in the type of its field; raises ValueError that says what it must be."""
    if get_origin(hint) in (types.UnionType, Union):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        if text == "null" and len(kinds) < len(get_args(hint)):
            return None
        hint = kinds[0]
    if get_origin(hint) is builtins.list:  # `list` is a command's module here, once that is imported
        inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        return [_value(item.strip(), get_args(hint)[0]) for item in inner.split(",") if item.strip()]
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("true or false")
        return text.lower() == "true"
    if hint is int:
        if not re.fullmatch(r"[+-]?\d+", text):
            raise ValueError("a whole number")
        return int(text)
    if hint is float:
        try:
            return float(text)
        except ValueError:
            raise ValueError("a number") from None
    if not text:
        raise ValueError("given")
    return text


def check_out(out: str, read: str = "-") -> None:
    """Raise ConfigError, before any work is done, if no file can be written there, or if it is the one to be read."""
    path = Path(out).expanduser()
    if out == "-":
        return
    if path.is_dir():
        raise ConfigError(f"out must be a file, got {out}, which is a folder")
    if not path.parent.is_dir():
        raise ConfigError(f"out must be in a folder that exists, got {out} (there is no folder {path.parent})")
    source = Path(read).expanduser()
    if read != "-" and path.is_file() and source.exists() and path.samefile(source):
        raise ConfigError(f"out must be another file than input, got {out}")


@contextmanager
def written(out: str, binary: bool = False) -> Iterator[IO[Any]]:
    """A file that is there whole or not at all; `-` is standard output. A pipe or device is written as it is."""
    path = Path(out).expanduser()
    if out == "-":
        yield sys.stdout.buffer if binary else sys.stdout
        sys.stdout.flush()
        return
    whole = path.is_file() or not path.exists()
    final = path.resolve() if whole else path  # of a link, what it names
    part = final.with_name(f".{final.name}.part") if whole else path
    try:
        try:
            file = part.open("wb") if binary else part.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise DiskError(f"cannot write {out}: {(error.strerror or str(error)).lower()}") from error
        with file:
            yield file
        if whole:
            part.replace(final)
    finally:
        if whole:
            part.unlink(missing_ok=True)
