"""Train several runs in one process, those together that can go together."""

import contextlib
import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from dltrain.build import Builder
from dltrain.data.rows import Data
from dltrain.distributed import Single
from dltrain.errors import Stopped, UserError, of_disk, tell
from dltrain.opening import goes_on, opened
from dltrain.report.terminal import Terminal
from dltrain.run import Config, Run
from dltrain.together.lockstep import Member, walk
from dltrain.worker import Signals, Work, build, parts, read

Opening = Callable[[int, str], None]
Ending = Callable[[int, int, str], None]


def train_together(
    configs: Sequence[Config],
    words: Sequence[list[str]],
    opening: Opening = lambda number, name: None,
    ending: Ending = lambda number, code, message: None,
    forced: bool = False,
    quiet: bool = False,
) -> list[int]:
    """Train the runs of one of `groups` side by side; returns the exit code of each, and raises nothing of theirs.

    Each has its own folder and equals what it is alone: same rows in the same order, same first weights, same noise;
    tensors are within 1e-9 of each other's norm after 100 steps in float64. What cannot be stacked is trained one after
    another, and what is too few or too large to be faster for it, unless `forced`. `opening` is told the number and the
    name of each run before it is built, `ending` its number, exit code and what was wrong.
    """
    group = Group(configs, words, opening, ending, forced, Terminal(quiet=quiet))
    group.train()
    return [group.codes[number] for number in range(len(configs))]


@dataclass
class Group:
    """Runs that are trained side by side, and how each has ended."""

    configs: Sequence[Config]
    words: Sequence[list[str]]
    opening: Opening
    ending: Ending
    forced: bool
    terminal: Terminal
    codes: dict[int, int] = field(default_factory=dict)
    shown: BaseException | None = None  # whose traceback was printed last
    data: dict[str, Data] = field(default_factory=dict)  # prepared, by the settings of data and pipeline
    said: set[str] = field(default_factory=set)  # warnings, which many runs may have in common

    def train(self) -> None:
        with Signals() as signals, contextlib.ExitStack() as trainers:
            trainer = parts(self.configs[0])[1].part("trainer")()
            trainers.enter_context(trainer)
            members = []
            for number in range(len(self.configs)):
                folder = contextlib.ExitStack()
                try:
                    made = self.built(number, trainer, folder)
                    if made is None:
                        self.end(number, folder, None)
                    else:
                        members.append((number, *made, folder))
                except Exception as error:
                    self.end(number, folder, error)
                    if signals.asked:
                        break
            if signals.asked:
                left = {number: folder for number, _, _, folder in members}
                for number in range(len(self.configs)):
                    if number not in self.codes:
                        self.end(number, left.get(number), Stopped("stopped before training began"))
                return
            self.begin(members, signals)

    def begin(self, built: Sequence[tuple[int, str, Work, contextlib.ExitStack]], signals: Signals) -> None:
        """Train what was built."""
        members = []
        for number, name, work, folder in built:
            work.begin(name, signals)
            members.append(Member(work, partial(self.end, number, folder)))
        walk(members, self.forced)

    def built(self, number: int, trainer: Single, folder: contextlib.ExitStack) -> tuple[str, Work] | None:
        """The name of a run, and the run with all its parts; None of one that is finished."""
        run, name, config = folder.enter_context(opened(self.configs[number], self.words[number]))
        self.opening(number, name)
        if run.result().get("status") == "finished":
            return None
        if run.folder.name == name:
            goes_on(run, config)
        settings, builder = parts(config)
        quiet = Quiet(self.terminal, name, self.said)
        data = self.read(run, config, builder, trainer, quiet)
        return name, build(run, config, quiet, settings, builder, trainer, data)

    def read(self, run: Run, config: Config, builder: Builder, trainer: Single, quiet: Terminal) -> Data:
        """The rows of a run, prepared once for all whose settings of data and pipeline are the same."""
        key = json.dumps([config["data"], list((config.get("pipeline") or {}).items())], sort_keys=True)
        if key not in self.data:
            self.data[key] = read(run, builder, trainer)
            self.terminal.data(self.data[key].description) if len(self.data) == 1 else None
        return self.data[key]

    def end(self, number: int, folder: contextlib.ExitStack | None, error: BaseException | None) -> None:
        """Tell how a run has ended, and let go of its folder."""
        if folder is not None:
            folder.close()
        known = of_disk(error) or error if isinstance(error, OSError) else error
        if known is None:
            code = 0
        elif isinstance(known, UserError):
            code = tell(known)
        else:
            if known is not self.shown:
                traceback.print_exception(known)
            self.shown, code = known, 1
        self.codes[number] = code
        self.ending(number, code, "" if error is None else str(known) or type(known).__name__)


class Quiet(Terminal):
    """The terminal of one run among several: it says what is wrong, with the name of the run, and nothing else."""

    def __init__(self, terminal: Terminal, name: str, said: set[str]) -> None:
        super().__init__(terminal.console, quiet=True)
        self.aloud, self.name, self.said = Terminal(terminal.console), name, said

    def warn(self, text: str) -> None:
        """Say what no other run has said."""
        if text not in self.said:
            self.said.add(text)
            self.aloud.warn(f"{self.name}: {text}")
