"""The task of Hydra's jobs: train one trial, an ordinary run named by its settings, and say what came of it."""

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dltrain import compose
from dltrain.errors import Stopped, UserError, tell
from dltrain.run import Config, Run

if TYPE_CHECKING:
    from hydra.conf import HydraConf
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
        config: Config = {}
        try:
            config, words = self.told(cfg, HydraConfig.get())
            with self.opening():
                code, message = train(config, words, names.append), ""
        except UserError as error:
            code, message = tell(error), str(error)
        except Exception as error:
            traceback.print_exc()
            code, message = 1, f"{type(error).__name__}: {error}"
        return self.outcome(config, code, message, names[-1] if names else None)

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """Within, a signal ends what begins here, also while nobody listens who could save it."""
        if not self.search:
            yield
            return
        self.search.opening = True
        try:
            if self.search.stopped:
                raise Stopped("stopped before training began; nothing was lost")
            yield
        finally:
            self.search.opening = False

    def told(self, cfg: "DictConfig", hydra: "DictConfig | HydraConf") -> tuple[Config, list[str]]:
        """The config of a trial's run, and what was typed; raises ConfigError if something is wrong with it.

        One that is to be pruned knows of which search it is a trial. A search has a report of its own.
        """
        config = compose.checked(cfg, compose.chosen(hydra))
        of = None if config["sweep"]["pruner"] == "none" else str(self.folder.absolute())
        own = {"name": None, "sweep": {**config["sweep"], "of": of}, "report": config["report"] is True}
        return {**config, **own}, typed(self.literal, hydra.overrides.task)

    def outcome(self, config: Config, code: int, message: str, name: str | None) -> Outcome:
        """What became of a trial, whose run has a name if it was opened."""
        result = Run(Path(config["output_root"]).expanduser() / name).result() if name else {}
        return Outcome(code, message, name, result)


def typed(literal: Sequence[str], words: Sequence[str]) -> list[str]:
    """What one would type to train a trial alone."""
    own = (word for word in words if word != compose.TYPED and word.partition("=")[0].partition(".")[0] != "sweep")
    return [*literal, *own]
