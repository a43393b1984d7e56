"""What Hydra knows of our sweeps, as hydra_plugins/dltrain_sweeps.py tells it: a sweeper, and a launcher with slots.

https://hydra.cc/docs/advanced/plugins/develop says how plugins are made.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher as HydraLauncher
from hydra.plugins.sweeper import Sweeper as HydraSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from dltrain.run import write_whole
from dltrain.sweeps.beside import side_by_side
from dltrain.sweeps.search import Search
from dltrain.sweeps.slots import spread
from dltrain.sweeps.space import Job, Space
from dltrain.sweeps.trial import Trial


class Sweeper(HydraSweeper):
    """Hands the launcher the trials of a search, or of any other task every combination of values."""

    config: DictConfig
    hydra_context: HydraContext
    launcher: HydraLauncher

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None) -> None:
        self.max_batch_size, self.params = max_batch_size, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config, self.task = hydra_context, config, task_function
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[list[JobReturn]]:
        """Run all trials; returns what became of each, by batches."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = [f"{key}={value}" for key, value in self.params.items()]
        space = Space(parser.parse_overrides([*given, *arguments]))
        search = self.task.search if isinstance(self.task, Trial) else None
        if search:
            search.begin(space, cast(dict[str, Any], OmegaConf.to_container(self.config)))
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "multirun.yaml", OmegaConf.to_yaml(self.config))
        if search and isinstance(self.launcher, Launcher):
            self.launcher.search = search
        jobs = search.jobs() if search else space.jobs()
        return [[returned for _, returned in sorted(batch, key=lambda pair: pair[0])] for batch in self._run(jobs)]

    def _run(self, jobs: Iterator[Job]) -> Iterator[list[tuple[int, JobReturn]]]:
        """What became of the jobs, by batches: one of our own launcher, which takes another job when a slot is free."""
        search = self.task.search if isinstance(self.task, Trial) else None
        take = search.take if search else _raise
        if isinstance(self.launcher, Launcher) and not self.max_batch_size:
            batch: list[tuple[int, JobReturn]] = []

            def taken(job: Job, returned: JobReturn) -> None:
                take(job, returned)
                batch.append((job.number, returned))

            self.launcher.go(jobs, taken)
            yield batch
            return
        size = self.max_batch_size or OmegaConf.select(self.config, "sweep.slots")
        while some := list(itertools.islice(jobs, size)):
            if search and not isinstance(self.launcher, Launcher):  # ours says so itself
                for job in some:
                    search.begins(job)
            all_returned = self.launcher.launch([job.words for job in some], initial_job_idx=some[0].number - 1)
            for job, returned in zip(some, all_returned, strict=True):
                take(job, returned)
            yield [(job.number, returned) for job, returned in zip(some, all_returned, strict=True)]


def _raise(job: Job, returned: JobReturn) -> None:
    """Raise what a job has raised."""
    _ = returned.return_value


class Launcher(HydraLauncher):
    """Runs jobs in this process one after the other, or with several slots each in a process of its own."""

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots
        self.search: Search | None = None  # of which the jobs are trials

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config, self.task = hydra_context, config, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run a batch of jobs; returns what became of them, in their order."""
        jobs = (Job(k, {}, tuple(words)) for k, words in enumerate(job_overrides, initial_job_idx + 1))
        done: dict[int, JobReturn] = {}
        self.go(jobs, lambda job, returned: done.update({job.number: returned}))
        return [done[number] for number in sorted(done)]

    def go(self, jobs: Iterator[Job], take: Callable[[Job, JobReturn], None]) -> None:
        """Run jobs, the next when a slot is free, and tell `take` what became of each when it has ended."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        search = self.search
        alone = functools.partial(run, context=self.hydra_context, task=self.task, config=self.config)
        if search and search.together:
            whole = functools.partial(composed, context=self.hydra_context, config=self.config)
            side_by_side(jobs, search, whole, alone, take)
            return
        jobs = map(search.begins, jobs) if search else jobs
        if self.slots > 1:
            logs = Path(str(self.config.hydra.sweep.dir)) / "logs"
            for job, returned in spread(jobs, self.slots, alone, logs, lambda: bool(search and search.stopped)):
                take(job, returned)
            return
        for job in jobs:
            with search.board.aside(job) if search else contextlib.nullcontext():
                returned = alone(job)
            take(job, returned)


def composed(job: Job, context: HydraContext, config: DictConfig) -> DictConfig:
    """The config of a job, with Hydra's own part."""
    found: DictConfig = context.config_loader.load_sweep_config(config, list(job.words))
    with open_dict(found):
        found.hydra.job.id = found.hydra.job.num = job.number - 1
    return found


def run(job: Job, context: HydraContext, task: TaskFunction, config: DictConfig) -> JobReturn:
    """Run a job in this process."""
    returned = run_job(
        task_function=task,
        config=composed(job, context, config),
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=context,
    )
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    return returned
