"""Prepared rows in a folder, for other processes of the same machine to map into their memory."""

import json
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from dltrain.data.encoding import Encoding
from dltrain.data.preparation import Preparation
from dltrain.data.rows import Data, Rows
from dltrain.data.target import Target

SPLITS = ("train", "valid", "test")


def store(data: Data, folder: Path) -> Data:
    """Write what `mapped` reads; gives the same data, its rows mapped instead of held."""
    for split in SPLITS:
        rows = {key: value.contiguous() for key, value in getattr(data, split).items()}
        save_file(rows, folder / f"{split}.safetensors")
    shape, target = list(data.preparation.shape_in), data.preparation.target.to_json()
    text = json.dumps({"shape_in": shape, "target": target, "description": data.description})
    (folder / "data.json").write_text(text, encoding="utf-8")
    return replace(data, train=_rows(folder, "train"), valid=_rows(folder, "valid"), test=_rows(folder, "test"))


def mapped(folder: Path) -> Data:
    """Rows, shapes and target; what was fitted to columns stays with the process that fitted it."""
    state = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    preparation = Preparation(
        Encoding([], {}), {}, tuple(state["shape_in"]), Target.from_json(state["target"]), id_columns=[]
    )
    rows = [_rows(folder, split) for split in SPLITS]
    return Data(rows[0], rows[1], rows[2], preparation, state["description"])


def _rows(folder: Path, split: str) -> Rows:
    return load_file(folder / f"{split}.safetensors")
