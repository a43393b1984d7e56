"""Walk the courses of several runs side by side: what all of them ask for is done for all at once."""

import contextlib
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from dltrain.bundle import make_task
from dltrain.course import Look, Stretch
from dltrain.evaluate import chunk_size
from dltrain.faults import point
from dltrain.together.numbers import Disagree
from dltrain.together.stack import Stack
from dltrain.together.template import Template
from dltrain.train import Training
from dltrain.worker import Work

MEMBERS = 6  # from which on a step of a stack takes less than theirs one by one, which cost some 0.3 ms each
PARAMETERS = 2**15  # of a network, up to which moving those of many at once is faster
OPERATIONS = 15_000_000  # of a member in a step, up to which products of many small matrices are faster (MLPs, CNNs)
NUMBERS = 2**20  # parameters of all members of a stack: with more, they leave a core's cache between two steps
PAUSE = 1.0  # seconds between two looks at the clock and at signals, which all members take
UNKNOWN = (Disagree, RuntimeError, NotImplementedError, ValueError, UserWarning)  # what torch.func makes of the rest
STEP = 2  # number of those, at which nobody looks at a network's health


class Member:
    """One of several runs: its course, and what it asks for."""

    def __init__(self, work: Work, ended: Callable[[BaseException | None], None]) -> None:
        self.work, self.training, self.ended = work, work.training, ended
        work.training.checkpoints.patient, work.training.pause = True, PAUSE
        self.course: Generator[Any, None, Any] = work.course()
        self.wish: Stretch | Look | None = None  # None: it has ended

    def advance(self) -> bool:
        """Go on to its next wish; False if it has ended, however it came."""
        self.wish, reason = None, None
        try:
            self.wish = next(self.course)
        except StopIteration:
            pass
        except Exception as error:
            reason = error
        if self.wish is None:
            self.ended(reason)
        return self.wish is not None

    def fail(self, error: BaseException) -> None:
        """End by what happened elsewhere."""
        if self.wish is not None:
            self.wish = None
            with contextlib.suppress(type(error), StopIteration):
                self.course.throw(error)
            self.ended(error)

    def finish(self) -> None:
        """Go on alone to the end."""
        while self.advance():
            pass


def walk(members: Sequence[Member], forced: bool) -> None:
    """Train members whose networks have the same shapes, as far as possible side by side; whatever cannot be, alone."""
    try:
        stacks: dict[str, list[Member]] = {}
        for member in members:
            if member.advance():
                stacks.setdefault(shape(member.training), []).append(member)
        for alike in stacks.values():
            size = sum(p.numel() for p in alike[0].training.task.parameters())
            n = max(2, NUMBERS // max(1, size))
            for start in range(0, len(alike), n):
                side_by_side(alike[start : start + n], forced)
    except BaseException as error:
        for member in members:
            member.fail(error)
        if not isinstance(error, Exception):
            raise


def shape(training: Training) -> str:
    """What is equal of runs that can be stacked: shapes, where they stand, and how many rows there are."""
    position = training.position
    shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in training.task.state_dict().items()]
    fields = [(key, tuple(values.shape)) for key, values in training.train_rows.items()]
    return str((position.step, position.epoch, position.batch, shapes, fields, training.settings.epochs))


def side_by_side(members: Sequence[Member], forced: bool) -> None:
    """Train runs of one shape."""
    against = "it is one run" if len(members) == 1 else unstackable(members, forced)
    for member in members:
        member.work.result["together"] = 1 if against else len(members)
    if against and forced and len(members) > 1:
        text = f"these {len(members)} runs cannot be trained side by side: {against}; they are trained one by one"
        members[0].work.terminal.warn(text)
    for member in members if against else lockstep(list(members)):
        member.finish()


def stacked(members: Sequence[Member], trial: bool = False) -> Stack:
    """The networks of runs of one shape as one; raises Disagree where their parts differ in more than numbers."""
    trainings, work = [member.training for member in members], members[0].work
    return Stack(Template(make_task(work.builder, work.data.preparation), trainings), trainings, trial)


def unstackable(members: Sequence[Member], forced: bool) -> str:
    """Why runs of one shape are not to be stacked; nothing if they are.

    They can be if torch.func knows what they do. Whether they are faster so is decided by counts, never by a clock: the
    same runs are trained in the same way, and to the same bits, on a machine that is busy.
    """
    small = sum(p.numel() for p in members[0].training.task.parameters()) <= PARAMETERS
    if not (forced or (small and len(members) >= MEMBERS)):
        return "they are too few or too large to be faster so"
    try:
        with warnings.catch_warnings(), FlopCounterMode(display=False) as counted:
            warnings.simplefilter("error")  # torch.func says so where it goes member by member
            trial = stacked(members, trial=True)
            trial.numbers()
            trial.step(*trial.some(), STEP)
    except UNKNOWN as error:
        return " ".join(str(error).split())
    few = counted.get_total_flops() <= OPERATIONS * len(members)
    return "" if forced or few else "their steps are too large to be faster so"


def lockstep(members: list[Member]) -> list[Member]:
    """Walk courses side by side until at most one is left; those who must go on alone are given back."""
    apart: list[Member] = []
    while len(members) > 1:
        stack = stacked(members)
        there = list(members)
        while len(members) == len(there):
            stretches = [member.wish for member in members if isinstance(member.wish, Stretch)]
            lost = stack.walk(stretches, min(stretch.left for stretch in stretches))
            members = [member for k, member in enumerate(members) if k not in lost]
            members = go_on(members, stack)
        apart += [there[k] for k in lost]
    for member in members + apart:
        Stack.own(member.training)
    return members + apart


def go_on(members: list[Member], stack: Stack) -> list[Member]:
    """Let those who have what they wished for go on to their next stretch; returns who has not ended."""
    while any(done(member) for member in members):
        looks = [member for member in members if isinstance(member.wish, Look)]
        if len(looks) == stack.n:
            look(looks, stack)
        members = [member for member in members if not done(member) or member.advance()]
    return members


def done(member: Member) -> bool:
    return not isinstance(member.wish, Stretch) or not member.wish.left


def look(members: Sequence[Member], stack: Stack) -> None:
    """Assess the same rows by all members."""
    wishes = [member.wish for member in members if isinstance(member.wish, Look)]
    rows = wishes[0].rows
    if all(wish.rows["features"] is rows["features"] for wish in wishes):
        task, trainer = stack.template.task, stack.first.trainer
        n_rows, size = len(rows["features"]), chunk_size(rows["features"], task.widens)
        point("evaluate-together")
        for wish, found in zip(wishes, stack.assess(rows, [*trainer.chunks(n_rows, size)]), strict=True):
            wish.metrics = found
