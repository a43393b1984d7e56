"""Files of what a run makes: images as a grid, texts as they are, rows as a table."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def kind(rows: "pd.DataFrame", shape: tuple[int, ...]) -> str:
    """The end of the file's name: .txt for texts, .png for images, .csv for other rows."""
    return ".txt" if list(rows) == ["text"] else ".png" if len(shape) == 3 else ".csv"


def written(rows: "pd.DataFrame", shape: tuple[int, ...], stem: Path) -> Path:
    """Write samples beside what is there, replacing a file whole; returns its path. Raises OSError."""
    path = stem.with_name(stem.name + kind(rows, shape))
    part = path.with_name(f".{stem.name}{path.suffix}")
    if path.suffix == ".png":
        draw(rows, shape, part)
    else:
        part.write_text(texts(rows) if path.suffix == ".txt" else rows.to_csv(index=False), encoding="utf-8")
    part.replace(path)
    return path


def texts(rows: "pd.DataFrame") -> str:
    """Texts below each other."""
    return "\n\n".join(rows["text"]) + "\n"


def draw(rows: "pd.DataFrame", shape: tuple[int, ...], out: Path) -> None:
    """Images side by side, nearly a square of them, on one scale from the dark of all to the bright."""
    from PIL import Image

    pixels = rows.to_numpy(np.float64).reshape(len(rows), *shape)
    low, high = np.quantile(pixels, [0.02, 0.98])  # a few strays must not make the rest grey
    across = math.ceil(math.sqrt(len(rows)))
    down = math.ceil(len(rows) / across)
    tiles = np.zeros((down * across, shape[0], shape[1] + 1, shape[2] + 1))  # a dark line between them
    tiles[: len(rows), :, :-1, :-1] = ((pixels - low) / max(high - low, 1e-12)).clip(0, 1)
    grid = tiles.reshape(down, across, *tiles.shape[1:]).transpose(2, 0, 3, 1, 4)
    grid = grid.reshape(shape[0], down * tiles.shape[2], across * tiles.shape[3])[:, :-1, :-1]
    larger = max(1, 512 // max(grid.shape[1:]))
    colours = (grid if shape[0] == 3 else grid[:1].repeat(3, 0)).transpose(1, 2, 0)
    Image.fromarray((colours * 255).round().astype(np.uint8).repeat(larger, 0).repeat(larger, 1)).save(out)
