"""Several jobs at a time on this machine: each in a process of its own, with its share of the cores or a GPU."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, setup_globals

from dltrain.errors import Elsewhere, Stopped
from dltrain.launch.plan import visible_gpus
from dltrain.sweeps.space import Job

READY = ["dltrain.worker", "dltrain.losses", "dltrain.tasks.supervised", "dltrain.data.csv", "dltrain.data.bundled"]
READY += ["torch._dynamo", "torchmetrics.functional.classification", "torchmetrics.functional.regression"]
LOOK = 0.5  # seconds after which somebody may have asked us to stop
Run = Callable[[Job], JobReturn]


@dataclass
class Started:
    """A job that runs."""

    job: Job
    slot: int
    process: ForkServerProcess

    def returned(self, answer: Connection, stopping: bool) -> JobReturn:
        """What became of it."""
        try:
            made = cloudpickle.loads(answer.recv_bytes())
        except EOFError:
            made = None
        answer.close()
        self.process.join()
        if isinstance(made, JobReturn):
            return made
        code = self.process.exitcode or 0
        text = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        error = Stopped(text) if stopping else Elsewhere(128 - code if code < 0 else code or 1, text)
        returned = JobReturn(overrides=list(self.job.words), status=JobStatus.FAILED)
        returned.return_value = error
        return returned


def spread(
    jobs: Iterator[Job], slots: int, run: Run, logs: Path, stopping: Callable[[], bool]
) -> Iterator[tuple[Job, JobReturn]]:
    """Run jobs in `slots` processes, and yield what became of each; the next is asked for when a slot is free.

    What a job says goes to a log of its own. Asked to stop, each gets SIGTERM once; who leaves early kills them all.
    """
    running: dict[Connection, Started] = {}
    told = False
    try:
        while True:
            free = sorted({*range(slots)} - {one.slot for one in running.values()})
            while free and (job := next(jobs, None)):
                started, its = _start(job, free.pop(0), slots, run, logs)
                running[its] = started
            if not running:
                return
            ready = wait([*running], timeout=LOOK)
            for answer, one in [(answer, one) for answer, one in running.items() if answer in ready]:
                del running[answer]
                yield one.job, one.returned(answer, told)
            if stopping() and not told:
                told = True
                for one in running.values():
                    one.process.terminate()
    finally:
        for one in running.values():
            one.process.kill()


def _start(job: Job, slot: int, slots: int, run: Run, logs: Path) -> tuple[Started, Connection]:
    """A process for a job, forked from one that has imported what training needs."""
    context = multiprocessing.get_context("forkserver")
    cores = max(1, len(os.sched_getaffinity(0)) // slots) if sys.platform == "linux" else 1
    own = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores)), **_gpu(slot)}
    with _environment(own):  # torch reads it when it is imported
        context.set_forkserver_preload(READY)
        forkserver.ensure_running()
    answer, theirs = context.Pipe(duplex=False)
    logs.mkdir(parents=True, exist_ok=True)
    payload = cloudpickle.dumps((run, job, Singleton.get_state()))
    log = str(logs / f"trial-{job.number}.log")
    process = context.Process(target=_be, args=(payload, theirs, log, own), name=f"trial {job.number}")
    process.start()
    theirs.close()
    return Started(job, slot, process), answer


def _gpu(slot: int) -> dict[str, str]:
    """The variable that shows a process one GPU, if there are any."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    gpus = named or [str(number) for number in range(visible_gpus())]
    return {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}


@contextlib.contextmanager
def _environment(own: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in own}
    os.environ.update(own)
    yield
    for key, value in before.items():
        if value is None:
            del os.environ[key]
        else:
            os.environ[key] = value


def _follow() -> None:
    """End when who started us has gone, however that was: the server that forked us lives as long as we do."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _be(payload: bytes, answer: Connection, log: str, own: dict[str, str]) -> None:
    """Be the process of one job."""
    os.setpgrp()  # Ctrl-C is for who started us, and tells us
    threading.Thread(target=_follow, daemon=True).start()
    os.environ.update(own)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    run, job, state = cloudpickle.loads(payload)
    setup_globals()
    Singleton.set_state(state)
    returned = run(job)
    try:
        made = cloudpickle.dumps(returned)
    except Exception as error:  # what a job raised may hold anything
        returned.return_value = RuntimeError(f"{returned._return_value!r} ({error})")
        made = cloudpickle.dumps(returned)
    answer.send_bytes(made)
