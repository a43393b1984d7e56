"""Trials that differ in numbers and seeds alone, trained side by side in this process."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from dltrain.commands import report
from dltrain.errors import ConfigError, Stopped
from dltrain.report.terminal import Terminal
from dltrain.run import Config
from dltrain.sweeps.space import Job
from dltrain.together.groups import MOST, groups

if TYPE_CHECKING:
    from dltrain.sweeps.search import Search

Take = Callable[[Job, JobReturn], None]
Told = tuple[DictConfig, Config, list[str]]  # what Hydra composed of a job; the run's config, and what was typed


def side_by_side(
    jobs: Iterator[Job],
    search: "Search",
    composed: Callable[[Job], DictConfig],
    alone: Callable[[Job], JobReturn],
    take: Take,
) -> None:
    """Run jobs, those together that can go together; `take` is told what became of each when it has ended."""
    while some := list(itertools.islice(jobs, MOST)):
        known = [_told(search, composed(job)) for job in some]
        fit = [number for number, told in enumerate(known) if told]
        sets = [[fit[k] for k in group] for group in groups([told[1] for told in known if told])]
        sets += [[number] for number, told in enumerate(known) if not told]
        for group in sorted(sets):
            if search.over or search.stopped:
                return
            chosen, told = [some[k] for k in group], [one for k in group if (one := known[k])]
            for job in chosen:
                search.begins(job)
            with search.board.aside(chosen[0]):
                if len(group) > 1:
                    _together(chosen, told, search, take)
                    continue
                returned = alone(chosen[0])
            take(chosen[0], returned)


def _told(search: "Search", cfg: DictConfig) -> Told | None:
    """A trial's config and words; None if it is wrong, as its run will say."""
    try:
        return cfg, *search.trial.told(cfg, cfg.hydra)
    except ConfigError:
        return None


def _together(jobs: Sequence[Job], told: Sequence[Told], search: "Search", take: Take) -> None:
    """Train jobs of one group; raises what `take` raises once all have been let go of."""
    from dltrain.together.train import train_together

    names: dict[int, str] = {}
    raised: list[Exception] = []

    def ending(number: int, code: int, message: str) -> None:
        cfg, config, _ = told[number]
        if not code and config["report"]:
            folder = Path(config["output_root"]).expanduser() / names[number]
            report.write(folder, report.run_page, Terminal())
        returned = JobReturn(overrides=list(jobs[number].words), cfg=cfg, status=JobStatus.COMPLETED)
        returned.return_value = search.trial.outcome(config, code, message, names.get(number))
        if not raised:
            try:
                take(jobs[number], returned)
            except Exception as error:  # the others go on: theirs are runs of their own
                raised.append(error)

    forced = search.settings["together"] is True
    configs, words = [config for _, config, _ in told], [words for _, _, words in told]
    try:
        with search.trial.opening():
            train_together(configs, words, names.__setitem__, ending, forced, quiet=True)
    except Stopped:  # before any of them began
        search.stopped = True
    if raised:
        raise raised[0]
