"""What several tests share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.forks import STOP_AT_50, WORDS, Server, outcome


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Runs commands in processes of their own, at once."""
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def undisturbed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the run of `WORDS` comes to when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, said = server.run(WORDS, folder)
    assert code == 0, said
    return outcome(folder / "outputs" / "run")


@pytest.fixture(scope="session")
def killed_at_50(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed when its checkpoint of step 50 of 56 was published."""
    folder = tmp_path_factory.mktemp("killed")
    code, said = server.run(WORDS, folder, STOP_AT_50)
    assert code == -signal.SIGKILL, said
    return folder
