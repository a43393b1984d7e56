"""Train a run: start it, continue it, or show it if it is finished."""

from collections.abc import Callable
from pathlib import Path

from dltrain.commands import report
from dltrain.launch import led, processes, start
from dltrain.opening import goes_on, opened
from dltrain.report.terminal import Terminal
from dltrain.run import Config, Run


def train(config: Config, words: list[str], opening: Callable[[str], None] | None = None) -> int:
    """Train the run of a composed config; returns 0, and raises what ended it otherwise.

    `opening` is told its name.
    """
    n = processes(config)
    with led(config) as leads:
        if leads:
            with opened(config, words, n) as (run, name, resolved):
                if opening:
                    opening(name)
                go(run, name, resolved)
    return 0


def go(run: Run, name: str, config: Config) -> None:
    """Train an open run to its end, or show it if it has been; then write its report, if it is to have one.

    Whatever the report costs, about a second, comes when everything else has been said.
    """
    terminal, before = Terminal(), run.result()
    if before.get("status") == "finished":
        show(terminal, run, before)
    else:
        _train(run, name, config, terminal)
    if config["report"] and not (before.get("status") == "finished" and (run.folder / report.NAME).exists()):
        report.write(run.folder, report.run_page, terminal)


def _train(run: Run, name: str, config: Config, terminal: Terminal) -> None:
    choices = config["choices"]
    terminal.opening(f"{name}  data={choices['data']} model={choices['model']} trainer={choices['trainer']}")
    goes_on(run, config)
    result = start(run, name, config, terminal)  # torch, scikit-learn and pandas: the first words are on the screen
    if result.get("status") == "pruned":
        terminal.stopped(f"pruned at epoch {result['epochs']}: {result['reason']}; {run.command('resume')} goes on")
        return
    terminal.finish(result, str(run.folder), predict_command(run))


def show(terminal: Terminal, run: Run, result: Config) -> None:
    """Show a finished run, and what about it may differ in the last bits elsewhere."""
    terminal.opening(f"{run.name} is finished; fresh=true trains it again")
    how = [f"threads {result.get('threads')}", f"device {result.get('device')}"]
    how += [f"{result['together']} side by side"] if result.get("together", 1) > 1 else []
    how += ["compiled"] if result.get("compile") else []
    how += [] if result.get("deterministic") else ["not deterministic"]
    terminal.note("trained with " + ", ".join(how))
    terminal.finish(result, str(run.folder), predict_command(run))


def predict_command(run: Run) -> str:
    """The command that applies a run to a new file."""
    kind = Path((run.config()["data"].get("path") or "new.csv").removesuffix(".gz")).suffix
    return run.command("predict", f"input=new{kind}")
