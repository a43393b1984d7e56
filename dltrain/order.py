"""Order and seeds are functions of (seed, epoch, step, shard, row): resuming restores a position, not a history."""

import hashlib

import torch
from torch import Tensor

EPOCH_STRIDE = 1_000_003  # a prime: seeds of neighbouring runs share no epoch order
ROW_STRIDE = 0x9E3779B97F4A7C15 - 2**64  # 2^64 over the golden ratio, as 64 signed bits


def epoch_order(n_rows: int, seed: int, epoch: int) -> Tensor:
    """The order in which epoch `epoch` visits the rows: (n_rows,) int64."""
    generator = torch.Generator().manual_seed((seed * EPOCH_STRIDE + epoch) % 2**63)
    return torch.randperm(n_rows, generator=generator)


def noise_seed(seed: int, step: int, move: int, shard: int) -> int:
    """The seed of everything drawn by one move of one shard of one step."""
    return hashed(seed, step, move, shard)


def row_seeds(rows: Tensor, seed: int, epoch: int) -> Tensor:
    """The seeds of what is drawn for each row in an epoch, whatever batch and shard it stands in: int64, as `rows`."""
    return rows * ROW_STRIDE + hashed(seed, epoch)  # wraps around


def hashed(*numbers: int) -> int:
    """A number below 2^63 from whole numbers."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def shard_bounds(n_rows: int, shards: int, least: int = 1) -> list[tuple[int, int]]:
    """The `shards` equal pieces [start, end) of a batch, as `tensor_split` cuts them.

    A piece of fewer than `least` rows joins its neighbour (batch statistics need two) and leaves an empty piece behind.
    """
    size, rest = divmod(n_rows, shards)
    bounds, start = [], 0
    for shard in range(shards):
        end = start + size + (shard < rest)
        bounds.append((start, end))
        start = end
    if 0 < size < least or (size == 0 and least > 1):
        whole = max(1, n_rows // least)
        bounds = shard_bounds(n_rows, whole) + [(n_rows, n_rows)] * (shards - whole)
    return bounds


def batch_bounds(n_rows: int, batch_size: int, least: int = 1) -> list[tuple[int, int]]:
    """The batches [start, end) of an epoch's order; a last batch of fewer than `least` rows joins the one before."""
    bounds = [(start, min(start + batch_size, n_rows)) for start in range(0, n_rows, batch_size)]
    if len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] < least:
        bounds[-2:] = [(bounds[-2][0], n_rows)]
    return bounds
