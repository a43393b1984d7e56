"""The training loop: course, epoch, after_step.

One loop for every task, network and trainer: a task yields losses, players step. All that happens once in a while
stands in `after_step`, in the order in which it happens: evaluate and record, save, stop.

The loop is a generator: it gives every stretch of steps after which something may be due, and every look at rows that
are not trained on, before it does them, if nobody has.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import torch

from dltrain.checkpoint import Checkpoints, State, of_this_run, pack, unpack
from dltrain.course import Epoch, Look, Rows, Stretch
from dltrain.distributed import Single
from dltrain.errors import Stopped
from dltrain.evaluate import assess, named
from dltrain.faults import point
from dltrain.order import batch_bounds
from dltrain.player import Player
from dltrain.position import Position
from dltrain.regularizers import EarlyStopping
from dltrain.settings import Every, Settings
from dltrain.step import Step
from dltrain.tasks.task import Task

Record = dict[str, float | int | None]


class Training:
    """A run in memory: a task, its players and rows, and where it stands."""

    def __init__(
        self,
        settings: Settings,
        trainer: Single,
        task: Task,
        players: dict[str, Player],
        rows: dict[str, Rows],
        step: Step,
        early_stopping: EarlyStopping,
        checkpoints: Checkpoints,
    ) -> None:
        self.settings, self.trainer, self.task, self.players = settings, trainer, task, players
        self.train_rows, self.valid_rows, self.step = rows["train"], rows["valid"], step
        self.early_stopping, self.checkpoints = early_stopping, checkpoints
        self.monitor, self.direction = task.monitor(settings.monitor)
        self.evaluate_every = Every.parse("evaluate_every", settings.evaluate_every, ("epochs", "steps"))
        self.n_rows = len(self.train_rows["target"])
        batch_size = self.n_rows if settings.batch_size == "all" else int(settings.batch_size)
        self.bounds = batch_bounds(self.n_rows, batch_size, step.least)
        self.position = Position()
        self.started = self.next_save = time.monotonic()
        self.pause = 0.05  # seconds between two agreements
        self.talked, self.next_talk = (0, self.started), 0  # step and time of the last agreement, step of the next
        self.last_step: int | None = None  # to stop at, for whoever wants no more than the beginning
        self.look: Look | None = None  # that was given out, until its evaluation is made
        # who is told: a record and whether it is the best; a step and its loss; what ails a network; whether to stop
        self.report: Callable[[Record, bool], None] = lambda record, improved: None
        self.tick: Callable[[int, Callable[[], float]], None] = lambda step, loss: None
        self.warn: Callable[[str], None] = lambda text: None
        self.stop: Callable[[], bool] = lambda: False
        self.prune: Callable[[Record], bool] = lambda record: False  # rank 0 alone is asked, after every evaluation

    def course(self) -> Iterator[Stretch | Look]:
        """Train until the last epoch, early stopping, a signal (Stopped) or a step that is not finite (NonFinite)."""
        position = self.position
        self.started = time.monotonic() - position.seconds
        self.next_save = time.monotonic() + self.trainer.save_every.number
        self.talked, self.next_talk = (position.step, time.monotonic()), position.step
        while position.epoch < self.settings.epochs and not position.ended and position.step != self.last_step:
            yield from self.epoch()
        self.save()
        if not self.checkpoints.patient:
            self.checkpoints.wait()

    def epoch(self) -> Iterator[Stretch | Look]:
        """Walk through the rest of the epoch under way."""
        position, epoch, first = self.position, Epoch(self), self.position.batch
        self.step.fingerprint.epoch(epoch.order, epoch.sizes, self.bounds[first][0])
        self.task.train()
        while True:
            start = position.batch - first
            stretch = Stretch(epoch, start, start + self._until_due(), position.step)
            yield stretch
            stretch.walk()
            position.batch += stretch.end - start
            position.step += stretch.end - start
            position.rows += sum(epoch.sizes[start : stretch.end])
            if ended := position.batch == len(self.bounds):
                position.epoch, position.batch = position.epoch + 1, 0
                for player in self.players.values():
                    player.end_epoch()
            if self._evaluates(ended) and len(self.valid_rows["target"]):
                self.look = Look(self.valid_rows)
                yield self.look
            self.after_step(ended)
            if ended or position.ended or position.step == self.last_step:
                return

    def _until_due(self) -> int:
        """The number of steps until something may be due, 1 at least."""
        position = self.position
        steps = [len(self.bounds) - position.batch, self.next_talk - position.step]
        steps += [] if self.last_step is None else [self.last_step - position.step]
        for every in (self.evaluate_every, self.trainer.save_every):
            steps += [every.number - position.step % every.number] if every.unit == "steps" else []
        return max(1, min(steps))

    def _evaluates(self, ended: bool) -> bool:
        """Whether an evaluation is due after the last step; the last epoch ends with one."""
        return self._due(self.evaluate_every, ended) or (ended and self.position.epoch == self.settings.epochs)

    def after_step(self, ended: bool) -> None:
        """Everything that happens once in a while."""
        position, improved = self.position, False
        self.tick(position.step, self._running_loss)
        evaluated = self._evaluates(ended)
        if evaluated or ended:
            improved = self.record(evaluated)
        stop, due = self._agreed(ended)
        due = stop or due or self._due(self.trainer.save_every, ended)
        if improved or due:
            self.save(due)
        if stop:
            self.checkpoints.wait()
            raise Stopped(f"stopped at epoch {position.epoch}, step {position.step}, and saved; run again to continue")

    def _due(self, every: Every, ended: bool) -> bool:
        if every.unit == "epochs":
            return ended and self.position.epoch % every.number == 0
        return every.unit == "steps" and self.position.step % every.number == 0

    def _agreed(self, ended: bool) -> tuple[bool, bool]:
        """Whether to stop, and whether it is time to save: what ranks must agree on, asked every `pause`."""
        step, now = self.position.step, time.monotonic()
        if step < self.next_talk and not ended:
            return False, False
        late = self.trainer.save_every.unit == "s" and now >= self.next_save
        pace = (now - self.talked[1]) / max(1, step - self.talked[0])
        stop, due, pace = self.trainer.agree([float(self.stop()), float(late), pace])
        steps = max(1, min(1024, int(self.pause / max(pace, 1e-9))))
        steps = 2 ** (steps.bit_length() - 1)
        self.next_talk, self.talked = (step // steps + 1) * steps, (step, now)  # at the same steps in runs side by side
        return bool(stop), bool(due)

    def _running_loss(self) -> float:
        return sum(self.step.mean_losses().values())

    def record(self, evaluated: bool) -> bool:
        """Tell what was learnt since the last record, with validation metrics if due; True if they are the best."""
        position, improved = self.position, False
        self.step.finite.check(position.step)
        position.seconds = time.monotonic() - self.started
        record: Record = {"step": position.step, "epoch": position.epoch, "time": round(position.seconds, 3)}
        record["lr"] = next(iter(self.players.values())).lr
        record |= named("train/", self.step.mean_losses()) | self.step.health.taken()
        if evaluated and len(self.valid_rows["target"]):
            metrics = self.evaluate(self.valid_rows)
            record |= {f"valid/{name}": value for name, value in metrics.items()}
            improved = self.judge(metrics.get(self.monitor))
        position.seconds = time.monotonic() - self.started
        rows, seconds = position.rows - position.recorded_rows, position.seconds - position.recorded_seconds
        record["rows_per_second"] = round(rows / max(seconds, 1e-9), 1)
        position.recorded_rows, position.recorded_seconds = position.rows, position.seconds
        self.step.losses.clear()
        if not self.checkpoints.patient:
            self.step.fingerprint.write()
        self.report(record, improved)
        if evaluated and position.epoch < self.settings.epochs:
            position.pruned = self.trainer.tell(lambda: self.prune(record))
        if ailment := self.step.health.ailment:
            self.warn(ailment)
        return improved

    def evaluate(self, rows: Rows) -> dict[str, float]:
        """Losses and metrics of rows that are not trained on."""
        point("evaluate")
        look, self.look = self.look, None
        if look is not None and look.metrics is not None:
            return look.metrics
        losses, predictions = assess(self.task, self.players, rows, self.trainer)
        truth = {key: values.cpu() for key, values in rows.items()}
        metrics = self.trainer.tell(lambda: named("", losses) | self.task.metrics(predictions, truth))
        point("evaluated")
        return metrics

    def judge(self, value: float | None) -> bool:
        """Compare the monitored metric with the best so far; move a plateau scheduler; ask early stopping."""
        position = self.position
        improved = value is not None and self.early_stopping.improved(value, position.best_value, self.direction)
        if improved:
            position.best_step, position.best_epoch, position.best_value = position.step, position.epoch, value
        position.since_best = 0 if improved else position.since_best + 1
        for player in self.players.values():
            player.evaluated(value)
        position.stopped_early = self.early_stopping.should_stop(position.since_best)
        return improved

    def save(self, due: bool = True) -> None:
        """Write a checkpoint of this position; a state that a non-finite step might have touched is never kept.

        One that is not `due` is of the best state so far, which may wait.
        """
        position = self.position
        self.step.finite.check(position.step)
        position.seconds = time.monotonic() - self.started
        position.losses = {name: [float(v) for v in sums] for name, sums in self.step.losses.items()}
        tensors, state = pack(self.task, self.players, self.trainer)
        state |= {"position": asdict(position), "shards": self.step.shards, "threads": torch.get_num_threads()}
        state |= {"processes": self.trainer.world_size, "scaler": self.step.finite.state()}
        state["health"] = self.step.health.state()
        if due or not self.checkpoints.patient:
            self.step.fingerprint.write(sync=True)
        self.checkpoints.save(position.step, tensors, state, position.best_step, due)
        if due or not self.checkpoints.patient:
            self.next_save = time.monotonic() + self.trainer.save_every.number

    def restore(self) -> State | None:
        """Take up the newest checkpoint that verifies and return its state; None if there is none."""
        found = self.checkpoints.newest() if self.trainer.rank == 0 else None
        step = self.trainer.tell(lambda: found and found[1]["position"]["step"])
        if step is None:
            return None
        tensors, state = found or self.checkpoints.read(step)
        unpack(self.task, self.players, self.trainer, tensors, state)
        with of_this_run():
            self.position = Position.of(state, len(self.bounds))
            self.step.load_losses(self.position.losses)
            self.step.finite.load(state["scaler"])
            self.step.health.load(state["health"])
        return state

    def restore_best(self) -> bool:
        """Load the weights of the best evaluation (averaged, if an average is kept); False if they cannot be read."""
        best = self.position.best_step
        if not self.checkpoints.patient:
            self.checkpoints.wait()
        self.trainer.barrier()  # rank 0 writes them
        for player in self.players.values():
            player.use_average()
        if best is None or best == self.position.step:
            return True
        point("best")
        return self.checkpoints.load_weights(best, self.task, self.trainer)
