"""TensorBoard: curves by step, hyperparameters and the metrics that came of them."""

import importlib.util
from pathlib import Path
from typing import Any

from dltrain.errors import ConfigError
from dltrain.loggers import Logger, Record, final, numbers
from dltrain.settings import leaves


class TensorBoard(Logger):
    """Write event files to `tensorboard` under the run's folder; raises ConfigError when the extra is absent.

    The folder must bear its final name: TensorBoard's writer opens its file anew, by path, at every flush.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError("logger=tensorboard needs pip install 'dltrain[tensorboard]'")
        self.writer: Any = None  # a torch.utils.tensorboard.SummaryWriter
        self.config: dict[str, Any] = {}
        self.step = 0

    def start(self, folder: Path, config: dict[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.step = step
        # whatever else there is, TensorBoard takes as text
        self.config = {
            key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in leaves(config)
        }
        # Readers drop what an earlier file holds from purge_step on: no point stands twice after a resume.
        self.writer = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=step + 1)

    def log(self, record: Record) -> None:
        assert self.writer is not None, "log() before start()"
        self.step = record["step"]
        for name, value in numbers(record).items():
            self.writer.add_scalar(name, value, self.step)

    def sync(self) -> None:
        assert self.writer is not None, "sync() before start()"
        self.writer.flush()

    def finish(self, result: dict[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        assert self.writer is not None, "finish() before start()"
        metrics = final(result)
        # SummaryWriter.add_hparams would make another folder, which TensorBoard shows as another run.
        for summary in hparams(self.config, metrics):
            self.writer.file_writer.add_summary(summary)
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, self.step)
        self.writer.add_text(
            "status", ": ".join(result[key] for key in ("status", "reason") if key in result), self.step
        )
        self.writer.close()
