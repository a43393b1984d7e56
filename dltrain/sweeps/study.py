"""What a random search or TPE tries next, asked of Optuna; trials stand in study.db, as Optuna's own tools read them.

What is proposed is a function of the seed, the number of the trial, and what had ended before: a search that was killed
proposes the same again.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dltrain.errors import ConfigError, DiskError, RunInUse
from dltrain.sweeps.records import Line
from dltrain.sweeps.space import Job, Params, Space, text

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

WAIT = 10  # seconds for which another program may hold the database


class Study:
    """The trials of one search as Optuna sees them; `of` is random or tpe."""

    def __init__(self, folder: Path, of: str, seed: int, space: Space, config: Mapping[str, Any]) -> None:
        try:
            import optuna
        except ModuleNotFoundError:
            raise ConfigError(f"sweep={of} needs pip install 'dltrain[sweep]'") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        if not space.swept:
            raise ConfigError(f"sweep={of} must have something to go through, as in 'optimizer.lr=interval(1e-4,1e-1)'")
        self.of, self.seed, self.path = of, seed, folder / "study.db"
        self.space: dict[str, BaseDistribution] = space.distributions(config)
        self.database: OptunaStudy | None = None

    def open(self, lines: Mapping[int, Line]) -> dict[int, Params]:
        """Take up study.db, if there is one; returns the trials that were under way, by number."""
        if not self.path.is_file():
            return {}
        import optuna

        with _told(self.path):
            self.database = optuna.load_study(study_name=None, storage=self._storage(), sampler=_none())
            for trial in self.database.get_trials(deepcopy=False):
                if not trial.state.is_finished() and trial.number + 1 in lines:  # killed before it was told
                    self._tell(lines[trial.number + 1])
            under_way = (trial for trial in self.database.get_trials(deepcopy=False) if not trial.state.is_finished())
            return {trial.number + 1: self._params(trial.params) for trial in under_way}

    def propose(self, number: int, lines: Mapping[int, Line], running: Collection[Job]) -> Params:
        """The values of a new trial, when `lines` have ended and others run."""
        import optuna

        memory = optuna.create_study(directions=_directions(lines.values()), sampler=self._sampler(number))
        jobs = {job.number: job.params for job in running}
        for other in sorted({*lines, *jobs} - {number}):
            memory.add_trial(self._ended(lines[other]) if other in lines else self._under_way(jobs[other]))
        params = self._params(memory.ask(self.space).params)
        if self.database:
            with _told(self.path):
                self.database.add_trial(self._under_way(params))
        return params

    def ended(self, line: Line, lines: Mapping[int, Line], running: Collection[Job]) -> None:
        """Keep what became of a trial; the first that has values says what a database must know to begin with."""
        if self.database:
            with _told(self.path):
                self._tell(line)
        elif line["values"]:
            self._begin(lines, running)

    def _begin(self, lines: Mapping[int, Line], running: Collection[Job]) -> None:
        import optuna

        part = self.path.with_name(f".{self.path.name}.part")
        part.unlink(missing_ok=True)
        with _told(self.path):
            made = optuna.create_study(
                study_name=self.path.parent.name,
                storage=self._storage(part),
                directions=_directions(lines.values()),
                sampler=_none(),
            )
            jobs = {job.number: job.params for job in running}
            for number in sorted({*lines, *jobs}):
                made.add_trial(self._ended(lines[number]) if number in lines else self._under_way(jobs[number]))
            _close(made)
            part.replace(self.path)
        self.open(lines)

    def close(self) -> None:
        if self.database:
            _close(self.database)

    def _storage(self, path: Path | None = None) -> Any:
        import optuna

        kwargs = {"connect_args": {"timeout": WAIT}}
        return optuna.storages.RDBStorage(f"sqlite:///{path or self.path}", engine_kwargs=kwargs)

    def _sampler(self, number: int) -> "BaseSampler":
        import optuna

        seed = int(hashlib.sha256(f"{self.seed} {number}".encode()).hexdigest()[:8], 16)
        if self.of == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed)

    def _params(self, params: Mapping[str, Any]) -> Params:
        return {key: text(params[key]) for key in self.space}

    def _drawn(self, params: Mapping[str, str]) -> dict[str, Any]:
        """Values as Optuna knows them."""
        from optuna.distributions import FloatDistribution, IntDistribution

        kinds: dict[type, Any] = {FloatDistribution: float, IntDistribution: int}
        return {key: kinds.get(type(kind), str)(params[key]) for key, kind in self.space.items()}

    def _under_way(self, params: Mapping[str, str]) -> "FrozenTrial":
        from optuna.trial import TrialState, create_trial

        return create_trial(state=TrialState.RUNNING, params=self._drawn(params), distributions=self.space)

    def _ended(self, line: Line) -> "FrozenTrial":
        from optuna.trial import TrialState, create_trial

        drawn: dict[str, Any] = {"params": self._drawn(line["params"]), "distributions": self.space}
        drawn["user_attrs"] = _about(line)
        values = [*line["values"].values()]
        if line["status"] == "finished" and values:
            return create_trial(values=values, **drawn)
        if line["status"] == "pruned" and values:
            return create_trial(state=TrialState.PRUNED, intermediate_values={line["evaluations"]: values[0]}, **drawn)
        return create_trial(state=TrialState.FAIL, **drawn)

    def _tell(self, line: Line) -> None:
        """Tell the database what became of a trial that it knows to be under way."""
        from optuna.trial import Trial

        assert self.database is not None
        ended, number = self._ended(line), line["trial"] - 1
        trial = Trial(self.database, self.database.get_trials(deepcopy=False)[number]._trial_id)
        for key, value in ended.user_attrs.items():
            trial.set_user_attr(key, value)
        for at, value in ended.intermediate_values.items():
            trial.report(value, at)
        finished = ended.state.name == "COMPLETE"
        self.database.tell(number, ended.values if finished else None, state=None if finished else ended.state)


def _about(line: Line) -> dict[str, Any]:
    return {key: line[key] for key in ("run", "message") if line[key]}


def _none() -> "BaseSampler":
    """The database's own sampler draws nothing."""
    import optuna

    return optuna.samplers.RandomSampler(seed=0)


def _directions(lines: Collection[Line]) -> Any:
    """Which way the values get better; what nobody knows yet does not matter yet."""
    known = next((line["better"] for line in lines if line["values"]), ["min"])
    return [f"{way}imize" for way in known]


def _close(study: "OptunaStudy") -> None:
    """Let go of the file."""
    storage: Any = study._storage
    storage = getattr(storage, "_backend", storage)
    storage.remove_session()
    storage.engine.dispose()


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What a database that cannot be read or written means to the user."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna tells of what it may change some day
            yield
    except (SQLAlchemyError, StorageInternalError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error.__cause__ or getattr(error, "orig", None) or error).split())
        if "locked" in reason:
            raise RunInUse(f"sweep {path.parent.name} is in use: another program holds {path} locked") from error
        if any(word in reason for word in ("full", "readonly", "unable to open", "disk I/O")):
            raise DiskError(f"cannot write {path}: {reason}") from error
        raise ConfigError(
            f"{path} must be the database of this sweep, got one that cannot be read ({reason})"
        ) from error
