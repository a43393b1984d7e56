"""What a person sees of a sweep: a line or two for every trial, and at the end what came of all."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from dltrain.report.text import number, shown
from dltrain.sweeps.records import Line
from dltrain.sweeps.space import Job


class Board:
    """Tells of the trials of a sweep as they begin and end."""

    def __init__(self, folder: Path, total: int, lines: dict[int, Line]) -> None:
        self.folder, self.total, self.lines = folder, total, lines

    def begins(self, job: Job, words: Sequence[str]) -> None:
        print(shown(f"trial {job.number} of {self.total}: {shlex.join(words)}"), flush=True)

    def ended(self, line: Line) -> None:
        """Say how a trial came out, and which is the best."""
        if line["values"] or "same_as" in line:
            best = self.best()
            parts = [f"trial {line['trial']}: {_values(line)}"]
            parts += [f"as trial {line['same_as']}, of the same values"] if "same_as" in line else []
            parts += [f"best is trial {one['trial']}" for one in best[:1]]
            print(shown(", ".join(parts)), flush=True)

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
        one = front and len(front[0]["values"]) == 1
        return front[:1] if one else front

    def summary(self) -> None:
        """Say what is best, how many trials there were, and which failed."""
        lines = self.lines.values()
        failed = [line for line in lines if line["exit"]]
        best = self.best()
        if len(best) > 1:
            print(f"{len(best)} trials than which none is better in all:")
        for line in best:
            words = shlex.join(f"{key}={value}" for key, value in line["params"].items())
            head = "  " if len(best) > 1 else "best "
            print(shown(f"{head}trial {line['trial']}  {_values(line)}  {words}  {line['run']}"))
        pruned = sum(line.get("status") == "pruned" for line in lines)
        more = f", {pruned} pruned" if pruned else ""
        print(f"sweep {self.folder}: {len(lines)} of {self.total} trials, {len(failed)} failed{more}")
        for line in failed:
            reason = line["message"].partition("\n")[0]
            print(
                shown(f"  trial {line['trial']}  exit {line['exit']}  {shlex.join(line['words'])}  {reason}".rstrip())
            )


def _values(line: Line) -> str:
    return "  ".join(f"{name} {number(value)}" for name, value in line["values"].items()) or str(line["status"])
