"""One rank of a run: read the config, build the parts, train, write the bundle and the result."""

import contextlib
import signal
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any

from dltrain import bundle, transfer
from dltrain.assembly import assemble
from dltrain.build import Builder
from dltrain.checkpoint import Checkpoints
from dltrain.course import alone
from dltrain.data import stored
from dltrain.data.rows import Data, Rows
from dltrain.distributed import Single
from dltrain.errors import ConfigError, NonFinite, Stopped, UserError
from dltrain.evaluate import assess, named
from dltrain.faults import point
from dltrain.loggers import Loggers
from dltrain.loggers.jsonl import JSONL
from dltrain.pruning import Pruning
from dltrain.report.terminal import Terminal
from dltrain.run import Config, Run
from dltrain.sampler import Sampler
from dltrain.settings import Settings, Transfer
from dltrain.tasks.task import Task
from dltrain.train import Training


class Signals:
    """SIGTERM and the first SIGINT ask training to save and stop; before training they end it, a second SIGINT too."""

    def __init__(self) -> None:
        self.asked = self.training = False

    def __enter__(self) -> "Signals":
        self.before = {number: signal.signal(number, self._arrived) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        if not self.training:
            raise Stopped("stopped before training began; nothing was lost")


def work(run: Run, name: str, config: Config, terminal: Terminal, last_step: int | None = None) -> Config:
    """Train a run as one rank and return its result; its folder gets `name` once everything was built."""
    settings, builder = parts(config)
    with Signals() as signals, builder.part("trainer")() as trainer:
        data = read(run, builder, trainer)
        made = build(run, config, terminal, settings, builder, trainer, data, last_step)
        made.begin(name, signals)
        return alone(made.course())


def parts(config: Config) -> tuple[Settings, Builder]:
    """The settings of a run, and what builds its parts."""
    settings = Settings(**{f.name: config[f.name] for f in fields(Settings)})
    builder = Builder(config, tuple(settings.trust))
    builder.handed |= {"exact": settings.exact, "precision": settings.precision}
    return settings, builder


def read(run: Run, builder: Builder, trainer: Single) -> Data:
    """The rows of a run, prepared."""
    point("data")
    builder.handed["pipeline"] = builder.parts("pipeline")
    load: Callable[[], Data] = builder.part("data")().load
    return trainer.share(load, stored.store, stored.mapped, run.folder / ".rows")


@dataclass
class Work:
    """A run between its folder and its result: everything has been built."""

    run: Run
    config: Config
    terminal: Terminal
    data: Data
    training: Training
    loggers: Loggers
    sampler: Sampler
    builder: Builder
    result: Config  # what is known of it before training

    def begin(self, name: str, signals: Signals) -> None:
        """Give the folder its name, and tell training whom to tell."""
        run, training, terminal = self.run, self.training, self.terminal
        _publish(run, name, self.data, training, self.loggers)
        self.loggers.start(run.folder, self.config, training.position.step)
        training.step.fingerprint.start(run.folder, training.position.step, self.data.train["row"])
        _listen(
            training, terminal, self.loggers, signals, lambda: _sample(self.sampler, training, run.folder, terminal)
        )

    def course(self) -> Generator[object, None, Config]:
        """Train to the end, and say in result.json how it came, whatever the end is; returns what that says."""
        training, result, leads = self.training, self.result, self.training.trainer.rank == 0
        try:
            _prune(self.run, self.config, training)
            point("train")
            yield from training.course()
            self.terminal.close()
            pruned = training.position.pruned
            result |= _behind(training) if pruned else conclude(self.run, self.config, training, self.data)
            training.checkpoints.wait()
        except BaseException as error:
            self._failed(error)
            raise
        if leads:
            self.run.write("result.json", result)
        self.loggers.finish(result)
        point("finished")
        return result

    def _failed(self, error: BaseException) -> None:
        """Say in result.json what ended training."""
        self.terminal.close()
        training = self.training
        if isinstance(error, NonFinite) and (why := training.step.health.suspicion):
            training.warn(why)
        status = "stopped" if isinstance(error, Stopped | KeyboardInterrupt | GeneratorExit) else "failed"
        ended = {"status": status, "epochs": training.position.epoch, "reason": str(error) or type(error).__name__}
        self.result |= ended
        with contextlib.suppress(OSError, UserError):  # what ended the run is more important
            if training.trainer.rank == 0:
                self.run.write("result.json", self.result)
            self.loggers.finish(self.result)
            if isinstance(error, Exception):  # who interrupts twice does not wait
                training.checkpoints.wait()
        if isinstance(error, Stopped):
            training.trainer.barrier()  # no rank goes before rank 0 has saved


def build(
    run: Run,
    config: Config,
    terminal: Terminal,
    settings: Settings,
    builder: Builder,
    trainer: Single,
    data: Data,
    last_step: int | None = None,
) -> Work:
    """Build all that a run needs, and take up its checkpoint, if there is one."""
    terminal.data(data.description)
    for warning in data.warnings:
        terminal.warn(warning)
    point("build")
    made = [JSONL(), *(make() for make in builder.parts("logger").values())] if trainer.rank == 0 else []
    loggers = Loggers(made, terminal.warn)
    builder.handed["train"] = data.train
    trainer.seed(settings.seed)
    task = _begun(run, builder, data, terminal)
    sampler = Sampler(task, data.preparation, trainer, settings.sample_every)
    checkpoints = Checkpoints(run.folder / "checkpoints", terminal.warn, writes=trainer.rank == 0)
    training = assemble(settings, builder, trainer, data, task, checkpoints)
    training.last_step = last_step
    for text in _unused(builder, run.words()):
        terminal.warn(text)
    point("restore")
    restored = training.restore()
    if training.position.epoch > settings.epochs:
        raise ConfigError(f"epochs must be at least the {training.position.epoch} done, got {settings.epochs}")
    same = restored and restored.get("processes", 1) == trainer.world_size
    recorded = restored["threads"] if restored and same else None
    threads = trainer.set_threads(_multiply_adds(training) // trainer.world_size, recorded)
    if recorded not in (None, threads):
        terminal.warn(f"trainer.threads was {recorded} so far and is {threads} now: the last bits may differ")
    result = {"monitor": training.monitor, "direction": training.direction, "threads": threads}
    result |= {"device": str(trainer.device), "compile": trainer.compile, "deterministic": trainer.deterministic}
    result |= {"trainer": config["choices"]["trainer"], "processes": trainer.world_size, "together": 1}
    return Work(run, config, terminal, data, training, loggers, sampler, builder, result)


def _prune(run: Run, config: Config, training: Training) -> None:
    """A run that is a trial of a search may end early; any other goes on where it was pruned as a trial."""
    sweep, position = config.get("sweep") or {}, training.position
    if sweep.get("of"):
        training.prune = pruning = Pruning(sweep, run.folder, training.monitor)
        position.pruned = position.pruned and training.trainer.tell(pruning.again)
    else:
        position.pruned = False


def _behind(training: Training) -> Config:
    """What result.json says of a trial that was pruned."""
    assert isinstance(training.prune, Pruning)
    position = training.position
    told = {"status": "pruned", "epochs": position.epoch, "steps": position.step}
    return told | {"seconds": round(position.seconds, 3), **training.prune.said()}


def _begun(run: Run, builder: Builder, data: Data, terminal: Terminal) -> Task:
    """The task, with the weights that its network begins with; tells what it is made of."""
    task, told = bundle.make_task(builder, data.preparation), Transfer.of(builder.config["model"])
    transfer.begin(task, told, run.source, builder.config, data, builder.trust, terminal.warn)
    for network in task.children():
        terminal.network(network, data.preparation.shape_in)
    if told.freeze:
        learnt = sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad)
        frozen = sum(parameter.numel() for parameter in task.parameters()) - learnt
        terminal.note(f"{frozen:,} parameters are frozen, {learnt:,} learn")
    return task


def _multiply_adds(training: Training) -> int:
    parameters = sum(p.numel() for p in training.task.parameters())
    return parameters * max(end - start for start, end in training.bounds)


def _unused(builder: Builder, words: list[str]) -> list[str]:
    """What was chosen by hand and no part asked for."""
    chosen = {group: choice for group, _, choice in (word.partition("=") for word in words)}
    return [
        f"{group}={chosen[group]} changes nothing here: no part of this run asks for it"
        for group in ("activation", "loss")
        if group in chosen and group not in builder.asked
    ]


def _publish(run: Run, name: str, data: Data, training: Training, loggers: Loggers) -> None:
    """Everything was built: give the folder its name, and say that the run is under way."""
    point("publish")
    if training.trainer.rank == 0:
        run.write("data.json", data.description)
        run.write("result.json", {"status": "running", "epochs": training.position.epoch})
        run.publish(name)
    training.trainer.barrier()
    run.folder = run.folder.with_name(name)
    training.checkpoints.folder = run.folder / "checkpoints"
    training.checkpoints.before_save = loggers.sync


def _sample(sampler: Sampler, training: Training, folder: Path, terminal: Terminal) -> None:
    """Write samples if an epoch has ended after which they are due; the clock of training stands still."""
    epoch = training.position.epoch
    if training.position.batch or not sampler.due(epoch):
        return
    before = time.monotonic()
    try:
        path = sampler.write(training.task, training.players, folder, epoch)
        if path and epoch == sampler.every:
            terminal.note(f"samples of every {epoch} epochs are in {path.parent}")
    except ConfigError as error:
        sampler.cease()
        terminal.warn(f"no samples are written while this trains: {error}")
    training.started += time.monotonic() - before


def _listen(
    training: Training, terminal: Terminal, loggers: Loggers, signals: Signals, sample: Callable[[], None]
) -> None:
    """Tell the terminal and the loggers what training reports, and training when it shall stop."""
    said: set[str] = set()

    def warn(ailment: str) -> None:
        if (kind := ailment.partition(":")[0]) not in said:
            terminal.warn(ailment)
            said.add(kind)

    def report(record: dict[str, Any], improved: bool) -> None:
        loggers.log(record)
        terminal.epoch(record, improved)
        sample()

    position, epochs = training.position, training.settings.epochs
    if position.step:
        terminal.note(f"continuing at epoch {position.epoch}, step {position.step}")
    terminal.start(epochs, len(training.bounds), training.n_rows, position.epoch, position.step, training.monitor)
    training.report, training.tick, training.stop = report, terminal.tick, lambda: signals.asked
    training.warn = warn
    signals.training = True


def conclude(run: Run, config: Config, training: Training, data: Data) -> Config:
    """The best weights become the bundle, test rows are scored once, and the run is finished."""
    task, trainer, position = training.task, training.trainer, training.position
    point("conclude")
    best = training.restore_best()
    for player in training.players.values():
        player.decay = None  # the averaged weights are in place
    scores: dict[str, dict[str, float]] = {}
    drawn = ("test" if len(data.test["target"]) else "valid") if config["report"] else None
    for split in dict.fromkeys((task.concludes_on, "valid", "test")):
        rows, told = getattr(data, split), {"split": split} if split == drawn else None
        scores[split] = (
            _scores(task, training, rows, split == task.concludes_on, run, told) if len(rows["target"]) else {}
        )
    weights = {key: trainer.whole(trainer.local(value), value) for key, value in task.state_dict().items()}
    return {
        "status": "finished",
        "epochs": position.epoch,
        "steps": position.step,
        "best_epoch": (position.best_epoch if best else None) or position.epoch,
        "stopped_early": position.stopped_early,
        **scores,
        "rows_per_second": round(position.rows / max(position.seconds, 1e-9), 1),
        "seconds": round(position.seconds, 3),
        "health": training.step.health.verdict(),
        "weights_sha256": trainer.tell(lambda: bundle.save(run.folder / "model", config, weights, data.preparation)),
    }


def _scores(task: Task, training: Training, rows: Rows, tunes: bool, run: Run, told: Config | None) -> dict[str, float]:
    """Losses and metrics of a split, after the task has set what it sets by its rows; a report draws what is told."""
    losses, predictions = assess(task, training.players, rows, training.trainer)

    def scored() -> dict[str, float]:
        if tunes:
            task.conclude(predictions, rows)
        if told is not None:
            _keep(run, told, lambda: task.curves(predictions, rows), training.warn)
        return named("", losses) | task.metrics(predictions, rows)

    return training.trainer.tell(scored)


def _keep(run: Run, told: Config, curves: Callable[[], Config], warn: Callable[[str], None]) -> None:
    """Write curves.json, if there are any; what goes wrong with what is only looked at ends no run."""
    try:
        if found := curves():
            run.write("curves.json", told | found)
    except Exception as error:
        warn(f"curves.json: not written, the report is without curves ({type(error).__name__}: {error})")
