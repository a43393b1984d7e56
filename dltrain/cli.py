"""The command line: the first word, help, errors as sentences, and exit codes. It imports nothing heavy."""

import importlib
import os
import sys
from pathlib import Path

from dltrain.commands import commands
from dltrain.errors import ConfigError, Failed, UserError, nearest, of_disk, tell

INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 + the number of the signal
HELP = ("--help", "-h")
COMPLETION = ("--shell-completion", "-sc")


def main() -> None:
    """Run the process's command line and exit with its code."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of a lost connection torch would say where in its C++
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append("")  # so that trust=[mynets] finds ./mynets.py; last, so that ./random.py hides nothing
    sys.exit(run(sys.argv[1:]) if "RANK" not in os.environ and "SLURM_PROCID" not in os.environ else rank(sys.argv[1:]))


def rank(words: list[str]) -> int:
    """As `run`, in one of several processes that torchrun or SLURM may have started: rank 0 reads the words."""
    from dltrain import launch

    if not launch.external():
        return run(words)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launch.die_with(os.getppid())
    code = launch.follow(dispatch) if launch.follows() else launch.lead(lambda: run(words))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what is left of a process group may abort a process that ends as usual


def run(words: list[str]) -> int:
    """Run a command line; returns the exit code, with what the user got wrong told on standard error."""
    try:
        code = dispatch(words)
        sys.stdout.flush()
        return code
    except Failed as error:
        from dltrain.report.terminal import failure

        return failure(error)
    except UserError as error:
        return tell(error)
    except BrokenPipeError:  # the reader has gone, as in `dltrain list models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        refused = of_disk(error)
        if refused is None:
            raise
        return tell(refused)
    except KeyboardInterrupt:
        return INTERRUPTED


def dispatch(words: list[str]) -> int:
    """Find the command that is meant, and run it."""
    if any(word in COMPLETION for word in words):
        from dltrain.completion import complete

        return complete(words)
    command, rest = _command(words)
    if any(word in HELP for word in rest):
        from dltrain.commands.help import page

        print(page(command if words[:1] == [command] else ""), end="")
        return 0
    if rest == ["--version"]:
        from dltrain import __version__

        print(f"dltrain {__version__}")
        return 0
    if command == "train":
        from dltrain.app import train

        return train(rest)
    return importlib.import_module(f"dltrain.commands.{command}").run(rest)


def _command(words: list[str]) -> tuple[str, list[str]]:
    """The command of some words and the rest; raises ConfigError if the first is neither command, setting nor flag."""
    if not words or "=" in words[0] or words[0].startswith(("-", "~")):
        return "train", words
    first = words[0]
    if first in commands():
        return first, words[1:]
    if first.lower().endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")):
        raise ConfigError(f"{first} must be written as data=csv data.path={first} data.target=<the column to predict>")
    raise ConfigError(f"{first}: no such command{nearest(first, commands())}")
