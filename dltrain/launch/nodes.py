"""Several machines of one command: how their parents meet at trainer.rdzv_endpoint, and what they tell each other."""

import functools
import itertools
import json
import socket
import time
from typing import TYPE_CHECKING, Any

from dltrain.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed import Store

REFUSED = "trainer.rdzv_endpoint must be the host:port of the first node"


class Nodes:
    """The parents of a launch; number 0 holds the run and says what is done, the others answer."""

    def __init__(self, store: "Store", number: int, n: int) -> None:
        self.store, self.number, self.others, self.said = store, number, n - 1, itertools.count()

    def say(self, message: dict[str, Any]) -> int:
        """Number 0: tell the others; returns the number of the message."""
        number = next(self.said)
        self.store.set(f"node message {number}", json.dumps(message))
        return number

    def hear(self) -> tuple[int, dict[str, Any]]:
        """Another: wait for the next message, however long that takes."""
        number = next(self.said)
        while not self.store.check([f"node message {number}"]):
            time.sleep(0.05)
        return number, json.loads(self.store.get(f"node message {number}"))

    def answer(self, message: int, content: Any) -> None:
        """Another: tell number 0 what became of a message."""
        self.store.set(f"node {self.number} answers {message}", json.dumps(content))

    def answers(self, message: int, seconds: float) -> list[Any]:
        """Number 0: what the others answered in time."""
        keys, until = [f"node {k + 1} answers {message}" for k in range(self.others)], time.monotonic() + seconds
        while not self.store.check(keys) and time.monotonic() < until:
            time.sleep(0.05)
        return [json.loads(self.store.get(key)) for key in keys if self.store.check([key])]


@functools.cache
def meet(endpoint: str, n: int, seconds: float) -> Nodes:
    """The nodes of a command that is typed on n machines; raises ConfigError if they do not find each other."""
    host, _, port = endpoint.rpartition(":")
    here = _here(host, endpoint)
    from dltrain.distributed.processes import counted, held, reached

    store: Store | None = None
    if here:
        try:
            store = held(int(port), "the port of trainer.rdzv_endpoint")
        except ConfigError:  # taken, by the first node or a stranger
            store = None
    refused = f"trainer.nodes must be the number of machines on which this command is typed, got {n}"
    if store is None:
        store = reached(host, int(port), REFUSED)
        if (number := store.add("nodes", 1)) >= n:
            raise ConfigError(f"{refused}, and {n} are there")
        return Nodes(store, number, n)
    if (came := counted(store, "nodes", n - 1, seconds)) < n - 1:
        raise ConfigError(f"{refused}, of which {came + 1} came in {seconds:g} seconds")
    return Nodes(store, 0, n)


def _here(host: str, endpoint: str) -> bool:
    """True if a host is this machine; raises ConfigError if it is none."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{REFUSED}, got {endpoint}, which names no host that is known here") from error
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address[0], 0))
        except OSError:
            return False
    return True
