"""A sweep under way: which trials there are, which have ended and how, and which one comes next.

What has ended stands in trials.jsonl of the sweep's folder; the same command goes on from there.
"""

import contextlib
import hashlib
import signal
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from dltrain import compose
from dltrain.commands.compare import KNOWN, direction
from dltrain.errors import ConfigError, DiskError, Stopped, must, nearest, real, show
from dltrain.launch import external
from dltrain.opening import set_aside
from dltrain.pruning import PRUNERS
from dltrain.run import ELSEWHERE, WHERE, Config, Run, differences, read_yaml
from dltrain.sweeps.board import Board
from dltrain.sweeps.records import Line, Records
from dltrain.sweeps.space import Job, Params, Space
from dltrain.sweeps.trial import Outcome, Trial, typed

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

    from dltrain.sweeps.study import Study

VARIANTS = 24  # of a sweep, that are composed and checked before it starts
FREE = ("n_trials", "slots", "on_fail", "of", "together")  # settings of a sweep that may change while it is under way
COSTS = ("seconds", "epochs", "steps")  # of result.json, that trials may be judged by besides metrics


class Search:
    """The trials of one sweep."""

    def __init__(self, folder: Path, config: Config, words: list[str]) -> None:
        self.folder, self.settings, self.how = folder, config["sweep"], config["choices"]["sweep"]
        _check(self.how, self.settings)
        self.records = Records(folder)
        self.board = Board(folder, self.settings["slots"], self.records.lines)
        self.trial = Trial(folder, compose.literal_words(words), self)
        self.running: dict[int, Job] = {}
        self.twins: defaultdict[int, list[Job]] = defaultdict(list)  # of one that runs: proposals of the same values
        self.study: Study | None = None  # of a search that is no grid
        self.every: list[Params] = []  # of a grid
        self.under_way: dict[int, Params] = {}  # when the sweep was stopped or killed
        self.reports = bool(config["report"])
        self.over = self.stopped = False
        self.opening = False  # whether a trial of this process has begun, and does not listen to signals yet
        self.total = 0

    def begin(self, space: Space, config: Config) -> None:
        """Take up what has been done; raises ConfigError if that was another search, RunInUse if it is under way."""
        self.space = space
        if self.how == "grid":
            self.every = space.every()
            self.total = len(self.every)
        else:
            from dltrain.sweeps.study import Study

            self.study = Study(self.folder, self.how, self.settings["seed"], space, config)
            self.total = self.settings["n_trials"]
        self.records.open()
        if config["fresh"] and not self._missing():  # as a run that is finished moves out of the way
            self.records.close()
            set_aside(Run(self.folder))
            self.records.open()
        if self.records.lines:
            self._same(config)
        if self.study:
            if not self.records.lines:  # no trial has ended: what was under way is proposed again
                self.study.path.unlink(missing_ok=True)
            self.under_way = self.study.open(self.records.lines)
        self.board.start(self.total)

    def _same(self, config: Config) -> None:
        """Raise ConfigError if the trials that have ended are of another search."""
        if not isinstance(before := read_yaml(self.folder / "multirun.yaml"), dict):
            return
        found = differences(_essence(before), _essence(config))
        changed = [f"{key} was {show(old)}, now {show(new)}" for key, old, new in found]
        if changed:
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise ConfigError(
                f"name must be free or of the same search, got {self.folder.name}, a search in which "
                f"{'; '.join(changed[:5])}{more}"
            )

    def jobs(self) -> Iterator[Job]:
        """The trials that have not ended, each when it is asked for."""
        for number in self._missing():
            if self.over or self.stopped:
                return
            job = self.space.job(number, self._params(number))
            if same := self._like(job.params):
                self._ended({**same, "trial": number, "same_as": same["trial"]})
            elif twin := next((other for other in self.running.values() if other.params == job.params), None):
                self.twins[twin.number].append(job)
            else:
                self.running[number] = job
                yield job

    def begins(self, job: Job) -> Job:
        """Say that a trial begins; returns it."""
        self.board.begins(job, typed(self.trial.literal, job.words))
        return job

    @property
    def together(self) -> bool:
        """Whether trials may be trained side by side in this process: none of them waits for another's end."""
        return bool(self.settings["together"]) and _apart(self.how, self.settings)

    def _missing(self) -> list[int]:
        """The trials that have not ended; in a grid one that failed is tried again."""
        lines = self.records.lines
        return [n for n in range(1, self.total + 1) if n not in lines or (lines[n]["exit"] and not self.study)]

    def _params(self, number: int) -> Params:
        """The values of a trial that has not ended."""
        if not self.study:
            return self.every[number - 1]
        return self.under_way.get(number) or self.study.propose(number, self.records.lines, self.asked)

    @property
    def asked(self) -> list[Job]:
        """The trials that run, or wait for one of the same values."""
        return [*self.running.values(), *(twin for twins in self.twins.values() for twin in twins)]

    def _like(self, params: Params) -> Line | None:
        """What became of an earlier trial of the same values."""
        ended = (line for line in self.records.lines.values() if self.study or not line["exit"])
        return next((line for line in ended if line.get("params") == params), None)

    def take(self, job: Job, returned: "JobReturn") -> None:
        """Keep what became of a trial; raises DiskError if it found no room, ConfigError for a metric it lacks."""
        del self.running[job.number]
        outcome = returned._return_value
        if not isinstance(outcome, Outcome):  # the process has gone, or could not begin
            outcome = Outcome(getattr(outcome, "exit_code", 1), str(outcome))
        if outcome.exit == Stopped.exit_code:
            self.stopped = True
            return
        if outcome.exit == DiskError.exit_code:
            raise DiskError(f"{outcome.message}; the same command continues the sweep")
        line = self._line(job, outcome)
        self._ended(line)
        for twin in self.twins.pop(job.number, []):
            self._ended({**line, "trial": twin.number, "same_as": job.number})
        if line["exit"] and self.settings["on_fail"] == "stop":
            self.over = True

    def _line(self, job: Job, outcome: Outcome) -> Line:
        result = outcome.result
        values, better = ({}, []) if outcome.exit else self._values(outcome)
        return {
            "trial": job.number,
            "exit": outcome.exit,
            "status": "failed" if outcome.exit else result.get("status", "finished"),
            "words": typed(self.trial.literal, job.words),
            "params": job.params,
            "values": values,
            "better": better,
            "seconds": result.get("seconds"),
            "evaluations": result.get("evaluations"),
            "message": outcome.message,
            "run": outcome.run,
        }

    def _values(self, outcome: Outcome) -> tuple[dict[str, float], list[str]]:
        """What a trial is judged by, and which way each gets better."""
        result = outcome.result
        scores = {f"valid/{name}": value for name, value in (result.get("valid") or {}).items() if real(value)}
        known = scores | {name: float(result[name]) for name in COSTS if real(result.get(name))}
        asked = self.settings["metrics"]
        if asked is None and f"valid/{result.get('monitor')}" not in known:
            must(self.study is None, f"sweep={self.how}", "over trials with validation rows to judge them by", "none")
            return {}, []
        names = [f"valid/{result['monitor']}"] if asked is None else [_full(name) for name in asked]
        for name in names:
            if name not in known:
                raise ConfigError(f"sweep.metrics must be metrics of the trials, got {name}{nearest(name, known)}")
        run = Run(self.folder.parent.parent / str(outcome.run))
        ways = ["min" if name in COSTS else direction(name, [run]) for name in names]
        return {name: known[name] for name in names}, ways

    def _ended(self, line: Line) -> None:
        self.records.add(line)
        if self.study:
            self.study.ended(line, self.records.lines, self.asked)
        self.board.ended(line)

    def summary(self) -> int:
        """Say what came of the sweep; returns its exit code."""
        lines = self.records.lines
        self.board.summary()
        if self.stopped:
            return Stopped.exit_code
        return 1 if any(line["exit"] for line in lines.values()) else 0

    def close(self) -> None:
        """Let go of the sweep's files."""
        self.records.close()
        self.board.close()
        if self.study:
            self.study.close()

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Start no more trials; a second Ctrl-C ends everything."""
        if self.stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped = True
        if self.opening:
            raise Stopped("stopped before training began; nothing was lost")


def _full(name: str) -> str:
    return name if name.startswith("valid/") or name in COSTS else f"valid/{name}"


def _apart(how: str, settings: Mapping[str, Any]) -> bool:
    """Whether all trials are known before any of them ends, and run in this process."""
    return how != "tpe" and settings["pruner"] == "none" and settings["slots"] == 1 and not external()


def _check(how: str, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for settings of a sweep that its checked types do not rule out."""
    metrics = settings["metrics"]
    must(
        settings["slots"] == 1 or not external(),
        "sweep.slots",
        "1 where somebody else has started the processes",
        settings["slots"],
    )
    must(settings["together"] in ("auto", True, False), "sweep.together", "auto, true or false", settings["together"])
    must(
        settings["together"] is not True or _apart(how, settings),
        "sweep.together",
        "auto or false with sweep=tpe, a pruner, several slots or processes that somebody else has started",
        settings["together"],
    )
    must(settings["on_fail"] in ("continue", "stop"), "sweep.on_fail", "continue or stop", settings["on_fail"])
    must(
        settings["pruner"] in ("none", *PRUNERS),
        "sweep.pruner",
        "none, median or halving",
        settings["pruner"],
    )
    listed = isinstance(metrics, list) and bool(metrics) and all(isinstance(name, str) for name in metrics)
    several = isinstance(metrics, list) and len(metrics) > 1
    must(not several or settings["pruner"] == "none", "sweep.pruner", "none with several metrics", settings["pruner"])
    if settings["pruner"] != "none" and not find_spec("optuna"):
        raise ConfigError(f"sweep.pruner={settings['pruner']} needs pip install 'dltrain[sweep]'")
    must(metrics is None or listed, "sweep.metrics", "a list of metrics such as [valid/accuracy], or null", metrics)


def _essence(config: Config) -> Config:
    """Of multirun.yaml, what trials that have ended must share with those to come."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    hydra = config["hydra"]
    params = [f"{key}={value}" for key, value in (hydra["sweeper"].get("params") or {}).items()]
    swept = Space(OverridesParser.create().parse_overrides([*params, *hydra["overrides"]["task"]])).typed
    kept = {key: value for key, value in config.items() if key not in ("hydra", *WHERE, *ELSEWHERE)}
    kept["data"] = {key: value for key, value in kept["data"].items() if not key.endswith("path")}
    kept["sweep"] = {key: value for key, value in config["sweep"].items() if key not in FREE}
    kept["sweep"]["by"] = hydra["runtime"]["choices"]["sweep"]
    return kept | {f"{key} of the search": value for key, value in swept.items()}


@contextlib.contextmanager
def searched(words: list[str]) -> Iterator[tuple[Search, list[str]]]:
    """The search that some words ask for, and what Hydra is told; what is wrong with any trial is said first.

    The name names the sweep: its folder lists the trials, which are ordinary runs.
    """
    if others := [word for word in words if word.startswith("hydra/sweeper=") and word != "hydra/sweeper=dltrain"]:
        raise ConfigError(f"{others[0]} must be left out: sweep=grid, random or tpe says how")
    variants, _ = compose.trials(words)
    config = _first_of(variants[:VARIANTS])
    words = [word for word in words if not word.startswith("name=")]
    what = sorted(word for word in words if not word.startswith(tuple(f"sweep.{key}=" for key in FREE)))
    name = config["name"] or hashlib.sha256("\n".join(what).encode()).hexdigest()[:8]
    folder = Path(config["output_root"]).expanduser() / "sweeps" / name
    search = Search(folder, config, words)
    ours = [f"{key}=dltrain" for key in ("hydra/sweeper", "hydra/launcher") if not _given(key, words)]
    before = {number: signal.signal(number, search.stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield search, [*words, *ours, f"hydra.sweep.dir={_quoted(str(folder))}"]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        search.close()


def _given(key: str, words: list[str]) -> bool:
    return any(word.partition("=")[0] == key for word in words)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", r"\'") + "'"


def _first_of(variants: Iterable[list[str]]) -> Config:
    """The first config of several; raises ConfigError with the problems of all, each once."""
    first: Config | None = None
    found: dict[str, None] = {}
    for words in variants:
        try:
            config = compose.compose(words)
            first = first or config
            if (source := config["model"]["from_run"]) in ("last", "best"):  # of which each trial may be one
                found[f"model.from_run must be the name or the folder of a run in a sweep, got {source}"] = None
            found |= dict.fromkeys(_no_metrics(config))
        except ConfigError as error:
            found |= dict.fromkeys(str(error).splitlines())
    if found or first is None:
        raise ConfigError("\n".join(found))
    return first


def _no_metrics(config: Config) -> Iterator[str]:
    """A sentence for each metric that no task of ours has; what a user's own measures is known once it is built."""
    if not str(config["task"]["_target_"]).startswith("dltrain."):
        return
    if (monitor := config["monitor"]) and _base(monitor) not in KNOWN:
        yield f"monitor must be a metric, got {monitor}{nearest(monitor.removeprefix('valid/'), KNOWN)}"
    metrics = config["sweep"]["metrics"]
    for name in map(str, metrics if isinstance(metrics, list) else []):
        if name not in COSTS and _base(name) not in KNOWN:
            known = [*COSTS, *map(_full, KNOWN)]
            yield f"sweep.metrics must be metrics of the trials, got {_full(name)}{nearest(_full(name), known)}"


def _base(name: str) -> str:
    """A metric without its split and the column that it is of."""
    return name.removeprefix("valid/").partition("/")[0]
