"""Points that Optuna proposes: a search for the best of several objectives.

A round of points is asked for, computed by any number of workers, and told, in the order in which it was
asked for; so the points do not depend on the workers. An interrupted search begins again from its seed and
finds the points that it computed before.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sim.sweep.space import Axis, Choices, Space
from spec.errors import InputError

if TYPE_CHECKING:
    from sim.sweep.run import Runner
    from sim.sweep.store import Store

MAX_ASKED = 20
"""Proposals for each point that is wanted: some repeat others, or break constraints."""
Values = tuple[float, ...] | None


def search(space: Space, runner: Runner, store: Store) -> None:
    """Compute the points of a search, each once, in the order in which they were first proposed."""
    from sim.sweep.run import chunks_of

    try:
        import optuna
    except ImportError:
        raise InputError("search needs optuna: pip install 'expertbank[search]'", key="method") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            directions=["minimize" if sense == "min" else "maximize" for sense in space.objectives.values()],
            sampler=_sampler(space, optuna),
        )
    distributions = {str(number): _distribution(axis, optuna) for number, axis in enumerate(space.axes)}
    known: dict[Choices, Values] = {}
    asked, chunk = 0, 0
    while len(known) < (space.points if not space.grid_size else min(space.points, space.grid_size)):
        if asked >= MAX_ASKED * space.points:
            break
        trials = [study.ask(distributions) for _ in range(space.population)]
        asked += len(trials)
        proposed = [_choices(space, trial.params) for trial in trials]
        new = [one for one in dict.fromkeys(proposed) if one not in known and space.allowed(one)]
        new = new[: space.points - len(known)]
        chunks = list(chunks_of(space, new, chunk, len(known)))
        runner.run(chunks)
        for done in chunks:
            known.update(zip(done.points, _told(space, store, done.number), strict=True))
        chunk += len(chunks)
        for trial, one in zip(trials, proposed, strict=True):
            values = known.get(one)
            if values is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, values)
    if not known:
        raise InputError(f"leave no point among {asked} proposed", key="constraints")


def _sampler(space: Space, optuna: Any) -> Any:
    if space.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=space.seed % (1 << 32), multivariate=True)
    return optuna.samplers.NSGAIISampler(seed=space.seed % (1 << 32), population_size=space.population)


def _distribution(axis: Axis, optuna: Any) -> Any:
    """Return what an axis is for Optuna: places of values where these have an order, else names of places."""
    if axis.continuous:
        return optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)
    if all(type(value) in (int, float) for values in axis.shown for value in values):
        return optuna.distributions.IntDistribution(0, len(axis.values) - 1)
    return optuna.distributions.CategoricalDistribution(range(len(axis.values)))


def _choices(space: Space, params: dict[str, Any]) -> Choices:
    return tuple(params[str(number)] for number in range(len(space.axes)))


def _told(space: Space, store: Store, chunk: int) -> Sequence[Values]:
    """Return the objectives of a chunk's points; None of one that has not all of them."""
    columns = store.read(chunk).select(list(space.objectives)).to_pydict()
    rows = zip(*columns.values(), strict=True)
    return [None if None in row else tuple(float(value) for value in row) for row in rows]
