"""How far training is, as one line."""

import time
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.segment import Segment

from dltrain.report.text import clock, number, shown


class Progress:
    """How far training is, as one line that fits any width."""

    def __init__(
        self, epochs: int = 0, steps_per_epoch: int = 1, rows: int = 0, step: int = 0, monitor: str = ""
    ) -> None:
        self.epochs, self.steps_per_epoch, self.rows = epochs, max(steps_per_epoch, 1), rows
        self.first = self.step = step
        self.monitor = monitor
        self.began = self.evaluated = time.monotonic()
        self.loss: float | None = None
        self.headline = ""  # the first metric of a record, shown beside the monitored one
        self.values: dict[str, float | None] = {}
        self.best: float | None = None
        self.rate: float | None = None

    def take(self, record: dict[str, Any], improved: bool, now: float) -> None:
        """Take over what an evaluation found."""
        found = {key.removeprefix("valid/"): value for key, value in record.items() if key.startswith("valid/")}
        self.headline = next((name for name in found if name != "loss"), "loss")
        self.monitor = self.monitor or self.headline
        self.evaluated = now
        self.step = record.get("step", self.step)
        self.values = {name: found[name] for name in dict.fromkeys([self.headline, self.monitor]) if name in found}
        self.best = found.get(self.monitor) if improved else self.best
        self.rate = record.get("rows_per_second")

    def line(self, record: dict[str, Any], improved: bool) -> str:
        """Write an evaluation as one plain line."""
        epochs, rest = divmod(record.get("step", 0), self.steps_per_epoch)
        at = f"{epochs + rest / self.steps_per_epoch:.2f}" if rest else str(record.get("epoch", epochs))
        parts = [f"epoch {at:>{len(str(self.epochs))}}/{self.epochs}"]
        said = {"train/loss": "train loss", "valid/loss": "valid loss"}
        said |= {f"valid/{name}": name for name in self.values if name != "loss"}
        parts += [f"{name} {number(record[key])}" for key, name in said.items() if key in record]
        if self.rate:
            parts.append(f"{self.rate:,.0f} rows/s")
        return "  ".join(parts + ["*best"] * improved)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw what fits: the epoch first, then time left, loss, metric, speed and best, and a bar in what remains."""
        done, total = self.step, self.epochs * self.steps_per_epoch
        spent, fresh = time.monotonic() - self.began, done - self.first
        rate = self.rate or (fresh / spent * self.rows / self.steps_per_epoch if spent > 0 else 0)
        measured = [f"{'valid loss' if k == 'loss' else shown(k)} {number(v)}" for k, v in self.values.items()]
        wanted = [  # in the order of the line, each with the order in which it is given room
            (1, f"loss {number(self.loss)}" if self.loss is not None else ""),
            (2, measured[0] if measured else ""),
            (3, measured[1] if len(measured) > 1 else ""),
            (5, f"best {number(self.best)}" if self.best is not None else ""),
            (4, f"{rate:,.0f} rows/s" if rate else ""),
            (0, f"{clock(spent / fresh * (total - done))} left" if fresh > 0 else ""),
        ]
        head = f"epoch {min(done // self.steps_per_epoch + 1, self.epochs)}/{self.epochs}"
        width = options.max_width - 1  # a full last column makes some terminals wrap
        room = width - cell_len(head) - 5  # two spaces, and the shortest bar
        kept: dict[int, str] = {}
        for priority, text in sorted(wanted):
            if text and cell_len(text) + 2 <= room:
                kept[priority] = text
                room -= cell_len(text) + 2
        yield Segment(head + "  ")
        yield ProgressBar(total=total, completed=done, width=max(3, min(3 + room, 40)))
        yield Segment("".join(f"  {kept[priority]}" for priority, text in wanted if priority in kept))
