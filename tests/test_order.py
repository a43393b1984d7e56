"""Order and seeds are functions of where a run stands, and batches and shards cut them without a gap."""

import numpy as np
import pytest
import torch

from dltrain.order import batch_bounds, epoch_order, noise_seed, shard_bounds


def test_every_epoch_visits_every_row_once() -> None:
    for epoch in range(3):
        assert sorted(epoch_order(101, seed=7, epoch=epoch).tolist()) == list(range(101))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    orders = {(seed, epoch): tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(20) for epoch in range(20)}
    assert len(set(orders.values())) == 400, "neighbouring seeds share no epoch"
    torch.rand(5)  # whatever was drawn before
    assert orders[3, 4] == tuple(epoch_order(50, 3, 4).tolist())


def test_the_largest_seed_has_an_order() -> None:
    assert len(epoch_order(10, 2**63 - 1, 10**6)) == 10


def test_noise_seeds_differ_in_every_part() -> None:
    seeds = {noise_seed(a, b, c, d) for a in range(5) for b in range(30) for c in range(2) for d in range(8)}
    assert len(seeds) == 5 * 30 * 2 * 8
    assert all(0 <= seed < 2**63 for seed in seeds), "what torch takes"


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 64, 65])
@pytest.mark.parametrize("shards", [1, 2, 3, 4, 8])
def test_shards_are_those_of_array_split(rows: int, shards: int) -> None:
    pieces = [piece.tolist() for piece in np.array_split(np.arange(rows), shards)]
    assert [list(range(*bounds)) for bounds in shard_bounds(rows, shards)] == pieces


@pytest.mark.parametrize("rows", range(2, 40))
@pytest.mark.parametrize("shards", [2, 4, 8])
def test_a_shard_too_small_for_batch_statistics_joins_its_neighbour(rows: int, shards: int) -> None:
    bounds = shard_bounds(rows, shards, least=2)
    assert len(bounds) == shards
    assert [row for piece in bounds for row in range(*piece)] == list(range(rows))
    assert all(end - start != 1 for start, end in bounds)


@pytest.mark.parametrize("rows", [1, 5, 6, 7, 12, 13])
@pytest.mark.parametrize("size", [1, 3, 6, 100])
def test_batches_cover_an_epoch(rows: int, size: int) -> None:
    bounds = batch_bounds(rows, size)
    assert [row for batch in bounds for row in range(*batch)] == list(range(rows))
    assert {end - start for start, end in bounds[:-1]} <= {size}


def test_a_last_batch_too_small_joins_the_one_before() -> None:
    assert batch_bounds(13, 6, least=2) == [(0, 6), (6, 13)]
    assert batch_bounds(14, 6, least=2) == [(0, 6), (6, 12), (12, 14)]
