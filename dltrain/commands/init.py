"""Write a commented starter `configs/` here, for experiments and networks of your own."""

from dataclasses import dataclass
from pathlib import Path

from dltrain.commands import parse
from dltrain.errors import ConfigError

EXPERIMENT = """\
# @package _global_
# a run of my own: rename this file, and say here what it is
#
#   dltrain experiment=mine
#   dltrain experiment=mine epochs=5 --cfg job     shows every setting it uses
defaults:
  - override /data: csv
  - override /model: mlp
  - override /optimizer: adamw
  - override /regularizer: [early_stopping]

data:
  path: houses.csv        # the file, from the folder in which dltrain is called
  target: price           # the column to predict; a list for several
  # id: [number]          # columns that only name a row
  # ignore: [remarks]     # columns to leave out
  # columns:
  #   zip: category       # what a column is, where a number is not meant as one

model:
  hidden: [128, 64]
optimizer:
  lr: 1e-3

epochs: 100
batch_size: 64
"""
README = """\
# Configs of this project

dltrain finds this folder when it is called from the one above, or by `DLTRAIN_CONFIGS=<folder>`. Files here add to what
ships with dltrain and never replace it: a file that bears a shipped name is refused.

    experiment/mine.yaml     dltrain experiment=mine

## A network of your own

`mynets.py`, in the folder from which dltrain is called:

    from torch import nn

    class Wide(nn.Module):
        def __init__(self, shape_in, shape_out, activation, width=512):
            super().__init__()
            n_in, n_out = shape_in[0], shape_out[0]
            self.layers = nn.Sequential(nn.Linear(n_in, width), activation(), nn.Linear(width, n_out))

        def forward(self, x):
            return self.layers(x)

`configs/model/wide.yaml`, whose first comment is what `dltrain list models` says, and whose values give the settings
their types:

    # one very wide hidden layer
    _target_: mynets.Wide
    width: 512

Then, as code of your own runs only where you say so:

    dltrain model=wide model.width=1024 trust=mynets data=wine

Activations, losses, optimizers and the steps of a pipeline are added in the same way; `dltrain list` names the folders.
"""
FILES = {"experiment/mine.yaml": EXPERIMENT, "README.md": README}


@dataclass
class Options:
    """What `dltrain init` takes."""

    out: str = "configs"  # the folder to write


def run(words: list[str]) -> int:
    """Write the files; raises ConfigError if one of them is there already."""
    folder = Path(parse(words, Options).out).expanduser()
    if (folder / "config.yaml").exists():
        raise ConfigError(f"out must not hold the configs that ship with dltrain, got {folder}")
    there = [str(folder / name) for name in FILES if (folder / name).exists()]
    if there:
        raise ConfigError(f"out must be a folder without {' and '.join(FILES)}, got {folder}")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:  # never over what another process has just written
            file.write(text)
        print(f"wrote {path}")
    print(f"edit {folder / 'experiment/mine.yaml'}, then: dltrain experiment=mine")
    return 0
