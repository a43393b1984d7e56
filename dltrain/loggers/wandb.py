"""Weights & Biases: settings, curves and final metrics of a run, in its folder until they are sent."""

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any, Literal

from dltrain.errors import ConfigError, must
from dltrain.lines import read_lines
from dltrain.loggers import Logger, Record, final, numbers


class WandB(Logger):
    """Write `wandb` in the run's folder, which `wandb sync` sends, or send at once with `mode=online`.

    A run that goes on is the same run of W&B: online the server says which step is next; offline all is written anew,
    as what W&B held in memory when training was killed is lost. Raises ConfigError when the extra is absent;
    https://docs.wandb.ai/ref/python/init.
    """

    def __init__(
        self, mode: Literal["offline", "online"] = "offline", project: str = "dltrain", entity: str | None = None
    ) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError("logger=wandb needs pip install 'dltrain[wandb]'")
        must(mode in ("offline", "online"), "logger.wandb.mode", "offline or online", mode)
        self.mode: Literal["offline", "online"] = mode
        self.project, self.entity = project, entity
        self.run: Any = None  # a wandb.Run

    def start(self, folder: Path, config: dict[str, Any], step: int) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        before = sorted(folder.glob("wandb/*run-*-*"))
        number = before[-1].name.rpartition("-")[2] if before else None
        if self.mode == "offline":
            for segment in folder.glob("wandb/offline-run-*"):
                shutil.rmtree(segment, ignore_errors=True)  # W&B may still be closing it
        quiet = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_save_requirements=False,
        )
        self.run = wandb.init(
            id=number,
            resume="allow" if self.mode == "online" else None,
            mode=self.mode,
            dir=str(folder),
            project=self.project,
            entity=self.entity,
            name=folder.name,
            config=config,
            settings=quiet,
            reinit="create_new",
        )
        for record in read_lines(folder / "metrics.jsonl"):
            self.log(record)

    def log(self, record: Record) -> None:
        if record["step"] >= self.run.step:  # else it was sent before training was interrupted
            self.run.log(numbers(record), step=record["step"])

    def finish(self, result: dict[str, Any]) -> None:
        self.run.summary.update(final(result) | {key: result[key] for key in ("status", "reason") if key in result})
        self.run.finish(exit_code=int(result["status"] not in ("finished", "pruned")))
