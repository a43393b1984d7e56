"""The rows of finished runs, read again as each of them read them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dltrain.build import Builder
from dltrain.data.rows import Data, Rows
from dltrain.data.several import Several, beside
from dltrain.run import Config


@dataclass
class Views:
    """The data of several runs, once for each way in which they prepare it; `of` says which of them a run has."""

    each: list[Data]
    of: list[int]

    @classmethod
    def of_runs(cls, configs: Sequence[Config], trust: tuple[str, ...]) -> "Views":
        """Read the data of runs by their configs; raises what reading raises."""
        ways = [json.dumps([config["data"], config["pipeline"]]) for config in configs]  # the order of steps matters
        first = {way: configs[ways.index(way)] for way in ways}
        return cls([_load(config, trust) for config in first.values()], [[*first].index(way) for way in ways])

    def some(self, kept: Sequence[int]) -> "Views":
        """Those of some of the runs; the first of them reads the first view."""
        mine = list(dict.fromkeys(self.of[run] for run in kept))
        return Views([self.each[view] for view in mine], [mine.index(self.of[run]) for run in kept])

    def rows(self, split: str) -> Rows:
        """The rows of a split; features are those of all views, one after the other if there are several."""
        return beside([getattr(data, split) for data in self.each])

    @cached_property
    def preparation(self) -> Any:
        """What new rows need to become such features."""
        prepared = [data.preparation for data in self.each]
        return prepared[0] if len(prepared) == 1 else Several(prepared)


def _load(config: Config, trust: tuple[str, ...]) -> Data:
    builder = Builder(config, trust)
    builder.handed["pipeline"] = builder.parts("pipeline")
    data: Data = builder.part("data")().load()
    return data
