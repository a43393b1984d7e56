"""A file of rows: CSV, TSV, gzipped or not, or Parquet."""

from collections.abc import Mapping, Sequence
from typing import Any

from dltrain.data import split as splits
from dltrain.data.files import File
from dltrain.data.rows import Data
from dltrain.data.table import Table, count_of, names, shape_of
from dltrain.errors import ConfigError, must


class CSV:
    """Rows of a file, split here, or into the files of `valid_path` and `test_path`.

    Raises ConfigError for a setting that does not fit the file, DataError for what is wrong in it.
    """

    def __init__(
        self,
        path: str | None = None,
        target: str | Sequence[str] | None = None,
        id: str | Sequence[str] = (),
        ignore: str | Sequence[str] = (),
        columns: Mapping[str, str] | None = None,
        shape: Sequence[int] | None = None,
        valid_path: str | None = None,
        test_path: str | None = None,
        split: Mapping[str, Any] | splits.Split | None = None,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        rows: int | None = None,
        weight: str | None = None,
        target_transform: str = "standard",
        pipeline: Mapping[str, Any] | None = None,
    ) -> None:
        if path is None:
            raise ConfigError("data.path must be a file, got null")
        must(not isinstance(weight, list | tuple), "data.weight", "one column", weight)
        self.paths: dict[str, str | None] = {"path": path, "valid_path": valid_path, "test_path": test_path}
        self.reading: dict[str, Any] = {"delimiter": delimiter, "encoding": encoding}
        self.rows = count_of("data.rows", rows, 2)
        self.table = Table(
            target=names("data.target", target),
            pipeline=pipeline or {},
            split=splits.from_config(split),
            id=names("data.id", id),
            ignore=names("data.ignore", ignore),
            columns={str(name): kind for name, kind in (columns or {}).items()},
            shape=shape_of(shape),
            weight=weight,
            target_transform=target_transform,
            reading=self.reading,
        )

    def load(self) -> Data:
        """Read, split, fit, and give three splits."""
        frames, hashes = {}, {}
        for setting, path in self.paths.items():
            if path is None:
                continue
            file = File(path, **self.reading, setting=f"data.{setting}")
            frame = file.read(self.rows if setting == "path" else None, text=self._text(file.columns))
            frames["train" if setting == "path" else setting.removesuffix("_path")] = (frame, file.name)
            hashes[setting] = file.sha256()
        first = frames["train"]
        content = {"source": first[1], "content_hash": hashes.pop("path"), "rows": len(first[0])}
        if hashes:
            content["other_hashes"] = hashes
        return self.table.data(frames, content)

    def _text(self, columns: list[str]) -> set[str]:
        """Columns to be read as they are written: 007 stays 007."""
        table = self.table
        typed = {name for name, kind in table.columns.items() if kind not in ("number",)}
        by = {table.split.by} if table.split.kind == "group" else set()
        return {name for name in columns if name in {*table.target, *table.id, *table.ignore, *typed, *by}}
