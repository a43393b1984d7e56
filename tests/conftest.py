"""What several tests share."""

from collections.abc import Iterator

import pytest
from forks import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Runs commands in processes of their own, at once."""
    server = Server()
    yield server
    server.close()
