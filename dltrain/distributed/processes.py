"""Several processes that compute one run together: how they find each other, and what they tell each other."""

import contextlib
import functools
import itertools
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dltrain.distributed.single import Single
from dltrain.errors import ConfigError, Elsewhere, UserError, must, real
from dltrain.sums import Tree

JOIN = 20  # seconds in which all ranks must have found the first
BACKENDS = ("auto", "gloo", "nccl")
Made = TypeVar("Made")
Item = TypeVar("Item")


@functools.cache
def store() -> dist.Store:
    """What all ranks of this launch read and write; raises ConfigError if they do not find each other."""
    address, port, agent = (
        os.environ.get(n, "") for n in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")
    )
    must(port.isdecimal() and 0 < int(port) < 2**16, "MASTER_PORT", "a number from 1 to 65535", port)
    if agent == "True":  # torchrun holds it, and all ranks are there
        found = reached(address, int(port), "MASTER_ADDR and MASTER_PORT must be where torchrun listens")
        attempt = [os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT")]
        return dist.PrefixStore(" ".join(attempt), found)  # it may outlive this start
    if os.environ["RANK"] != "0":
        found = reached(address, int(port), "MASTER_ADDR and MASTER_PORT must be where rank 0 listens")
        found.add("joined", 1)
        return found
    _resolve(address, int(port), f"MASTER_ADDR must be the host of rank 0, got {address}")
    found, n = held(int(port), "MASTER_PORT"), int(os.environ["WORLD_SIZE"])
    if (came := counted(found, "joined", n - 1)) < n - 1:
        raise ConfigError(
            f"MASTER_ADDR and MASTER_PORT must be where rank 0 listens, got {address}:{port},"
            f" where {came} of {n - 1} other ranks came in {JOIN} seconds"
        )
    return found


def held(port: int, setting: str) -> dist.TCPStore:
    """A store that others can reach at a port of this machine; raises ConfigError if it is taken."""
    try:
        return dist.TCPStore(
            "localhost", port, None, True, timedelta(seconds=JOIN), wait_for_workers=False, multi_tenant=True
        )
    except dist.DistNetworkError as error:
        raise ConfigError(f"{setting} must be a free port of this machine, got {port}, which is taken") from error


def reached(address: str, port: int, must_be: str) -> dist.TCPStore:
    """The store at an address, which may yet have to start; raises ConfigError if there is none."""
    refused, until = f"{must_be}, got {address}:{port}", time.monotonic() + JOIN
    _resolve(address, port, refused)
    while True:  # torch would say much about every try
        try:
            socket.create_connection((address, port), timeout=2).close()
            break
        except OSError as error:
            if time.monotonic() > until:
                raise ConfigError(f"{refused}, where nobody answered for {JOIN} seconds") from error
            time.sleep(0.2)
    found: list[dist.TCPStore] = []

    def reach() -> None:
        with contextlib.suppress(dist.DistError, RuntimeError):
            found.append(dist.TCPStore(address, port, None, False, timedelta(seconds=JOIN), wait_for_workers=False))

    waiting = threading.Thread(target=reach, daemon=True)  # it waits without end for the answer of a stranger
    waiting.start()
    waiting.join(max(2, until - time.monotonic()))
    if not found:
        raise ConfigError(f"{refused}, where another program listens")
    return found[0]


def _resolve(address: str, port: int, refused: str) -> None:
    try:
        socket.getaddrinfo(address, port)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{refused}, which names no host that is known here") from error


def counted(store: dist.Store, key: str, n: int, seconds: float = JOIN) -> int:
    """How many have added themselves to a key, as soon as it is n or time is up."""
    until = time.monotonic() + seconds
    while (came := store.add(key, 0)) < n and time.monotonic() < until:
        time.sleep(0.02)
    return came


def lost(error: BaseException) -> bool:
    """True of an error that says no more than that another rank has gone or does not answer."""
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and ("gloo/transport" in text or "NCCL" in text or "Gloo " in text)
    )


class Processes(Single):
    """One rank of several, one device each; `devices`, `nodes`, `rdzv_endpoint`, `max_restarts` are for dltrain.launch.

    Raises ConfigError for a backend that is unknown or not there.
    """

    joined = 0  # runs that this process has been a rank of

    def __init__(
        self,
        devices: int | str = "auto",
        nodes: int = 1,
        rdzv_endpoint: str | None = None,
        max_restarts: int = 3,
        timeout: float = 600,
        backend: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        save_every: int | str = "30s",
        compile: bool = False,
        activation_checkpointing: bool = False,
        deterministic: bool = True,
        exact: bool = False,
        precision: str = "float32",
    ) -> None:
        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        self.node = int(os.environ.get("GROUP_RANK", 0))
        if device in ("auto", "cuda") and torch.cuda.is_available():
            device = f"cuda:{self.local_rank}"
        device = "cpu" if device == "auto" else device
        super().__init__(
            device, threads, save_every, compile, activation_checkpointing, deterministic, exact, precision
        )
        must(real(timeout) and timeout > 0, "trainer.timeout", "a number of seconds above 0", timeout)
        must(backend in BACKENDS, "trainer.backend", f"one of {', '.join(BACKENDS)}", backend)
        if backend == "nccl" and (self.device.type != "cuda" or not dist.is_nccl_available()):
            raise ConfigError("trainer.backend must be gloo or auto without a GPU, got nccl")
        self.timeout = timedelta(seconds=timeout)
        on_gpu = self.device.type == "cuda"
        fast = "nccl" if backend == "auto" and dist.is_nccl_available() else "gloo" if backend == "auto" else backend
        self.backend = f"cpu:gloo,cuda:{fast}" if on_gpu else "gloo"
        self.pairs: list[dist.ProcessGroup] = []  # of this rank: with its neighbour, its neighbours' neighbour, ...

    def __enter__(self) -> "Processes":
        super().__enter__()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        Processes.joined += 1
        self.store = dist.PrefixStore(f"rank group {Processes.joined}", store())
        dist.init_process_group(
            self.backend, store=self.store, rank=self.rank, world_size=self.world_size, timeout=self.timeout
        )
        self.pairs = _pairs(self.rank, self.world_size, self.timeout) if self.exact else []
        return self

    def __exit__(self, *reason: object) -> None:
        super().__exit__(*reason)
        error = reason[1]
        if error is None:
            dist.barrier()
        if error is None or isinstance(error, UserError):  # of a group that has lost a rank nothing more is asked
            dist.destroy_process_group()

    def sum_tree(self, tensor: Tensor) -> None:
        """Sum in place over the complete binary tree of the ranks: a + b is the same bits as b + a."""
        for pair in self.pairs:
            dist.all_reduce(tensor, group=pair)

    def across(self, vector: Tensor) -> Tensor:
        tree = Tree()
        for row in self._every(vector):
            tree.add([row])
        return tree.close()[0]

    def agree(self, wishes: list[float]) -> list[float]:
        every = torch.tensor(wishes, dtype=torch.float64)
        dist.all_reduce(every, dist.ReduceOp.MAX)
        return every.tolist()

    def tell(self, make: Callable[[], Made]) -> Made:
        text = bytearray(json.dumps(make()).encode()) if self.rank == 0 else bytearray()
        size = torch.tensor([len(text)])
        dist.broadcast(size, 0)
        said = (
            torch.frombuffer(text, dtype=torch.uint8) if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8)
        )
        dist.broadcast(said, 0)
        told: Made = json.loads(said.numpy().tobytes())
        return told

    def share(
        self,
        make: Callable[[], Made],
        save: Callable[[Made, Path], Made],
        load: Callable[[Path], Made],
        folder: Path,
    ) -> Made:
        """As Single; the wait has no end, because reading rows may take longer than any collective."""
        key, folder = f"rows of node {self.node}", folder.with_name(f"{folder.name}-{self.node}")
        if self.local_rank:
            while not self.store.check([key]):
                time.sleep(0.02)
            if code := int(self.store.get(key)):
                raise Elsewhere(code)
            made = load(folder)
            self.store.add(f"{key}: loaded", 1)
            return made
        shutil.rmtree(folder, ignore_errors=True)  # of a rank that was killed here
        try:
            folder.mkdir()
            made = save(make(), folder)
        except UserError as error:
            self.store.set(key, str(error.exit_code))
            raise
        self.store.set(key, "0")
        while self.store.add(f"{key}: loaded", 0) < self.local_size - 1:
            time.sleep(0.02)
        shutil.rmtree(folder)  # what is mapped stays in memory
        return made

    def barrier(self) -> None:
        dist.barrier()

    def chunks(self, n_rows: int, size: int) -> Iterator[tuple[int, int]]:
        """As Single; every rank makes the same number of passes, the last one again with a chunk that is dropped."""
        chunks = list(super().chunks(n_rows, size))
        for first in range(0, len(chunks), self.world_size):
            yield chunks[min(first + self.rank, len(chunks) - 1)]

    def gather(self, parts: Sequence[Tensor], n_rows: int, size: int) -> Tensor:
        mine = parts[0].new_zeros(len(parts), min(size, n_rows), *parts[0].shape[1:])
        for place, part in zip(mine, parts, strict=True):
            place[: len(part)] = part
        every = [torch.empty_like(mine) for _ in range(self.world_size)] if self.rank == 0 else None
        dist.gather(mine, every)
        return mine.flatten(0, 1) if every is None else torch.stack(every, 1).flatten(0, 2)[:n_rows]

    def in_turn(self, items: Iterable[Item], make: Callable[[Item], str]) -> Iterator[str]:
        """As Single; every rank goes through all items, and makes every W-th. What one rank raises, all raise."""
        left = iter(items)
        while turn := list(itertools.islice(left, self.world_size)):
            text, code = "", 0
            try:
                text = make(turn[self.rank]) if self.rank < len(turn) else ""
            except UserError as error:
                text, code = str(error), error.exit_code
            yield from self._texts(text, code)

    def _texts(self, text: str, code: int) -> list[str]:
        """The texts of all ranks on rank 0, none elsewhere; raises Elsewhere for the first with an exit code."""
        mine = torch.tensor(bytearray(text.encode()), dtype=torch.uint8)
        said = self._every(torch.tensor([len(mine), code])).tolist()
        longest = max(size for size, _ in said)
        padded = torch.cat([mine, mine.new_zeros(longest - len(mine))])
        every = [torch.empty_like(padded) for _ in said] if self.rank == 0 else None
        dist.gather(padded, every)
        texts = [bytes(t[:n].numpy()).decode() for t, (n, _) in zip(every or [], said, strict=bool(every))]
        for rank, (_, wrong) in enumerate(said):
            if wrong:
                raise Elsewhere(wrong, texts[rank] if texts else "")
        return texts

    def _every(self, vector: Tensor) -> Tensor:
        """(ranks, n): a short vector of every rank."""
        every = torch.empty(self.world_size, len(vector), dtype=vector.dtype, device=vector.device)
        dist.all_gather(list(every), vector)
        return every


def _pairs(rank: int, size: int, timeout: timedelta) -> list[dist.ProcessGroup]:
    """The groups of two in which a rank exchanges sums: with the rank whose number differs in bit 0, 1, ..."""
    mine = []
    for bit in (1 << k for k in range(size.bit_length() - 1)):
        for first in range(size):
            if not first & bit:
                group = dist.new_group([first, first | bit], timeout)
                if rank in (first, first | bit):
                    mine.append(group)
    return mine
