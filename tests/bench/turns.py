"""Contenders in turn: A B C, A B C, … so that variations over time affect all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

from .child import FAULTS, describe, time_limit
from .contenders import OURS


@dataclass(frozen=True)
class Measure:
    """A measure: its name, its format, and whether more or less is better."""

    title: str
    show: Callable[[float], str]
    better: str


Sample = Mapping[Measure, float]
Attempt = Callable[[], Sample]


@dataclass(frozen=True)
class Experiment:
    """An attempt for each contender, with a row for each of its measures.

    `ways` are the names of the attempts that are ours, each with rows of its own.
    """

    name: str
    subject: str
    measures: tuple[Measure, ...]
    attempts: Mapping[str, Attempt]
    limit: str | Mapping[Measure, str] | None = None  # the contender that is the limit
    ways: tuple[str, ...] = (OURS,)

    def limit_of(self, measure: Measure) -> str | None:
        """Return the name of the contender that is the limit of a measure."""
        if isinstance(self.limit, Mapping):
            return self.limit.get(measure)
        return self.limit


@dataclass
class Result:
    """The result of an experiment."""

    experiment: Experiment
    medians: dict[str, dict[Measure, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def take_turns(experiment: Experiment, runs: int, seconds: float) -> Result:
    """Run an experiment: a warm-up, then `runs` turns. A contender that fails or is late is out."""
    result = Result(experiment)
    samples: dict[str, list[Sample]] = {name: [] for name in experiment.attempts}
    for _ in range(1 + runs):
        for name, attempt in experiment.attempts.items():
            if name not in result.failures:
                try:
                    with time_limit(seconds):
                        samples[name].append(attempt())
                except FAULTS as error:
                    result.failures[name] = describe(error)
    result.medians = {
        name: _medians(taken[1:]) for name, taken in samples.items() if name not in result.failures
    }
    return result


def _medians(samples: list[Sample]) -> dict[Measure, float]:
    return {measure: median(sample[measure] for sample in samples) for measure in samples[0]}
