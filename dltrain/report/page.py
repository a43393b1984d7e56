"""A page that a browser shows without a network and without scripts: a headline, a sentence, sections of blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dltrain.report.drawing import apart
from dltrain.report.text import shown

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass
class Figure:
    """A picture with a title, what it shows in words, and the names of its colours, as (number of colour, name)."""

    title: str
    text: str
    svg: str
    keys: Sequence[tuple[int, str]] = ()
    wide: bool = False
    block: ClassVar[str] = "figure"


@dataclass
class Cell:
    """A cell of a table: a link, or shaded by how much there is in it, from 0 to 1."""

    text: str
    href: str = ""
    shade: float = 0.0


@dataclass
class Table:
    """Rows under a header; the columns in `right` hold numbers, the first of each row names it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    title: str = ""
    right: frozenset[int] = frozenset()
    folded: bool = False
    block: ClassVar[str] = "table"

    def cells(self) -> list[list[Cell]]:
        """Rows of cells, each a single line of letters that can be shown."""
        told = [[cell if isinstance(cell, Cell) else Cell(str(cell)) for cell in row] for row in self.rows]
        return [[Cell(shown(cell.text), cell.href, cell.shade) for cell in row] for row in told]


@dataclass
class Code:
    """Lines as they are typed or written; `folded` away until somebody asks."""

    text: str
    title: str = ""
    folded: bool = False
    block: ClassVar[str] = "code"


@dataclass
class Picture:
    """An image of pixels, as a data: address."""

    title: str
    address: str
    block: ClassVar[str] = "picture"


Block = Figure | Table | Code | Picture


@dataclass
class Section:
    """A title, some sentences, and blocks."""

    title: str
    blocks: Sequence[Block] = ()
    text: str = ""


@dataclass
class Page:
    """A whole page: `facts` are the few numbers that count, by name."""

    title: str
    lead: str
    facts: Sequence[tuple[str, str]] = ()
    sections: list[Section] = field(default_factory=list)

    def html(self) -> str:
        """One file: everything is in it, and what is not ours in it is text, whatever it says."""
        return _template().render(page=self).encode("utf-8", "replace").decode()


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    source = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = shown
    environment.filters["apart"] = lambda svg, name: Markup(apart(svg, name))  # which matplotlib has escaped
    return environment.from_string(source)
