"""Show what can be typed: `dltrain help`, or of one command, `dltrain help predict`."""

import os
import shutil
import sys
import textwrap

from dltrain.choices import defaults, groups, options
from dltrain.commands import about, commands, settings
from dltrain.errors import ConfigError, nearest

WIDEST = 100  # columns; longer lines are hard to read
FIRST = """\
dltrain                                     handwritten digits, no file needed
dltrain data=csv data.path=houses.csv data.target=price
dltrain predict run=last input=new.csv      one prediction a row
"""
MORE = """\
dltrain model=cnn optimizer.lr=1e-2         a choice and a setting
dltrain regularizer=[l2,early_stopping]     several of one group
dltrain -m optimizer.lr=1e-2,1e-3 seed=0,1  every combination
dltrain model=cnn --cfg job                 every setting it would use
dltrain list models                         what each choice is
"""
FIRST_WORDS = {"help": "[command]", "list": "[models|optimizers|data|...|runs]"}
SETTINGS = {
    "epochs": "passes over the training rows",
    "batch_size": "rows of a step over all processes, or all",
    "optimizer.lr": "size of a step",
    "seed": "draws weights, order and noise",
    "name": "folder of the run",
    "trust": "modules of your own that may be used, such as [mynets]",
}


def run(words: list[str]) -> int:
    """Print the page of all commands, or of one."""
    name = words[0] if words else ""
    if name and name not in commands():
        raise ConfigError(f"{name}: no such command{nearest(name, commands())}")
    print(page(name), end="")
    return 0


def page(command: str = "", width: int | None = None) -> str:
    """The help of a command, or of everything, for a terminal of some columns."""
    width = min(width or shutil.get_terminal_size().columns, WIDEST)
    return _one(command, width) if command not in ("", "train") else _whole(width)


def _whole(width: int) -> str:
    chosen = defaults()
    parts = [
        *textwrap.wrap("Train neural networks from a file of rows: dltrain [command] key=value ...", width),
        "",
        heading("begin"),
        *_commands(FIRST, width),
        "",
        heading("then"),
        *_commands(MORE, width),
        "",
        heading("commands"),
        *pairs([(name, about(name)) for name in commands()], width),
        "",
        heading("choices"),
        *pairs([(group, _members(group, chosen.get(group, ""))) for group in groups() if options(group)], width),
        *textwrap.wrap(
            "* stands if nothing is chosen. Files in ./configs add your own; dltrain init begins them.", width
        ),
        "",
        heading("settings"),
        *pairs(list(SETTINGS.items()), width),
        "",
        heading("results"),
        *textwrap.wrap(
            "Every run is a folder in outputs/. The same command again continues a run that was stopped, or shows"
            " one that is finished.",
            width,
        ),
        "",
        heading("tab completion"),
        *_commands(
            'eval "$(dltrain -sc install=bash)"      bash, zsh\ndltrain -sc install=fish | source       fish', width
        ),
    ]
    return "\n".join(parts) + "\n"


def _one(command: str, width: int) -> str:
    found = settings(command)
    needed = [f"{setting.name}=..." for setting in found if setting.default is None]
    more = "[key=value ...]" if found else ""
    rows = []
    for setting in found:
        default = "" if setting.default is None else f" (default {setting.default})" if setting.default else ""
        rows.append((f"{setting.name}=", setting.about + default))
    lines = [
        *textwrap.wrap(about(command), width),
        "",
        "  " + " ".join(word for word in ("dltrain", command, FIRST_WORDS.get(command), *needed, more) if word),
    ]
    return "\n".join([*lines, "", *pairs(rows, width)] if rows else lines) + "\n"


def _members(group: str, default: str) -> str:
    names = list(options(group))
    return " ".join(f"{name}*" if name == default else name for name in names)


def _commands(text: str, width: int) -> list[str]:
    """Commands to copy, whole, each with its remark beside it, or above it where there is no room."""
    lines = []
    for line in text.splitlines():
        command, _, remark = (part.strip() for part in line.partition("    "))
        if not remark and "  " in line:
            command, _, remark = (part.strip() for part in line.partition("  "))
        if len(line) + 2 <= width or not remark:
            lines.append(f"  {line}")
        else:
            lines += [f"  {command}", *textwrap.wrap(remark, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    return lines


def pairs(rows: list[tuple[str, str]], width: int) -> list[str]:
    """Words and what they are, in two columns, folded between words."""
    left = max((len(word) for word, _ in rows), default=0) + 4
    lines = []
    for word, text in rows:
        if left > width // 2:
            indent = " " * 6
            lines += [f"  {word}", *textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)]
            continue
        folded = textwrap.wrap(text, max(width - left, 10), break_long_words=False) or [""]
        lines += [f"  {word}".ljust(left) + folded[0], *(" " * left + line for line in folded[1:])]
    return [line.rstrip() for line in lines]


def heading(text: str) -> str:
    """A heading, bold on a terminal."""
    bold = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return f"\033[1m{text}\033[0m" if bold else text
