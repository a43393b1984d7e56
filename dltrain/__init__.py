"""Train neural networks from a CSV and Hydra YAML: one command, one device or many, reproducible to the bit."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dltrain.bundle import Model

__version__ = "0.1.0"


def load(run: str) -> "Model":
    """Load a finished run by its folder (or a prefix of its name, `last` or `best`); see `dltrain.bundle.Model`."""
    from dltrain.bundle import Model
    from dltrain.run import find

    return Model.load(find(run).bundle)
