"""What a person sees of a sweep: on a terminal a table that moves, elsewhere a line or two for every trial."""

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from dltrain.report.text import aligned, clock, number, shown
from dltrain.sweeps.records import Line
from dltrain.sweeps.space import Job

NARROW = 60  # columns of a terminal, below which there are plain lines
SHOWN = 8  # trials that run, of perhaps hundreds side by side
FRONT = 5  # trials that are shown while others run, of those than which none is better


class Board:
    """Tells of the trials of a sweep as they begin and end."""

    def __init__(self, folder: Path, slots: int, lines: dict[int, Line]) -> None:
        self.folder, self.slots, self.lines, self.total = folder, slots, lines, 0
        self.running: dict[int, tuple[Job, float]] = {}
        self.began = self.latest = 0.0  # when we began to look, and when the last trial ended since then
        self.over = 0  # trials that ended since then
        self.live: Live | None = None

    def start(self, total: int) -> None:
        """Begin to tell of so many trials."""
        self.total, self.began = total, time.monotonic()
        if sys.stdout.isatty() and Console().width >= NARROW and not Console().is_dumb_terminal:
            theirs = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding)  # trials write elsewhere
            console = Console(file=theirs, highlight=False, markup=False, emoji=False)
            self.live = Live(get_renderable=self._table, console=console, refresh_per_second=2, transient=True)
            self.live.start()

    @property
    def logs(self) -> Path:
        """Where trials write what they would say, if they must not say it here."""
        return self.folder / "logs"

    @contextlib.contextmanager
    def aside(self, job: Job) -> Iterator[None]:
        """What this process says meanwhile goes to the trial's log, where the table moves."""
        if not self.live:
            yield
            return
        self.logs.mkdir(exist_ok=True)
        with (self.logs / f"trial-{job.number}.log").open("ab") as log, _redirected(log.fileno()):
            yield

    def begins(self, job: Job, words: Sequence[str]) -> None:
        """Say which trial begins."""
        self.running[job.number] = (job, time.monotonic())
        if not self.live:
            print(shown(f"trial {job.number} of {self.total}: {shlex.join(words)}"), flush=True)

    def ended(self, line: Line) -> None:
        """Say how a trial came out, and which is the best."""
        self.running.pop(line["trial"], None)
        self.over, self.latest = self.over + 1, time.monotonic()
        if line["exit"]:
            if self.live or self.slots > 1:
                log = self.logs / f"trial-{line['trial']}.log"
                where = f" ({log})" if log.is_file() else ""  # other launchers have their own
                self._say(f"trial {line['trial']} failed with exit code {line['exit']}: {_reason(line)}{where}")
        elif not self.live and (line["values"] or "same_as" in line):
            parts = [f"trial {line['trial']}: {_values(line)}"]
            parts += [f"as trial {line['same_as']}, of the same values"] if "same_as" in line else []
            parts += [f"best is trial {one['trial']}" for one in self.best()[:1]]
            parts += [f"about {clock(left)} left" for left in self._left()]
            self._say(", ".join(parts))

    def _say(self, text: str) -> None:
        if self.live:
            self.live.console.print(Text(shown(text)))
        else:
            print(shown(text), flush=True)

    def _left(self) -> list[float]:
        """Seconds until the end, if trials go on ending as they did; nothing before one has."""
        rest = self.total - len(self.lines)
        return [(self.latest - self.began) / self.over * rest] if self.over and rest > 0 else []

    def _table(self) -> Text:
        """The best trials and those that run, under a line that counts."""
        console, best, now = self.live and self.live.console, self.best()[:FRONT], time.monotonic()
        metrics = list(best[0]["values"]) if best else []
        keys = list(best[0]["params"]) if best else [key for job, _ in self.running.values() for key in job.params]
        rows = [["", "trial", *metrics, *dict.fromkeys(keys)]]
        for line in best:
            rows.append(["best", str(line["trial"]), *map(number, line["values"].values()), *line["params"].values()])
        for job, began in list(self.running.values())[:SHOWN]:
            since = [clock(now - began), *[""] * (len(metrics) - 1)] if metrics else []
            rows.append(["running", str(job.number), *since, *job.params.values()])
        if (more := len(self.running) - SHOWN) > 0:
            rows.append(["running", f"{more} more", *[""] * (len(rows[0]) - 2)])
        cells = [[shown(_short(cell)) for cell in row] for row in rows]
        left = "".join(f", about {clock(left)} left" for left in self._left())
        head = f"sweep {self.folder}: {_counted(self.lines.values(), self.total)}{left}"
        return Text("\n".join([shown(head), *aligned(cells, width=console.width if console else None)]))

    def best(self) -> list[Line]:
        """The trial that is better than all others; with several metrics those than which none is better in all."""
        known = [line for line in self.lines.values() if line.get("values") and line["status"] == "finished"]
        points = [
            [
                value if way == "min" else -value
                for value, way in zip(line["values"].values(), line["better"], strict=True)
            ]
            for line in known
        ]
        front = [
            line
            for line, point in zip(known, points, strict=True)
            if not any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
        ]
        return front[:1] if front and len(front[0]["values"]) == 1 else front

    def close(self) -> None:
        """Take the table away."""
        live, self.live = self.live, None
        if live:
            live.stop()
            live.console.file.close()

    def summary(self) -> None:
        """Say what is best, how many trials there were, and which failed."""
        self.close()
        best, failed = self.best(), [line for line in self.lines.values() if line["exit"]]
        if len(best) > 1:
            print(f"{len(best)} trials than which none is better in all:")
        for line in best:
            head = "  " if len(best) > 1 else "best "
            words = shlex.join(f"{key}={value}" for key, value in line["params"].items())
            print(shown(f"{head}trial {line['trial']}  {_values(line)}  {words}  {line['run']}"))
        print(f"sweep {self.folder}: {_counted(self.lines.values(), self.total)}")
        for line in failed:
            words = shlex.join(line["words"])
            print(shown(f"  trial {line['trial']}  exit {line['exit']}  {words}  {_reason(line)}".rstrip()))


def _counted(lines: Iterable[Line], total: int) -> str:
    """How many trials there were, and how many went wrong."""
    every = list(lines)
    pruned = sum(line.get("status") == "pruned" for line in every)
    failed = sum(bool(line["exit"]) for line in every)
    return f"{len(every)} of {total} trials, {failed} failed" + (f", {pruned} pruned" if pruned else "")


def _values(line: Line) -> str:
    told = "  ".join(f"{name} {number(value)}" for name, value in line["values"].items())
    return f"pruned at {told}" if line["status"] == "pruned" else told or str(line["status"])


def _reason(line: Line) -> str:
    return str(line["message"]).partition("\n")[0]


def _short(text: str) -> str:
    """A drawn number with as many digits as one looks at."""
    try:
        return f"{float(text):.4g}" if "." in text else text
    except ValueError:
        return text


@contextlib.contextmanager
def _redirected(descriptor: int) -> Iterator[None]:
    """Standard output and error of this process, and of those that it starts, go elsewhere."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(1), os.dup(2)]
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number_, saved in enumerate(before, 1):
            os.dup2(saved, number_)
            os.close(saved)
