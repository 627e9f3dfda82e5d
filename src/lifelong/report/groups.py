"""Runs that differ in their seed alone, and their means with standard errors."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lifelong.report.accuracies import columns, final_test, final_validation, old_mean
from lifelong.report.best import Candidate, Rule, candidate_of, mean_by_lambda
from lifelong.report.names import label
from lifelong.report.numbers import Mean, as_typed, mean_of, means
from lifelong.report.results import Run
from lifelong.run.summary import Summary


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
        name = self.summaries[0].method_title
        return f"{name} ({self.setting})" if self.setting else name

    @property
    def has_lambda(self) -> bool:
        """Whether the method has a λ."""
        return self.summaries[0].has_lambda

    @property
    def label(self) -> str:
        """The family, with λ where the method has one."""
        return label(self.family, self.ewc_lambda, has_lambda=self.has_lambda)

    @property
    def lambda_cell(self) -> str:
        """λ as a table shows it."""
        return as_typed(self.ewc_lambda) if self.has_lambda else "–"

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
        return mean_of([figure(summary) for summary in self.summaries])

    @property
    def figures(self) -> dict[str, Mean]:
        """What a table has of it: heading → mean over seeds, on test and on validation images."""
        return {
            f"{name} {images}": mean
            for images, read in (("test", final_test), ("validation", final_validation))
            for name, mean in means([columns(read(one)) for one in self.summaries]).items()
        }

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
    return old_mean(final_test(summary))


def new_test(summary: Summary) -> float:
    """The accuracy on the new task's test images at the end.

    Args:
        summary: of a run.

    Returns:
        A fraction.
    """
    return summary.accuracy[-1][-1]


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Group runs by all but their seed.

    Args:
        runs: over the same tasks.

    Returns:
        By family, and by λ within it; methods without λ come last.
    """
    found: dict[tuple[str, float, str], list[Run]] = {}
    for run in runs:
        key = (run.summary.method, run.summary.ewc_lambda, run.setting)
        found.setdefault(key, []).append(run)
    groups = [Group(*key, same) for key, same in found.items()]
    return sorted(
        groups, key=lambda g: (not g.has_lambda, g.family.casefold(), g.method, g.ewc_lambda)
    )


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
