"""`kill -9` at random moments, a thousand times: what was lost, what differs, what hangs.

    python benchmarks/faults.py [--kills 1000] [--runs 200] [--seed 0]

One run after another (dropout, batch statistics, schedule, average, early stopping, exact=true shards=4) is killed up
to ten times: one rank or all, in start-up, saves, evaluations, training and at its end. Each time the same command is
typed again, with a trainer and a number of processes that are drawn anew: single, ddp or fsdp, one to four. After every
kill all files that were published must verify, the newest checkpoint must be where the next start goes on, and no
process may be left; at its end the run must have, bit for bit, the checkpoint, bundle, metrics and result of a run that
nobody disturbed. Then short runs on four ranks, ddp and fsdp in turn, must all end with 0 and the same weights.

How to read: kills by where the run was (rank 0 is asked, saves first, as they go on in the background) and by trainer
and processes; then what went wrong. Progress is on standard error. The exit code is 1 if anything went wrong, which
ends the kills at once; the folder is kept then, and its name printed. The command is forked from a process that has
imported everything, so that a start takes a second; a kill hits whatever it would hit otherwise. About an hour.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

sys.path.pop(0)  # this folder, where `faults` is this file
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults.campaign import Campaign, successes
from faults.forks import WORDS, Server, outcome

PAUSE = 30  # seconds between two words about progress


class Progress:
    """Passes on a line now and then, with the minutes since the beginning."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.silent_until = 0.0

    def tell(self, text: str) -> None:
        if (now := time.monotonic()) >= self.silent_until:
            print(f"{(now - self.began) / 60:5.1f} min: {text}", file=sys.stderr, flush=True)
            self.silent_until = now + PAUSE


def disturbed(server: Server, folder: Path, options: argparse.Namespace) -> list[str]:
    """The kills and then the runs of four ranks, with their tables; all that went wrong."""
    progress = Progress()
    code, said = server.run(WORDS, folder)
    if code:
        return [f"the run that is left alone: {said}"]
    campaign = Campaign(server, folder, outcome(folder / "outputs" / "run"), options.seed)
    campaign.go(options.kills, progress.tell)
    print(campaign.table(), flush=True)
    faults = [f"{kind}: {text}" for kind, found in campaign.faults().items() for text in found]
    failed, weights = successes(server, folder, options.runs, progress.tell)
    good, sets = options.runs - len(failed), "one set" if len(weights) == 1 else f"{len(weights)} sets"
    print(f"\n{good} of {options.runs} four-rank runs ended with 0, {sets} of weights.", flush=True)
    progress.silent_until = 0
    progress.tell(f"{campaign.launches} starts and {options.runs} runs of four ranks, seed {options.seed}")
    return [*faults, *failed, *([f"weights: {weights}"] if len(weights) > 1 else [])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000, help="at least; some in every phase, a quarter in saves")
    parser.add_argument("--runs", type=int, default=200, help="of four ranks that nobody kills")
    parser.add_argument("--seed", type=int, default=0, help="of whom to kill, when, and where to go on")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dltrain-faults-"))
    print(f"{folder}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    with closing(Server()) as server:
        faults = disturbed(server, folder, options)
    if faults:
        print(*faults, f"the runs are kept in {folder}", sep="\n", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
