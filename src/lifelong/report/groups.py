"""Runs that differ in their seed alone, and their means with standard errors."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean

from lifelong.report.best import Candidate, Rule, candidate_of, mean_by_lambda
from lifelong.report.numbers import as_typed
from lifelong.report.results import Run
from lifelong.report.table import METHODS
from lifelong.report.trade_off import standard_error
from lifelong.run.summary import Summary

UNHELD = ("finetune", "joint")  # methods without a penalty, whose λ says nothing


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Args:
        value: in per cent.
        error: the standard error of the mean in points; 0 for a single seed.
        count: how many seeds.
    """

    value: float
    error: float
    count: int

    def __str__(self) -> str:
        """What a table shows.

        Returns:
            ``mean ± standard error``; for a single seed the value alone.
        """
        if self.count == 1:
            return f"{self.value:.2f}"
        return f"{self.value:.2f} ± {self.error:.2f}"


@dataclass(frozen=True)
class Group:
    """One point of a report.

    Args:
        method: as on the command line.
        ewc_lambda: λ.
        setting: what else sets it apart, in the words of the command line.
        runs: one per seed.
    """

    method: str
    ewc_lambda: float
    setting: str
    runs: list[Run]

    @property
    def family(self) -> str:
        """The method's name with its setting: what a curve over λ stands for."""
        name = METHODS.get(self.method, self.method)
        return f"{name} ({self.setting})" if self.setting else name

    @property
    def label(self) -> str:
        """The family, with λ where the method has one."""
        if self.method in UNHELD:
            return self.family
        return f"{self.family}, λ = {as_typed(self.ewc_lambda)}"

    @property
    def summaries(self) -> list[Summary]:
        """One per seed."""
        return [run.summary for run in self.runs]

    @property
    def seeds(self) -> list[int]:
        """In order."""
        return sorted(summary.seed for summary in self.summaries)

    @property
    def candidate(self) -> Candidate:
        """What validation images say of it, as the mean over seeds."""
        return mean_by_lambda(candidate_of(summary) for summary in self.summaries)[0]

    def mean(self, figure: Callable[[Summary], float]) -> Mean:
        """The mean of a figure over seeds.

        Args:
            figure: a fraction, from a summary.

        Returns:
            In per cent.
        """
        values = [100 * figure(summary) for summary in self.summaries]
        return Mean(fmean(values), standard_error(values), len(values))

    @property
    def command(self) -> str:
        """What to type to have it again, all seeds."""
        command = self.runs[0].command.rpartition(" seed=")[0]
        if len(self.runs) == 1:
            return f"{command} seed={self.seeds[0]}"
        words = command.removeprefix("lifelong-train")
        return f"lifelong-train -m{words} seed={','.join(map(str, self.seeds))}"


def old_test(summary: Summary) -> float:
    """The accuracy on the old tasks' test images at the end.

    Args:
        summary: of a run over at least two tasks.

    Returns:
        A fraction; the mean where several tasks are old.
    """
    return fmean(summary.accuracy[-1][:-1])


def new_test(summary: Summary) -> float:
    """The accuracy on the new task's test images at the end.

    Args:
        summary: of a run.

    Returns:
        A fraction.
    """
    return summary.accuracy[-1][-1]


def old_validation(summary: Summary) -> float:
    """The accuracy on the old tasks' validation images at the end.

    Args:
        summary: of a run over at least two tasks.

    Returns:
        A fraction; the mean where several tasks are old.
    """
    return candidate_of(summary).old


def new_validation(summary: Summary) -> float:
    """The accuracy on the new task's validation images at the end.

    Args:
        summary: of a run.

    Returns:
        A fraction.
    """
    return candidate_of(summary).new


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Group runs by all but their seed.

    Args:
        runs: over the same tasks.

    Returns:
        By family, and by λ within it; methods in the order of ``METHODS``.
    """
    found: dict[tuple[str, float, str], list[Run]] = {}
    for run in runs:
        key = (run.summary.method, run.summary.ewc_lambda, run.setting)
        found.setdefault(key, []).append(run)
    order = list(METHODS)

    def place(key: tuple[str, float, str]) -> tuple[int, str, str, float]:
        method, ewc_lambda, setting = key
        known = order.index(method) if method in order else len(order)
        return (known, method, setting, ewc_lambda)

    return [
        Group(method, ewc_lambda, setting, found[method, ewc_lambda, setting])
        for method, ewc_lambda, setting in sorted(found, key=place)
    ]


def families(groups: Iterable[Group]) -> dict[str, list[Group]]:
    """The groups by what a curve over λ stands for.

    Args:
        groups: in order.

    Returns:
        Family → its groups, by λ.
    """
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.family, []).append(group)
    return found


def chosen(groups: Iterable[Group], rule: Rule) -> list[Group]:
    """The group of each family that a rule chooses on validation images.

    Args:
        groups: over at least two tasks.
        rule: how to choose.

    Returns:
        One group per family.
    """
    best = []
    for same in families(groups).values():
        winner = rule.choose(group.candidate for group in same).ewc_lambda
        best.append(next(group for group in same if group.ewc_lambda == winner))
    return best
