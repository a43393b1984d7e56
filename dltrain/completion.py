"""Tab completion: Hydra's own for bash, zsh and fish, with the commands, names of runs and files added."""

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

from dltrain.choices import groups, plural
from dltrain.commands import commands, settings
from dltrain.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")
VERBS = ("install", "uninstall", "query")
FILES = re.compile(r"(data\.(\w+_)?path|model\.weights|input|out|--config-dir)=")
RUNS = re.compile(r"(run|a|b|model\.from_run)=")


def complete(words: list[str]) -> int:
    """Install, remove or answer a completion (`-sc install=bash`, `-sc query=bash`)."""
    verb, _, shell = next((word for word in words if "=" in word), "").partition("=")
    if verb not in VERBS or shell not in SHELLS:
        raise ConfigError(f"{words[0]} must be followed by install=, uninstall= or query=, and {' or '.join(SHELLS)}")
    if verb != "query":
        return _hydra([f"{verb}={shell}"])
    line = os.environ.get("COMP_LINE", "")
    found = candidates(line)
    if found is None:
        os.environ["COMP_LINE"] = _for_hydra(line)
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(Exception):  # a shell must not see an error here
            _hydra([f"query={shell}"])
        asked = _words(line)[-1].startswith("h")  # Hydra's own settings are shown to who begins to type them
        found = [word for word in said.getvalue().split() if asked or not word.startswith("hydra")]
        found = _with_commands(line, found)
    print(("\n" if shell == "fish" else " ").join(found))
    return 0


def _hydra(words: list[str]) -> int:
    from dltrain.app import hydra_main

    return hydra_main({"--shell-completion": ""}, words, lambda cfg: None)


def candidates(line: str) -> list[str] | None:
    """What the last word of a line may become; None where Hydra knows."""
    words = _words(line)
    command, word = (words[1] if len(words) > 2 else ""), words[-1]
    if FILES.match(word):
        return _files(word)
    if match := RUNS.match(word):
        return [f"{match[0]}{name}" for name in _runs() if name.startswith(word[match.end() :])]
    if command == "list":
        return [name for name in ["runs", *map(plural, groups())] if name.startswith(word)]
    if command == "diff":
        return [name for name in _runs() if name.startswith(word)]
    if command == "help":
        return [name for name in commands() if name.startswith(word)]
    if command not in commands() or command == "train":
        return None
    found = [f"{setting.name}=" for setting in settings(command) if setting.name.startswith(word)]
    return None if command == "resume" and not found else found


def _words(line: str) -> list[str]:
    """The words of a line; the last is the one being typed, perhaps empty."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quote is open still
        words = line.split()
    return [*words, ""] if not words or line.endswith(" ") else words


def _for_hydra(line: str) -> str:
    """A line that Hydra's completion can read: without a command and without literal text that it cannot parse."""
    from dltrain.compose import literals

    words = _words(line)
    typed = [word for word in words[1:-1] if word not in commands() and not word.startswith("run=")]
    return " ".join([words[0], *literals(typed)[1], words[-1]])


def _with_commands(line: str, found: list[str]) -> list[str]:
    words = _words(line)
    return [*found, *(name for name in commands() if name.startswith(words[-1]))] if len(words) == 2 else found


def _files(word: str) -> list[str]:
    """Paths that begin as the value of a word does; folders end with a slash."""
    key, _, start = word.partition("=")
    folder = Path(start).expanduser() if start.endswith("/") else Path(start).expanduser().parent
    prefix = start[: start.rfind("/") + 1]
    name = start[len(prefix) :]
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [f"{key}={prefix}{path.name}{'/' * path.is_dir()}" for path in paths if path.name.startswith(name)]


def _runs() -> list[str]:
    root = Path("outputs")
    found = [path.parent.name for path in root.glob("[!.]*/config.yaml")] if root.is_dir() else []
    return ["last", "best", *sorted(found)]
