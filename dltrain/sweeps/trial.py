"""The task of Hydra's jobs: train one trial, an ordinary run named by its settings, and say what came of it."""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dltrain import compose
from dltrain.errors import UserError, tell
from dltrain.run import Run

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dltrain.sweeps.search import Search


@dataclass
class Outcome:
    """How a trial came to its end."""

    exit: int
    message: str = ""  # why, if it went wrong
    run: str | None = None  # the name of its folder
    result: dict[str, Any] = field(default_factory=dict)  # what its result.json says


@dataclass
class Trial:
    """Trains what a job's config says; it is sent to other processes, and leaves there what it cannot take along."""

    folder: Path  # of the sweep
    literal: list[str]  # words whose values are literal text
    search: "Search | None" = None  # in the process of the sweep alone

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "search": None}

    def __call__(self, cfg: "DictConfig") -> Outcome:
        """Run one trial. What ends it is in what is returned: an exception or SystemExit would end the sweep."""
        from hydra.core.hydra_config import HydraConfig

        from dltrain.commands.train import train

        names: list[str] = []
        root = Path()
        try:
            config = compose.checked(cfg, compose.chosen(HydraConfig.get()))
            root = Path(config["output_root"]).expanduser()
            own = {"name": None, "sweep": self._told(config["sweep"])}
            code = train({**config, **own}, typed(self.literal, HydraConfig.get().overrides.task), names.append)
            message = ""
        except UserError as error:
            code, message = tell(error), str(error)
        except Exception as error:
            traceback.print_exc()
            code, message = 1, f"{type(error).__name__}: {error}"
        run = names[-1] if names else None
        return Outcome(code, message, run, Run(root / run).result() if run else {})

    def _told(self, sweep: Mapping[str, Any]) -> dict[str, Any]:
        """The sweep's settings as a run has them: one that is to be pruned knows of which search it is a trial."""
        return {**sweep, "of": None if sweep["pruner"] == "none" else str(self.folder.absolute())}


def typed(literal: Sequence[str], words: Sequence[str]) -> list[str]:
    """What one would type to train a trial alone."""
    own = (word for word in words if word != compose.TYPED and word.partition("=")[0].partition(".")[0] != "sweep")
    return [*literal, *own]
