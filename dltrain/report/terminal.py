"""What a person watches while a network trains: tables before, one moving line during, a table after.

On a terminal the line moves about eight times a second. In a pipe or a file every evaluation is one plain line, nothing
is coloured and nothing is cut.
"""

import atexit
import contextlib
import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from dltrain.errors import Failed, tell
from dltrain.report.description import kind, many, source, splits_line, target_line, values
from dltrain.report.progress import Progress
from dltrain.report.text import aligned, number, shown

if TYPE_CHECKING:
    from torch import nn

REFRESH = 1 / 8  # seconds between two drawings of the moving line
COLUMNS = 15  # of the data, that are listed one by one
LAYERS = 24  # of the network, that are listed one by one
METRICS = 20  # of the result


class Terminal:
    """Tell one person how a run goes; `quiet` for ranks that do not speak.

    The worker calls opening, data, network, start, then tick every step and epoch every evaluation, then finish or
    stopped; warn and note at any time; close (or `with`) in every ending, so that the cursor is shown again.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or _console()
        self.quiet = quiet
        self.live: Live | None = None
        self.progress = Progress()
        self._due = math.inf

    def opening(self, text: str) -> None:
        """Say one line at once."""
        self._line(Text(shown(text), style="bold"))

    def note(self, text: str) -> None:
        """Say one line."""
        self._line(Text(shown(text)))

    def warn(self, text: str) -> None:
        """Say one line that should not be overlooked."""
        self._line(Text.assemble(("warning: ", "yellow"), shown(text)))

    def data(self, description: dict[str, Any]) -> None:
        """Show the columns, the target and the sizes of the splits (the content of data.json)."""
        if self.quiet:
            return
        columns = description.get("columns") or []
        listed = columns if len(columns) <= COLUMNS else columns[: COLUMNS - 3]
        rows = [[c.get("name", ""), kind(c), values(c)] for c in listed]
        self._line(Text(source(description)))
        if rows:
            self._table(["column", "kind", "values"], rows)
        if rest := columns[len(listed) :]:
            self._line(Text(f"  ... {many(kind(c) or 'column' for c in rest)} more"))
        for line in (target_line(description.get("target") or {}), splits_line(description)):
            if line:
                self._line(Text(line))

    def network(self, network: "nn.Module", shape_in: tuple[int, ...]) -> None:
        """Show layers, the shapes that leave them and their parameters.

        Weights, buffers, modes and random generators stay as they were. The network must not be wrapped by DDP or
        FSDP yet: one row is sent through it here, on this rank only.
        """
        if self.quiet:
            return
        from dltrain.report.network import layers

        found = layers(network, tuple(shape_in))
        if len(found) > LAYERS:
            found = [layer for layer in found if layer.parameters]
        rows = [[layer.name or "-", layer.kind, _shape(layer.shape), _count(layer.parameters)] for layer in found]
        if len(rows) > LAYERS:
            between = found[LAYERS - 4 : -3]
            total = sum(layer.parameters for layer in between)
            rows[LAYERS - 4 : -3] = [["...", f"{len(between)} more", "", _count(total)]]
        self._table(["layer", "kind", "output", "parameters"], rows, right=frozenset({3}))
        every = sum(p.numel() for p in network.parameters())
        learnt = sum(p.numel() for p in network.parameters() if p.requires_grad)
        frozen = "" if learnt == every else f", {learnt:,} of them trained"
        self._line(Text(f"{type(network).__name__} {_shape(tuple(shape_in))}: {every:,} parameters{frozen}"))

    def start(
        self, epochs: int, steps_per_epoch: int, rows: int, epoch: int = 0, step: int = 0, monitor: str = ""
    ) -> None:
        """Begin to show training, `rows` training rows an epoch, after an epoch or a step; `monitor` is a metric."""
        self.progress = Progress(epochs, steps_per_epoch, rows, step or epoch * steps_per_epoch, monitor)
        if self.quiet or not self.console.is_interactive:
            return
        self._due = time.monotonic() + REFRESH
        self.live = Live(self.progress, console=self.console, auto_refresh=False, transient=True)
        atexit.register(self.close)
        self._heard(self.live.start)

    def tick(self, step: int, loss: Callable[[], float]) -> None:
        """Take notice of a training step; `loss` is asked only when the line is drawn."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + REFRESH
        self.progress.step, self.progress.loss = step, loss()
        if self.live:
            self._heard(self.live.refresh)

    def epoch(self, record: dict[str, Any], improved: bool) -> None:
        """Show an evaluation (a record of metrics.jsonl), and whether it is the best so far."""
        if self.quiet:
            return
        now = time.monotonic()
        slow = now - self.progress.evaluated > 2  # epochs that a person can follow leave a line on a terminal, too
        self.progress.take(record, improved, now)
        if slow or not self.live:
            self._line(Text(shown(self.progress.line(record, improved))), whole=True)

    def finish(self, result: dict[str, Any], folder: str, predict_command: str) -> None:
        """Show what came of it (the content of result.json), where it is, and the command to type next."""
        self.close()
        valid, test = result.get("valid") or {}, result.get("test") or {}
        metrics = list(dict.fromkeys([*valid, *test]))
        rows = [[name, number(valid.get(name)), number(test.get(name))] for name in metrics[:METRICS]]
        if rows and not self.quiet:
            self._table(["metric", "valid", "test"], rows, right=frozenset({1, 2}))
        if len(metrics) > METRICS:
            self._line(Text(f"  ... {len(metrics) - METRICS:,} more in result.json"))
        if health := str(result.get("health") or ""):
            self._line(Text(shown(f"network {health}")))
        self._line(Text(_summary(result)))
        self._line(Text(f"run {shown(folder)}"), whole=True)
        self._line(Text("predict new rows with"))
        self._line(Text(shown(predict_command), style="bold"), whole=True)  # alone on its line: a click selects it

    def metrics(self, title: str, metrics: dict[str, float]) -> None:
        """Show the metrics of some rows under a title."""
        self.opening(title)
        self._table(
            ["metric", "value"], [[name, number(value)] for name, value in metrics.items()], right=frozenset({1})
        )

    def stopped(self, text: str) -> None:
        """Say why training ended early; leaves the terminal as it was."""
        self.close()
        self._line(Text(shown(text)), whole=True)

    def close(self) -> None:
        """Take the moving line away and show the cursor; again is harmless."""
        self._due = math.inf
        live, self.live = self.live, None
        if live:
            atexit.unregister(self.close)
            with contextlib.suppress(OSError, SystemExit):
                live.stop()

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def _line(self, text: Text, whole: bool = False) -> None:
        """Print a line, folded between words on a terminal unless it is to be copied `whole`."""
        if not self.quiet:
            soft = whole or not self.console.is_terminal
            self._heard(lambda: self.console.print(text, soft_wrap=soft, highlight=False))

    def _heard(self, speak: Callable[[], None]) -> None:
        """Speak; fall silent for good when nobody listens any more (`| head`, a closed window): training goes on."""
        try:
            speak()
        except (OSError, SystemExit):  # rich answers a broken pipe with SystemExit
            self.quiet = True
            self.close()

    def _table(self, header: list[str], rows: list[list[str]], right: frozenset[int] = frozenset()) -> None:
        """Print cells, the columns in `right` flush right; fitted to the width of a terminal, in full elsewhere."""
        width = self.console.width if self.console.is_terminal else None
        cells = [[shown(cell) for cell in row] for row in [header, *rows]]
        for k, line in enumerate(aligned(cells, right, width)):
            self._line(Text(line, style="" if k else "bold"))


def failure(error: Failed) -> int:
    """As `tell`, in a panel where a person looks."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        return tell(error)
    sys.stdout.flush()
    console.print(Panel(Text(shown("\n".join(error.lines()))), title="training failed", border_style="red"))
    return error.exit_code


def _console() -> Console:
    """The standard output, which may be no terminal although colours are forced, and may not know every letter."""
    if hasattr(sys.stdout, "reconfigure") and "utf" not in (sys.stdout.encoding or "").lower():
        sys.stdout.reconfigure(errors="backslashreplace")
    moves = sys.stdout.isatty() and not Console().is_dumb_terminal
    return Console(highlight=False, markup=False, emoji=False, force_interactive=moves)


def _count(n: int) -> str:
    return f"{n:,}" if n else ""


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "x".join(map(str, shape)) or "scalar"


def _summary(result: dict[str, Any]) -> str:
    """One line on how training went."""
    parts = [str(result.get("status", "finished"))]
    if result.get("epochs") is not None:
        parts.append(f"{result['epochs']:,} epochs")
    if result.get("best_epoch") is not None:
        parts.append(f"best at {result['best_epoch']}")
    if result.get("rows_per_second"):
        parts.append(f"{result['rows_per_second']:,.0f} rows/s")
    return ", ".join(parts)
