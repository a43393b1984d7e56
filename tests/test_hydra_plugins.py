"""Hydra's own tests of launchers and sweepers, on ours: its classes as they come, and nothing left out.

`BatchedSweeperTestSuite` says that `hydra.sweeper.max_batch_size` makes batches, which our sweeper does for it and for
launchers of other machines; our own launcher otherwise takes another job whenever a slot is free. The applications of
`IntegrationTestSuite` are programs that are started for each test, and slow. The one exception: Hydra's applications
do not say for which version they are, of which Hydra warns; that warning is no error here.
"""

from collections.abc import Iterator

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite
from hydra.version import VersionBase

pytestmark = pytest.mark.filterwarnings("ignore:Future Hydra versions:UserWarning")
OURS = ["hydra/sweeper=dltrain"]
SLOTS = "hydra.launcher.slots=2"


@pytest.fixture(autouse=True)
def unspecified() -> Iterator[None]:
    """The version that Hydra's tests assume, whatever other tests of this process have asked for."""
    before = VersionBase.instance()
    VersionBase.set_instance(type.__call__(VersionBase))  # a new one: VersionBase() is the one that there is
    yield
    VersionBase.set_instance(before)


def test_hydra_finds_both() -> None:
    for kind in (Sweeper, Launcher):
        found = [plugin.__name__ for plugin in Plugins.instance().discover(kind) if "dltrain" in plugin.__module__]
        assert found == [kind.__name__]


@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("basic", OURS), ("dltrain", OURS), ("dltrain", ["hydra/sweeper=basic"])]
)
class TestOneSlot(LauncherTestSuite):
    """Our sweeper over Hydra's launcher and ours, and our launcher under Hydra's sweeper, in this process."""


@pytest.mark.parametrize(("launcher_name", "overrides"), [("dltrain", [*OURS, SLOTS])])
class TestSlots(LauncherTestSuite):
    """In processes of their own."""


@pytest.mark.parametrize(
    ("launcher_name", "overrides"),
    [
        (name, ["hydra/sweeper=dltrain", "hydra.sweeper.max_batch_size=2", *slots])
        for name, slots in (("basic", []), ("dltrain", []), ("dltrain", [SLOTS]))
    ],
)
class TestBatches(BatchedSweeperTestSuite):
    """Two jobs at a time are three batches of six."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"),
    [({}, ["-m", *OURS, "hydra/launcher=dltrain"]), ({}, ["-m", *OURS, "hydra/launcher=dltrain", SLOTS])],
)
class TestApplications(IntegrationTestSuite):
    """Programs of Hydra's own, started for each test."""
