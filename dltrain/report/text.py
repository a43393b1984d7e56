"""How values are written for a person: short, aligned, and never obeyed by a terminal."""

import sys

from rich.cells import cell_len, set_cell_size


def shown(text: object) -> str:
    """Text as one line that no terminal obeys: control characters are written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def number(value: float | None) -> str:
    """A measured number, short: 0.0412, 12.35, 41,000, 1.2e-05."""
    if value is None or not abs(value) <= sys.float_info.max:
        return "-"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e9):
        return f"{value:.2e}"
    return f"{value:,.4f}" if size < 10 else f"{value:,.2f}" if size < 1e4 else f"{value:,.0f}"


def clock(seconds: float) -> str:
    """A duration: 0:07, 12:30, 3:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def aligned(rows: list[list[str]], right: frozenset[int] = frozenset(), width: int | None = None) -> list[str]:
    """Align cells by the columns that they take on a screen, cutting what is longest to fit `width`."""
    widths = [max(cell_len(row[k]) for row in rows) for k in range(len(rows[0]))]
    while width and sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > 4:
        widths[widths.index(max(widths))] -= 1
    return [
        "  ".join(_cell(c, w, k in right) for k, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]


def _cell(text: str, width: int, right: bool) -> str:
    """Text in exactly `width` columns of a screen."""
    if cell_len(text) > width:
        return set_cell_size(text, max(width - 3, 1)) + "..."[: width - 1]
    pad = " " * (width - cell_len(text))
    return pad + text if right else text + pad
