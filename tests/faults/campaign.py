"""Runs that are killed again and again, at random moments, each time continued with other processes."""

import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from faults.forks import HANG, WORDS, Hang, Launch, Server, outcome

from dltrain.checkpoint import Checkpoints, Damaged, verify

PLACES = {"single": 1, "ddp x 2": 2, "ddp x 4": 4, "fsdp x 2": 2, "fsdp x 4": 4}  # and their processes
PHASES = ("start-up", "save", "evaluation", "training", "end")
KILLS = 10  # of one run; after them it is left alone
LEAST = 5  # kills in each phase, however few they are in all
NOTICE = 0.2  # seconds that an agent may take to see that a rank has gone


class Campaign:
    """Kills, and what went wrong: nothing should."""

    def __init__(self, server: Server, folder: Path, expected: dict[str, str], seed: int) -> None:
        self.server, self.folder, self.expected = server, folder, expected
        self.chance = random.Random(seed)
        self.kills: Counter[tuple[str, str]] = Counter()  # by phase and place
        self.victims: Counter[str] = Counter()  # whom the signal reached first
        self.launches = self.runs = 0
        self.damaged: list[str] = []  # files that were published and cannot be read
        self.lost: list[str] = []  # checkpoints that were published and from which the run did not go on
        self.differing: list[str] = []  # parts of finished runs
        self.failed: list[str] = []  # launches that ended by themselves, and not well
        self.hung: list[str] = []
        self.orphans: list[str] = []

    def faults(self) -> dict[str, list[str]]:
        """All that went wrong, by kind."""
        names = ("damaged", "lost", "differing", "failed", "hung", "orphans")
        return {name: found for name in names if (found := getattr(self, name))}

    def during(self, phase: str) -> int:
        """Kills in one phase."""
        return sum(number for (found, _), number in self.kills.items() if found == phase)

    def reached(self, kills: int) -> bool:
        """Whether there were so many kills, a quarter of them in a save, some in every phase and place."""
        quarter = 4 * self.during("save") >= self.kills.total()
        places = {place for _, place in self.kills}
        return (
            self.kills.total() >= kills
            and quarter
            and all(self.during(phase) >= LEAST for phase in PHASES)
            and places == {*PLACES}
        )

    def go(self, kills: int, tell: Callable[[str], None] = lambda text: None) -> None:
        """Disturb one run after the other until there were enough kills, or something has gone wrong."""
        while not self.reached(kills) and not self.faults():
            self.run()
            phases = ", ".join(f"{phase} {self.during(phase)}" for phase in PHASES)
            tell(f"{self.runs} runs, {self.launches} launches, {self.kills.total()} kills: {phases}")

    def run(self) -> None:
        """Launch one run until it ends, and compare it with the one that nobody disturbed."""
        folder = self.folder / f"run{self.runs}"
        folder.mkdir()
        before, ended = self.kills.total(), False
        while not ended and not self.faults():
            ended = self.launch(folder, leave=self.kills.total() - before >= KILLS)
        if ended and not self.faults():
            found = outcome(folder / "outputs" / "run")
            keys = sorted({*found, *self.expected})
            self.differing += [f"{folder}: {key}" for key in keys if found.get(key) != self.expected.get(key)]
        self.runs += 1
        if not self.faults():  # else somebody will want to look
            shutil.rmtree(folder)

    def launch(self, folder: Path, leave: bool) -> bool:
        """Launch the run somewhere, kill it unless it shall be left alone, look around; True if it has ended."""
        place, steps = self.chance.choice([*PLACES]), readable(folder, self.damaged)
        phases = folder / "phases"
        phases.write_text("")
        words, ranks = [*WORDS, f"trainer={place.split()[0]}"], PLACES[place]
        launch = self.server.start(words, folder, ranks=ranks, PHASES=str(phases))
        self.launches += 1
        victim = None if leave else self.kill(launch, phases)
        try:
            _, said = launch.wait(HANG, self.chance.choice([0, self.chance.uniform(0, NOTICE)]))
        except Hang as hang:
            self.hung.append(f"{folder} {place}: {hang}")
            return False
        passed, codes = phases.read_text().split(), launch.codes
        if killed := -signal.SIGKILL in codes.values():
            self.kills[where(passed), place] += 1
            self.victims["all" if victim == "all" else f"rank {victim}"] += 1
        self.judge(f"{folder} {place} {codes} killed {victim}", said, victim, codes)
        self.orphans += launch.orphans()
        self.follow(folder, steps, passed, said)
        return not killed

    def judge(self, launch: str, said: str, victim: str | None, codes: dict[int, int]) -> None:
        """Ranks end well, or by our signal, or because of those that did; then they may say that a rank has gone."""
        hit = [code for rank, code in codes.items() if victim in ("all", str(rank))]
        ended = all(code == 0 for code in codes.values())
        ours = any(code == -signal.SIGKILL for code in hit) and all(
            c in (0, 1, -signal.SIGKILL) for c in codes.values()
        )
        if not (ended or ours) or ("Traceback" in said and not ours):
            self.failed.append(f"{launch}\n{said}")
        if "rejected" in said or "starts over" in said:
            self.damaged.append(f"{launch}\n{said}")

    def follow(self, folder: Path, steps: list[int], passed: list[str], said: str) -> None:
        """The newest checkpoint, and what was published after it, is there; and it is where the run went on."""
        now = readable(folder, self.damaged)
        before, saved = max(steps, default=-1), "renamed" in passed
        if max(now, default=-1) < before + saved:
            self.lost.append(f"{folder}: {steps} were there, {'one more was saved, ' * saved}and {now} are left")
        if steps and "train" in passed and f"step {steps[-1]}\n" not in said:
            self.lost.append(f"{folder}: did not go on from step {steps[-1]}\n{said}")

    def kill(self, launch: Launch, phases: Path) -> str | None:
        """Kill a random rank, or all, at a random moment, mostly of a kind that is wanted; None if it ended first."""
        short = "save" if 3 * self.during("save") <= self.kills.total() else min(PHASES, key=self.during)
        wanted = self.chance.choice([*PHASES, "any", *[short] * 4])
        victim = self.chance.choice(["all", "0", str(self.chance.randrange(len(launch.pids)))])
        await_moment(launch, phases, wanted, self.chance)
        if launch.over():
            return None
        launch.kill(signal.SIGKILL, None if victim == "all" else int(victim))
        return victim

    def table(self) -> str:
        """What happened, as Markdown."""
        lines = [f"| killed during | {' | '.join(PLACES)} | all |", "| --- |" + " ---: |" * (len(PLACES) + 1)]
        for phase in PHASES:
            numbers = [self.kills[phase, place] for place in PLACES]
            lines.append(f"| {phase} | {' | '.join(map(str, [*numbers, sum(numbers)]))} |")
        sums = [sum(self.kills[phase, place] for phase in PHASES) for place in PLACES]
        lines += [f"| all | {' | '.join(map(str, [*sums, self.kills.total()]))} |", ""]
        counts: dict[str, int] = {"runs": self.runs, "restarts": self.launches - self.runs}
        counts |= {"lost checkpoints": len(self.lost), "unreadable files": len(self.damaged)}
        counts |= {"differing bits": len(self.differing), "failures": len(self.failed)}
        counts |= {"hangs": len(self.hung), "orphans": len(self.orphans)}
        lines += [f"| {' | '.join(counts)} |", "|" + " ---: |" * len(counts)]
        return "\n".join([*lines, f"| {' | '.join(map(str, counts.values()))} |"])


def await_moment(launch: Launch, phases: Path, wanted: str, chance: random.Random) -> None:
    """Return at a random moment of the wanted kind, or when a rank is over."""
    first, times, delay = {
        "start-up": (chance.choice(["", "data", "build"]), 1, chance.uniform(0, 0.1)),
        "save": ("save", chance.randint(1, 6), chance.choice([0, chance.uniform(0, 0.02)])),
        "evaluation": ("evaluate", chance.randint(1, 3), 0),
        "training": ("batch", chance.randint(1, 30), 0),
        "end": ("conclude", 1, chance.choice([0, chance.uniform(0, 0.03)])),
        "any": ("", 1, chance.uniform(0, 1.5)),
    }[wanted]
    while first and phases.read_text().split().count(first) < times and not launch.over():
        time.sleep(0.0003)
    time.sleep(delay)


def where(passed: list[str]) -> str:
    """The phase of a kill, by the places that rank 0 had passed; it saves in the background of all others."""

    def last(place: str) -> int:
        return max((number for number, name in enumerate(passed) if name == place), default=-1)

    if "train" not in passed:
        return "start-up"
    if last("save") > last("saved"):
        return "save"
    if last("evaluate") > last("evaluated"):
        return "evaluation"
    return "end" if "conclude" in passed else "training"


def readable(folder: Path, damaged: list[str]) -> list[int]:
    """The steps of a run's checkpoints, all of which must verify and read, as must all that has its name."""
    run = folder / "outputs" / "run"
    checkpoints = Checkpoints(run / "checkpoints", damaged.append)
    steps = checkpoints.steps()
    try:
        for step in steps:
            tensors, state = checkpoints.read(step)
            if state["position"]["step"] != step or not {"model", "optim", "ema"} <= set(tensors):
                damaged.append(f"{folder}: step {step} is not whole")
        if (run / "model").is_dir():
            verify(run / "model")
        for path in run.glob("*.json"):
            json.loads(path.read_text())
    except (Damaged, ValueError) as error:
        damaged.append(f"{folder}: {error}")
    return steps


def successes(
    server: Server, folder: Path, runs: int, tell: Callable[[str], None] = lambda text: None
) -> tuple[list[str], set[str]]:
    """Short runs on four ranks, ddp and fsdp in turn: how some failed, and the weights that the others came to."""
    failed: list[str] = []
    weights: set[str] = set()
    for number in range(runs):
        root, trainer = folder / f"short{number}", ("ddp", "fsdp")[number % 2]
        launch = server.start([*WORDS, "epochs=1", f"trainer={trainer}", f"output_root={root}"], folder, ranks=4)
        try:
            _, said = launch.wait()
        except Hang as hang:
            said = str(hang)
        codes, orphans = [launch.codes[rank] for rank in range(4)], launch.orphans()
        if any(codes) or orphans:
            failed.append(f"{root} {trainer} {codes} {orphans}\n{said}")
        else:
            weights.add(json.loads((root / "run" / "result.json").read_text())["weights_sha256"])
            shutil.rmtree(root)
        tell(f"{number + 1} runs of four ranks, {len(failed)} failed")
    return failed, weights
