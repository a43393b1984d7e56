"""Sixty random kills over every trainer cost nothing; and the campaign would say so if they did."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
from faults.campaign import Campaign, readable, successes
from faults.forks import STOP_AT_50, WORDS, Hang, Server

TWO = [*WORDS, "trainer=ddp"]
pytestmark = pytest.mark.timeout(1800)


def test_sixty_kills(server: Server, undisturbed: dict[str, str], tmp_path: Path) -> None:
    """Killed at random, started on other processes each time: every run comes to the bits of one left alone."""
    campaign = Campaign(server, tmp_path, undisturbed, seed=20)
    campaign.go(60)
    print(campaign.table())
    assert campaign.faults() == {}


def test_thirty_runs_of_four_ranks_end_well(server: Server, tmp_path: Path) -> None:
    failed, weights = successes(server, tmp_path, 30)
    assert failed == []
    assert len(weights) == 1


def test_a_hang_is_noticed(server: Server, tmp_path: Path) -> None:
    """A rank that sleeps keeps the others waiting; where each of them was is said, and none is left."""
    phases = tmp_path / "phases"
    phases.touch()
    launch = server.start(TWO, tmp_path, ranks=2, PHASES=str(phases), FAULT="train@0:sleep")
    while "train\n" not in phases.read_text():
        assert not launch.over()
        time.sleep(0.01)
    with pytest.raises(Hang, match=r"ranks \[0, 1\] of 2 did not end in 1 seconds") as caught:
        launch.wait(1)
    assert "in _happen" in str(caught.value)
    assert launch.codes.keys() == {0, 1}
    assert launch.orphans() == []


def test_the_others_are_killed_when_a_rank_fails(server: Server, tmp_path: Path) -> None:
    launch = server.start(TWO, tmp_path, ranks=2, FAULT="train@1:kill")
    assert launch.wait(60)[0] == -signal.SIGKILL
    assert launch.codes == {0: -signal.SIGKILL, 1: -signal.SIGKILL}


def test_an_orphan_is_noticed(server: Server, tmp_path: Path) -> None:
    patch = "import subprocess; subprocess.Popen(['sleep', '60'])"
    launch = server.start(["--version"], tmp_path, patch)
    assert launch.wait()[0] == 0
    [orphan] = launch.orphans(patience=0.1)
    assert orphan.split()[1:] == ["sleep", "60"]
    subprocess.run(["kill", orphan.split()[0]], check=True)
    assert launch.orphans() == []


def test_damage_is_noticed(server: Server, tmp_path: Path) -> None:
    assert server.run(WORDS, tmp_path, STOP_AT_50)[0] == -signal.SIGKILL
    damaged: list[str] = []
    assert readable(tmp_path, damaged)[-1] == 50
    assert damaged == []
    path = tmp_path / "outputs/run/checkpoints/step-00000050/ema.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    readable(tmp_path, damaged)
    assert len(damaged) == 1
    assert "ema.safetensors has" in damaged[0]


@pytest.mark.parametrize(
    ("patch", "kind"),
    [
        ("from dltrain import order; order.EPOCH_STRIDE = 3", "differing"),
        ("from dltrain.checkpoint import Checkpoints; Checkpoints.newest = lambda self: None", "lost"),
        ("from dltrain import worker\nworker.conclude = None", "failed"),
    ],
)
def test_a_campaign_notices(
    patch: str, kind: str, server: Server, undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops at the first fault, and keeps the run for whoever wants to look."""
    start = server.start
    monkeypatch.setattr(server, "start", lambda words, folder, **more: start(words, folder, patch, **more))
    campaign = Campaign(server, tmp_path, undisturbed, seed=1)
    campaign.go(60)
    assert [*campaign.faults()] == [kind]
    assert (tmp_path / f"run{campaign.runs - 1}").is_dir()
