"""Files of rows: CSV, TSV and their like, gzipped or not, and Parquet; whole or in chunks.

Rows are counted from 1 in messages, the header excluded and blank lines skipped.
"""

import codecs
import csv
import gzip
import importlib.util
import io
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, cast

import numpy as np
import pandas as pd

from dltrain.data.content import file, file_sha256
from dltrain.errors import ConfigError, DataError, nearest

# What people write where there is no value. A cell of one of these is missing, whatever the kind of its column.
MISSING = ["", "NA", "N/A", "n/a", "na", "NaN", "nan", "NULL", "null", "None", "none", "<NA>", "#N/A", "?"]
DELIMITERS = {",": ",", ";": ";", "\t": "\t", "|": "|", "\\t": "\t", "tab": "\t", "comma": ",", "semicolon": ";"}
BLOCK = 1 << 23  # bytes scanned at a time


class File:
    """One file of rows and how it is written; raises DataError if it cannot be read as a table.

    `columns` are its names as they stand in the header (surrounding blanks off; a nameless one as pandas calls it).
    Cells of a word in `missing` are missing.
    """

    def __init__(
        self,
        path: str,
        delimiter: str | None = None,
        encoding: str = "utf-8",
        setting: str = "data.path",
        missing: Collection[str] = MISSING,
    ) -> None:
        self.missing = list(missing)
        self.stdin: IO[bytes] | None = None
        if path == "-":
            self.name = "standard input"
            if sys.stdin is None:  # closed by the shell
                raise DataError("standard input: it is closed")
            self.stdin = tempfile.TemporaryFile()  # noqa: SIM115 (until close)
            shutil.copyfileobj(sys.stdin.buffer, self.stdin)
            self.stdin.flush()  # it is read again by its number
            if not self.stdin.tell():
                raise DataError("standard input: the file is empty")
        else:
            self.path = file(setting, path)
            self.name = self.path.name
        self.encoding = known_encoding(encoding)
        self.parquet = self._head().startswith(b"PAR1")
        if self.parquet:
            if importlib.util.find_spec("pyarrow") is None:
                raise ConfigError(f"{setting}={path} needs pip install 'dltrain[parquet]'")
            self.columns = self._parquet().schema_arrow.names
        else:
            self._check_text()
            sample = self._sample()
            self.delimiter = known_delimiter(delimiter) if delimiter else sniff(sample)
            self.columns = self._header(sample)
        self._check_columns()

    def close(self) -> None:
        """Let go of the copy of standard input, if there is one."""
        if self.stdin is not None:
            self.stdin.close()

    def sha256(self) -> str:
        """Of the file's bytes."""
        return file_sha256(self.path)

    def read(self, rows: int | None = None, text: Collection[str] = (), skip: Collection[str] = ()) -> pd.DataFrame:
        """The whole table, or its first rows: columns in `text` as strings, others as pandas finds them."""
        wanted = [name for name in self.columns if name not in skip]
        if self.parquet:
            batches = self._parquet().read(columns=wanted).to_pandas(ignore_metadata=True)
            frame = batches if rows is None else batches.head(rows)
        else:
            self.scan()
            types = {name: "str" for name in wanted if name in text}
            with self.open() as stream:
                frame = pd.read_csv(stream, **self._options(types, wanted), nrows=rows, low_memory=False)
        if not len(frame):
            raise DataError(f"{self.name}: there is a header and no rows")
        return frame

    def chunks(self, rows: int, numbers: Collection[str], text: Collection[str]) -> Iterator[pd.DataFrame]:
        """The table in pieces of so many rows, of the named columns that it has; memory is bounded by a piece.

        Columns in `numbers` are parsed straight to float64; from the first piece where one cannot be, they come as
        strings, for whoever converts them to name the cell.
        """
        wanted = [name for name in self.columns if name in numbers or name in text]
        if self.parquet:
            for batch in self._parquet().iter_batches(batch_size=rows, columns=wanted):
                yield batch.to_pandas()
            return
        self.scan()
        if not wanted:  # nothing of it is known: one column still tells how many rows there are
            wanted = self.columns[:1]
        types = {name: "float64" if name in numbers else "str" for name in wanted}
        done = 0
        try:
            for chunk in self._pieces(rows, types, wanted, 0):
                yield chunk
                done += len(chunk)
        except ValueError:
            yield from self._pieces(rows, dict.fromkeys(wanted, "str"), wanted, done)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The bytes of the table, unzipped."""
        with ExitStack() as stack:
            if self.stdin is None:
                stream: IO[bytes] = stack.enter_context(self.path.open("rb"))
            else:
                stream = stack.enter_context(io.BufferedReader(io.FileIO(self.stdin.fileno(), closefd=False)))
                stream.seek(0)
            magic = stream.read(2)
            stream.seek(0)
            if magic == b"\x1f\x8b":
                stream = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=stream)))
            yield stream

    def scan(self) -> None:
        """Read all bytes once, fast; raises DataError at the first row too short, too long or not in the encoding."""
        ascii_like = not self.encoding.startswith(("utf-16", "utf-32"))
        try:
            if not ascii_like or self._suspicious():
                self._scan_rows()
        except (gzip.BadGzipFile, EOFError) as error:
            raise DataError(f"{self.name}: the gzip file is damaged or cut short") from error
        except UnicodeError as error:
            raise DataError(f"{self.name}: the file is not {self.encoding} (data.encoding)") from error

    def _pieces(self, rows: int, types: dict[str, str], wanted: list[str], start: int) -> Iterator[pd.DataFrame]:
        """Pieces from row `start` (a multiple of `rows`) on. Rows are not lines, so those before are parsed again."""
        try:
            with (
                self.open() as stream,
                pd.read_csv(stream, **self._options(types, wanted), chunksize=rows) as reader,
            ):
                for number, piece in enumerate(reader):
                    if number * rows >= start:
                        yield piece
        except pd.errors.ParserError as error:
            raise DataError(f"{self.name}: {' '.join(str(error).split())}") from error

    def _options(self, types: dict[str, str], wanted: list[str]) -> dict[str, Any]:
        return {
            "sep": self.delimiter,
            "header": 0,
            "names": self.columns,
            "usecols": wanted,
            "index_col": False,
            "dtype": types,
            "encoding": self.encoding,
            "keep_default_na": False,
            "na_values": self.missing,
            "skipinitialspace": True,
        }

    def _head(self) -> bytes:
        try:
            with self.open() as stream:
                return stream.read(1 << 16)
        except (gzip.BadGzipFile, EOFError) as error:
            raise DataError(f"{self.name}: the gzip file is damaged or cut short") from error

    def _parquet(self) -> Any:
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(self.stdin or self.path)
        except pyarrow.ArrowInvalid as error:
            raise DataError(f"{self.name}: not a whole Parquet file") from error

    def _check_text(self) -> None:
        head = self._head()
        if not head.strip():
            raise DataError(f"{self.name}: the file is empty")
        wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if wide and not self.encoding.startswith("utf-16"):
            raise DataError(f"{self.name}: the file is utf-16; set data.encoding=utf-16")
        if b"\0" in head and not self.encoding.startswith(("utf-16", "utf-32")):
            raise DataError(f"{self.name}: a binary file, not text; expected CSV, TSV, gzip of these, or Parquet")

    def _sample(self) -> list[str]:
        """The first lines as text."""
        with self.open() as stream:
            text = io.TextIOWrapper(stream, encoding=bom_aware(self.encoding), errors="replace", newline="")
            try:
                return [line for _, line in zip(range(50), text, strict=False)]
            except UnicodeError as error:  # without its byte order mark, UTF-16 is not even replaced
                raise DataError(f"{self.name}: the file is not {self.encoding} (data.encoding)") from error

    def _header(self, sample: list[str]) -> list[str]:
        reader = csv.reader(sample, delimiter=self.delimiter, skipinitialspace=True)
        header = next((row for row in reader if row), [])
        return [name.strip() or f"Unnamed: {position}" for position, name in enumerate(header)]

    def _check_columns(self) -> None:
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise DataError(f"{self.name}: two columns are called {', '.join(twice)}")

    def _suspicious(self) -> bool:
        """True if counting delimiters and quotes finds a line with another number of cells than the header.

        Quotes are followed by their parity, which is right for well-formed files; for others csv looks again.
        """
        decoder = codecs.getincrementaldecoder(bom_aware(self.encoding))()
        want, quoted, cells, length, lines = len(self.columns) - 1, 0, 0, 0, 0
        suspicious = False
        with self.open() as stream:
            while block := stream.read(BLOCK):
                try:
                    decoder.decode(block)
                except UnicodeDecodeError as error:
                    raise self._undecodable(block, error, lines) from error
                data = np.frombuffer(block, np.uint8)
                breaks = np.flatnonzero(data == 10)
                lines += len(breaks)
                if suspicious:
                    continue
                marks = np.flatnonzero(data == ord(self.delimiter))
                if quoted or b'"' in block:
                    parity = (np.cumsum(data == 34) + quoted) & 1
                    breaks, marks, quoted = breaks[parity[breaks] == 0], marks[parity[marks] == 0], int(parity[-1])
                if not len(breaks):
                    cells, length = cells + len(marks), length + len(data)
                    continue
                before = np.searchsorted(marks, breaks)
                counts = np.diff(before, prepend=0)
                counts[0] += cells
                lengths = np.diff(breaks, prepend=-1) - 1
                lengths[0] += length
                blank = (lengths == 0) | ((lengths == 1) & (data[breaks - 1] == 13))
                suspicious = bool(np.any((counts != want) & ~blank))
                cells, length = len(marks) - int(before[-1]), len(data) - 1 - int(breaks[-1])
        return suspicious or bool(length and cells != want) or bool(quoted)

    def _scan_rows(self) -> None:
        csv.field_size_limit(sys.maxsize)
        with self.open() as stream:
            text = io.TextIOWrapper(stream, encoding=bom_aware(self.encoding), newline="")
            reader = csv.reader(text, delimiter=self.delimiter, skipinitialspace=True)
            row = -1
            want = len(self.columns)
            for cells in reader:
                if not cells:
                    continue
                row += 1
                if len(cells) != want and not (len(cells) == 1 and not cells[0].strip()):
                    raise DataError(
                        f"{self.name} row {row}: expected {want} cells as in the header, got {len(cells)}"
                        f" (cells are separated by {self.delimiter!r})"
                    )

    def _undecodable(self, block: bytes, error: UnicodeDecodeError, lines: int) -> DataError:
        byte = error.object[error.start]
        row = lines + block.count(b"\n", 0, error.start)
        return DataError(
            f"{self.name} row {row}: byte 0x{byte:02x} is not {self.encoding};"
            " try data.encoding=latin-1 or data.encoding=cp1252"
        )


def sniff(lines: list[str]) -> str:
    """The delimiter that cuts the first lines into most cells, the same number in each; a comma if none does."""
    best, most = ",", 1
    for delimiter in (",", ";", "\t", "|"):
        counts = [len(row) for row in csv.reader(lines[:50], delimiter=delimiter, skipinitialspace=True) if row]
        same = counts.count(counts[0]) / len(counts) if counts else 0
        if counts and counts[0] > 1 and counts[0] * (1 if same > 0.9 else 0.1) > most:
            best, most = delimiter, counts[0]
    return best


def known_delimiter(delimiter: str) -> str:
    """One character; raises ConfigError."""
    found = DELIMITERS.get(delimiter, delimiter)
    if len(found) != 1 or found in '"\n\r' or not found.isascii():
        raise ConfigError(f"data.delimiter must be one character such as ',' ';' '|' or tab, got {delimiter!r}")
    return found


def known_encoding(encoding: str) -> str:
    """The normal name of an encoding Python knows; raises ConfigError."""
    try:
        "a".encode(encoding)  # there are codecs of no text, such as hex
        return codecs.lookup(encoding).name
    except (LookupError, UnicodeError) as error:
        names = ["utf-8", "latin-1", "cp1252", "utf-16", "shift_jis", "gb18030"]
        raise ConfigError(
            f"data.encoding must be an encoding Python knows, got {encoding}{nearest(encoding, names)}"
        ) from error


def bom_aware(encoding: str) -> str:
    """Excel begins a UTF-8 file with a byte order mark."""
    return "utf-8-sig" if encoding in ("utf-8", "utf-8-sig") else encoding


def nearest_column(name: str, columns: Collection[str]) -> str:
    """The tail of a sentence about a column that is not there."""
    return nearest(str(name), [str(column) for column in columns])
