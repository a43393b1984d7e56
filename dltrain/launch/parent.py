"""The parent of a run: it holds the run's folder, and starts the workers until they have done it."""

import contextlib
import shlex
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from dltrain.errors import Elsewhere, Failed, UserError
from dltrain.launch.agent import FINAL, Failure, once
from dltrain.launch.follow import apart, say
from dltrain.launch.nodes import Nodes, meet
from dltrain.launch.plan import external, processes
from dltrain.launch.rank import PATIENCE
from dltrain.report.terminal import Terminal
from dltrain.run import Config, Run


def start(run: Run, name: str, config: Config, terminal: Terminal, last_step: int | None = None) -> Config:
    """Train a run where its trainer says, and return its result; `last_step` is to try no more than the beginning."""
    if "devices" in config["trainer"] and not external():
        return _launched(run, name, config, terminal, last_step)
    from dltrain.worker import work

    if external():
        say({"folder": str(run.folder.absolute()), "name": name, "trust": config["trust"]})
    try:
        return work(run, name, config, terminal, last_step)
    except Exception as error:
        if isinstance(error, UserError | OSError) or not external():
            raise
        raise SystemExit(apart(error)) from None  # not even a sweep goes on: the ranks do not find together again


def _launched(run: Run, name: str, config: Config, terminal: Terminal, last_step: int | None) -> Config:
    """Start the workers, again after one was killed (`max_restarts` times) or raised (once); return the result."""
    n, left, raised = processes(config), config["trainer"]["max_restarts"], last_step is not None
    while (failure := _everywhere(run, name, config, n, last_step)) is not None:
        if failure.code in FINAL:
            raise Elsewhere(failure.code, failure.text)
        killed = failure.code > 128
        if (killed and not left) or (not killed and raised):
            if result := run.result():  # it had begun
                run.write("result.json", {**result, "status": "failed", "reason": failure.text})
            raise Failed(failure.code, failure.text, failure.tail, _command(run))
        left, raised = left - killed, raised or not killed
        terminal.warn(f"{failure.text}; starting again")
    return run.result()


def _command(run: Run) -> str:
    """What to type to go on with a run, or to start it again if it has not begun."""
    if run.folder.name.startswith("."):
        return shlex.join(["dltrain", *run.words()])
    return run.command("resume")


@contextlib.contextmanager
def led(config: Config) -> Iterator[bool]:
    """True on the node that holds the run; another does its share until that ends, and raises what ended it."""
    nodes = _nodes(config["trainer"])
    if nodes is None or nodes.number:
        if nodes is not None:
            _assist(nodes, config)
        yield nodes is None
        return
    code, text = 1, "the first node has failed"
    try:
        yield True
        code = 0
    except UserError as error:
        code, text = error.exit_code, str(error)
        raise
    except KeyboardInterrupt:
        code, text = 130, "the first node was interrupted"
        raise
    finally:
        nodes.answers(nodes.say({"end": code, "text": text}), PATIENCE)


def _nodes(trainer: Config) -> Nodes | None:
    """Where several nodes meet that nobody else started; None otherwise."""
    if external() or trainer.get("nodes", 1) == 1:
        return None
    return meet(str(trainer["rdzv_endpoint"]), trainer["nodes"], trainer["timeout"])


def _assist(nodes: Nodes, config: Config) -> None:
    """Start this node's workers whenever the first node starts its own; raises what the run ended with."""
    from dltrain.distributed.processes import lost

    Terminal().note(f"node {nodes.number + 1} of {nodes.others + 1}, led by {config['trainer']['rdzv_endpoint']}")
    try:
        while "end" not in (heard := nodes.hear())[1]:
            number, said = heard
            run, failure = Run(Path(said["folder"])), None
            try:
                there = run.trusted(config["trust"])
                failure = once(run, said["name"], there, processes(there), said["last_step"], nodes, number)
            except UserError as error:
                failure = Failure(error.exit_code, str(error), [])
            nodes.answer(number, failure and asdict(failure))
        nodes.answer(heard[0], None)
    except Exception as error:
        if lost(error):
            raise Elsewhere(1, "the first node has gone; the same command continues") from error
        raise
    if code := heard[1]["end"]:
        raise Elsewhere(code, heard[1]["text"])


def _everywhere(run: Run, name: str, config: Config, n: int, last_step: int | None) -> Failure | None:
    """As `once`, with the other nodes if there are any: what failed first on any of them."""
    trainer = config["trainer"]
    if (nodes := _nodes(trainer)) is None:
        return once(run, name, config, n, last_step)
    number = nodes.say({"folder": str(run.folder.absolute()), "name": name, "last_step": last_step})
    mine = once(run, name, config, n, last_step, nodes, number)
    answers = nodes.answers(number, max(30, trainer["timeout"]) + 2 * PATIENCE)
    if len(answers) < nodes.others:
        code, text = 128 + signal.SIGKILL, f"{nodes.others - len(answers)} of {nodes.others} other nodes have gone"
        raise Failed(code, text, mine.tail if mine else [], _command(run))
    failures = [failure for failure in [mine, *(Failure(**answer) for answer in answers if answer)] if failure]
    return min(failures, key=lambda failure: failure.elsewhere, default=None)
