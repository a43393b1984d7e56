"""Train the first steps of a run on every trainer and number of processes, and compare the weights bit by bit."""

import itertools
import json
import math
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dltrain.commands import parse_known
from dltrain.commands.help import heading
from dltrain.compose import compose
from dltrain.errors import ConfigError, DataError, DiskError, Stopped, UserError, must
from dltrain.launch import external, processes, start
from dltrain.opening import opened, sourced
from dltrain.report.terminal import Terminal
from dltrain.report.text import number, shown
from dltrain.run import Config, find

if TYPE_CHECKING:
    from torch import Tensor

WORLDS, TRAINERS = (1, 2, 4), ("single", "ddp", "fsdp")
CLOSE = 1e-5  # what exact=false may differ by, elsewhere or on another number of processes
USERS = (DataError.exit_code, DiskError.exit_code)  # wherever it is trained
STOPPED = "stopped before all was compared; nothing of it is kept"
LAST_LINES = 10  # of what a failure said
LINE = "{:<10}  {:>9}  {:>5}  {:>9}  {:>23}  {:>8}  {}"
HEADER = ("trainer", "processes", "steps", "steps/s", "numbers that differ", "by", "again")


@dataclass
class Options:
    """What `dltrain verify` takes; other words are settings, as for train."""

    run: str | None = None  # a run whose settings are verified; left out: those that are typed
    world: list[int] = field(default_factory=list)  # numbers of processes (default 1,2,4)
    trainer: list[str] = field(default_factory=list)  # where to train (default single,ddp,fsdp)
    steps: int = 20  # steps that each of them trains
    trust: list[str] = field(default_factory=list)  # modules of your own that the parts come from
    output_root: str = "outputs"  # where runs are looked for


@dataclass
class Row:
    """One trainer with one number of processes, and what came of it."""

    trainer: str
    world: int
    config: Config
    steps: int = 0
    speed: float = 0.0  # steps a second
    weights: "dict[str, Tensor]" = field(default_factory=dict)
    differ: int | None = None  # numbers of which any bit is another than in the first row
    by: float = 0.0  # relative difference of the tensor that differs most
    again: int | None = None  # numbers that came out otherwise the second time
    reason: str = ""  # why there are none
    unfit: bool = False  # the settings do not go with this trainer
    log: list[str] = field(default_factory=list)  # the last that it said

    @property
    def place(self) -> str:
        return f"{self.trainer} on {self.world} process{'es' * (self.world > 1)}"


def run(words: list[str]) -> int:
    """Show how far trainers and numbers of processes agree; 0 if they do as is promised, else 1.

    With exact=true all weights must be the same bits. Without, the same bits if the same is done twice, and elsewhere
    tensors whose difference has a norm of at most 1e-5 of their own. (A single number may be further off: an optimizer
    that divides by the size of a gradient, as Adam does, also moves by one that is nothing but rounding.)
    """
    options, overrides = parse_known(words, Options)
    must(options.steps >= 1, "steps", "a whole number of at least 1", options.steps)
    must(min(options.world, default=1) >= 1, "world", "numbers of processes, as in world=1,2", options.world)
    if external():
        raise ConfigError("verify must be started as one process: it starts the others itself")
    rows = _plan(options, overrides)
    config = rows[0].config
    print(
        f"data={config['choices']['data']} model={config['choices']['model']}: {options.steps} steps,"
        f" shards={config['shards']} exact={str(config['exact']).lower()}"
    )
    if not options.world and max(row.world for row in rows) == 1:
        print(f"no more than one process fits shards={config['shards']}; shards={max(WORLDS)} would compare more")
    print(heading(LINE.format(*HEADER)), flush=True)
    with _stoppable(), tempfile.TemporaryDirectory(prefix="dltrain-verify-") as folder:
        _fill(rows, options, Path(folder))
    return _verdict([row for row in rows if not row.unfit], config["exact"])


# What is trained where


def _plan(options: Options, overrides: list[str]) -> list[Row]:
    """Every trainer and number of processes that go together; raises ConfigError for one that goes with no other."""
    for word in overrides:
        if word.lstrip("+").startswith("trainer.devices="):
            raise ConfigError(f"{word} must be written as world={word.partition('=')[2]}")
    configs = {name: sourced(config) for name, config in _configs(options, overrides).items()}
    batch = next(iter(configs.values()))["batch_size"]
    worlds = options.world or [world for world in WORLDS if batch == "all" or world <= batch]
    rows: list[Row] = []
    refused: dict[tuple[str, int], str] = {}
    for trainer, world in itertools.product(configs, dict.fromkeys(worlds)):
        config = configs[trainer]
        config = {**config, "shards": config["shards"] or math.lcm(*worlds), "trainer": _alone(config, world)}
        try:
            n = processes(config)
            must(n == world, "world", f"{n} with trainer={trainer}", world)
            rows.append(Row(trainer, world, config))
        except ConfigError as error:
            refused[trainer, world] = str(error)
    for typed in (*options.trainer, *options.world):
        if not any(typed in (row.trainer, row.world) for row in rows):  # the last reason: single takes no world but 1
            raise ConfigError([reason for place, reason in refused.items() if typed in place][-1])
    if not rows:
        raise ConfigError(next(iter(refused.values())))
    return rows


def _alone(config: Config, world: int) -> Config:
    """A trainer's settings for so many processes of this machine, none of which gets a second try."""
    ours = {"devices": world, "nodes": 1, "rdzv_endpoint": None, "max_restarts": 0}
    return config["trainer"] | {key: value for key, value in ours.items() if key in config["trainer"]}


def _configs(options: Options, overrides: list[str]) -> dict[str, Config]:
    """The config for each trainer: as `train` would compose it, or a run's with what is typed changed."""
    found = find(options.run, options.output_root).alone() if options.run else None
    stored = found.trusted(options.trust) if found else {}
    typed = [word for word in (found.words() if found else []) if not word.startswith(("trainer=", "trust="))]
    trust = [f"trust=[{','.join(options.trust)}]"] if options.trust else []
    names = list(dict.fromkeys(options.trainer or TRAINERS))
    foreign = _foreign(names, trust) if any(map(_setting, [*typed, *overrides])) else {}
    configs: dict[str, Config] = {}
    for name in names:
        words = [word for word in [*typed, *overrides] if _setting(word) not in foreign.get(name, ())]
        after = compose([*words, f"trainer={name}", *trust])
        if found:
            before = [word for word in words if word in typed]
            after = _changed(stored, compose([*before, f"trainer={name}", *trust]) if overrides else after, after)
        configs[name] = after
    return configs


def _foreign(names: list[str], trust: list[str]) -> dict[str, set[str]]:
    """The settings that a trainer does not have and another does."""
    own = {name: set(compose([f"trainer={name}", *trust])["trainer"]) for name in names}
    return {name: set().union(*own.values()) - own[name] for name in names}


def _setting(word: str) -> str:
    """The setting of a trainer that a word is about; nothing if it is about something else."""
    group, _, setting = word.lstrip("+~").partition("=")[0].partition(".")
    return setting if group == "trainer" else ""


def _changed(stored: Config, before: Config, after: Config) -> Config:
    """A run's config with what differs between two others."""
    choices = {group: choice for group, choice in after["choices"].items() if choice != before["choices"].get(group)}
    changed = {key: value for key, value in after.items() if value != before.get(key)}
    moved = {"trainer": after["trainer"], "trust": after["trust"]}
    choices = {**stored["choices"], **choices, "trainer": after["choices"]["trainer"]}
    return {**stored, **changed, **moved, "choices": choices}


# What comes of it


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM between two trainings ends the command in order, so that nothing is left behind."""

    def stop(*_: Any) -> None:
        raise Stopped(STOPPED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fill(rows: list[Row], options: Options, folder: Path) -> None:
    """Train every row and print it; raises the user's error if it has nothing to do with where it was trained."""
    twice = not rows[0].config["exact"] or len(rows) == 1
    for row in rows:
        good = [other for other in rows if other.steps]
        try:
            _train(row, options.steps, folder)
            if twice:
                again = Row(row.trainer, row.world, row.config)
                _train(again, options.steps, folder)
                row.again, _ = difference(row.weights, again.weights)
            if good:
                row.differ, row.by = difference(good[0].weights, row.weights)
        except UserError as error:
            if error.exit_code == Stopped.exit_code:
                raise Stopped(STOPPED) from None
            row.unfit = error.exit_code == ConfigError.exit_code
            if error.exit_code in USERS or (row.unfit and (options.trainer or not good)):
                raise
            row.reason, row.log = str(error), getattr(error, "log", [])
        except Exception as error:
            row.reason = f"raised {type(error).__name__}: {' '.join(str(error).split())}"
            row.log = traceback.format_exc().splitlines()[-LAST_LINES:]
        print(_shown(row), flush=True)
        if row is not (good or [row])[0]:
            row.weights = {}


def _train(row: Row, steps: int, folder: Path) -> None:
    """Train the first steps in a folder that goes again, and read the weights, the steps and the speed."""
    import torch
    from safetensors.torch import load_file

    mine = {"name": "verify", "output_root": str(folder), "fresh": False, "logger": {}, "sample_every": None}
    threads = torch.get_num_threads()
    with opened({**row.config, **mine}, [], row.world) as (run, name, config):
        try:
            start(run, name, config, Terminal(quiet=True), steps)
            newest = max((run.folder / "checkpoints").glob("step-*"))
            position = json.loads((newest / "state.json").read_text(encoding="utf-8"))["position"]
            row.weights = load_file(newest / "model.safetensors")
        finally:
            torch.set_num_threads(threads)  # a run in this process has set its own
            shutil.rmtree(run.folder, ignore_errors=True)
    row.steps, row.speed = position["step"], position["step"] / max(position["seconds"], 1e-9)


def difference(mine: "dict[str, Tensor]", other: "dict[str, Tensor]") -> tuple[int, float]:
    """How many numbers differ in any bit, and the norm of a tensor's difference over the tensor's norm, at most."""
    import torch

    if {key: t.shape for key, t in mine.items()} != {key: t.shape for key, t in other.items()}:
        return sum(tensor.numel() for tensor in mine.values()), math.inf
    differ, by = 0, 0.0
    for key, tensor in mine.items():
        a, b = (t.contiguous().view(-1, 1).view(torch.uint8) for t in (tensor, other[key]))
        unequal = int((a != b).any(1).sum())
        if unequal:
            a, b = tensor.double(), other[key].double()
            differ, by = differ + unequal, max(by, float((a - b).norm() / torch.maximum(a.norm(), b.norm())))
    return differ, by


def _shown(row: Row) -> str:
    place = f"{row.trainer:<10}  {row.world:>9}"
    if row.reason:
        return f"{place}  {'left out' if row.unfit else 'failed'}: {shown(row.reason)}"
    total = sum(tensor.numel() for tensor in row.weights.values())
    differ = "-" if row.differ is None else f"{row.differ:,} of {total:,}"
    by = "-" if row.differ is None else number(row.by) if row.by else "0"
    again = {None: "-", 0: "same"}.get(row.again, f"{row.again} differ")
    speed = f"{row.speed:,.1f}"
    return LINE.format(row.trainer, row.world, row.steps, speed, differ, by, again).rstrip()


def _verdict(rows: list[Row], exact: bool) -> int:
    """Say whether what is promised holds, and what does not; returns the exit code."""
    wrong = [f"{row.place} failed" for row in rows if row.reason]
    wrong += [f"{row.place} does not repeat itself" for row in rows if row.again]
    for row in rows:
        if row.differ and (exact or row.by > CLOSE):
            wrong.append(f"{row.place} is not {'the same' if exact else f'within {CLOSE:g}'}")
    if not wrong and all(row.differ is None and row.again is None for row in rows):
        wrong.append("nothing could be compared")
    sys.stdout.flush()
    for row in rows:
        print("\n".join(["", f"{row.place}:", *row.log] if row.log else []), end="\n" * bool(row.log), file=sys.stderr)
    if wrong:
        print(f"not verified: {', '.join(wrong)}")
        return 1
    furthest = max((row.by for row in rows), default=0.0)
    apart = "" if exact else f"; elsewhere {number(furthest) if furthest else 0} apart, at most {CLOSE:g} is promised"
    print(f"verified: the same bits {'everywhere' if exact else 'every time'}{apart}")
    return 0
