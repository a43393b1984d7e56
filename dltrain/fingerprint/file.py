"""The file `fingerprint` of a run: a head of 32 bytes, then 32 for every move of every step; numpy alone reads it."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dltrain.errors import ConfigError, DiskError

NAME, FORMAT = "fingerprint", 1
HEAD = "dltrain fingerprint format {}\n"
MOVE = np.dtype(  # checksums are sums or hashes modulo 2^32; all that is known when the move begins, then what it did
    [
        ("step", "<u4"),  # from 0
        ("move", "u1"),  # of the step, from 0
        ("player", "u1"),  # in the order of the task's players
        ("together", "<u2"),  # how many runs took this step as one
        ("rows", "<u4"),  # checksum of the rows of the batch, in their order
        ("weights", "<u4"),  # every 64 steps, else 0: checksum of the bits of all players' weights before the step
        ("settings", "<u4"),  # checksum of all numbers of the player's optimizer, lr among them
        ("lr", "<f4"),  # the largest of the player's parameter groups
        ("loss", "<f4"),  # mean over the batch; with float16 over the scale of the loss
        ("gradient", "<u4"),  # checksum of the bits of the gradients that the optimizer saw
    ]
)


def head(version: int = FORMAT) -> bytes:
    """The first bytes of a file."""
    return HEAD.format(version).encode().ljust(MOVE.itemsize, b"\0")


class File:
    """The file of a run that trains; raises DiskError when it cannot be written."""

    def __init__(self, folder: Path, step: int) -> None:
        """Open it without what an interrupted training wrote there from `step` on."""
        self.path = folder / NAME
        try:
            moves = _moves(self.path) if self.path.is_file() else None
            if moves is None:
                self.path.write_bytes(head())
            else:
                late = np.flatnonzero(moves["step"] >= step)
                os.truncate(self.path, MOVE.itemsize * (1 + int(late[0] if len(late) else len(moves))))
        except OSError as error:
            raise self._refused(error) from error

    def append(self, moves: Sequence[np.ndarray], sync: bool) -> None:
        """Write moves, and wait until the disk has all that was written if asked to."""
        if not moves and not sync:
            return
        try:
            with self.path.open("ab") as file:
                file.writelines(some.tobytes() for some in moves)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> DiskError:
        return DiskError(f"cannot write {self.path}: {error.strerror or error}")


def read(folder: Path) -> np.ndarray | None:
    """The moves of a run, (moves,) of MOVE; None if it has no fingerprint that can be read.

    Raises ConfigError for one that a newer dltrain has written.
    """
    path = folder / NAME
    return _moves(path) if path.is_file() else None


def _moves(path: Path) -> np.ndarray | None:
    content = path.read_bytes()
    first, rest = content[: MOVE.itemsize], content[MOVE.itemsize :]
    if first != head():
        words = first.rstrip(b"\0\n").decode(errors="replace").split()
        if first.startswith(HEAD.format("").strip().encode()) and words[-1].isdigit() and int(words[-1]) > FORMAT:
            raise ConfigError(f"{path} must be of format {FORMAT} or older, got {words[-1]}; update dltrain")
        return None
    return np.frombuffer(rest[: len(rest) // MOVE.itemsize * MOVE.itemsize], MOVE)  # the last one may be half written
