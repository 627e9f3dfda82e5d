"""Which λ is best: rules over what each kept and gained, on validation images alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from lifelong.errors import LifelongError
from lifelong.report.names import mean_of_old
from lifelong.report.numbers import as_typed, mean_of
from lifelong.run.summary import Summary


@dataclass(frozen=True)
class Candidate:
    """What one λ did, in fractions of validation images.

    Args:
        ewc_lambda: λ.
        before: on the old task right after it was learnt; the mean where several are old.
        old: on the same after the last task.
        new: on the last task.
        old_tasks: the number of tasks that are old.
    """

    ewc_lambda: float
    before: float
    old: float
    new: float
    old_tasks: int = 1

    @property
    def average(self) -> float:
        """The mean accuracy over all tasks."""
        return (self.old_tasks * self.old + self.new) / (self.old_tasks + 1)

    @property
    def lost(self) -> float:
        """What the old task lost, in points (per cent); negative if it gained."""
        return 100 * (self.before - self.old)

    @property
    def words(self) -> str:
        """What it kept and gained."""
        mean = mean_of_old(self.old_tasks)
        kept = f"kept {100 * self.old:.2f} %" + (f" ({mean})" if mean else "")
        return f"{kept}, new {100 * self.new:.2f} %"


@dataclass(frozen=True)
class Rule:
    r"""A score for each λ; the best has the highest.

    - ``best_average``: the mean accuracy over all tasks.
    - ``most_new``: the accuracy on the new task if the old lost at most x points; otherwise
      x − lost, which is negative: whatever keeps the bound is before whatever breaks it, and of
      those that break it the one that loses least is first.

    Args:
        name: ``best_average`` or ``most_new``.
        at_most_lost: x, in points (per cent); ``most_new`` alone reads it.

    Raises:
        LifelongError: when the name is unknown or x negative or not finite.

    Example:
        >>> rivals = [Candidate(10.0, 0.98, 0.90, 0.96), Candidate(1e3, 0.98, 0.975, 0.87)]
        >>> [round(c.average, 4) for c in rivals]
        [0.93, 0.9225]
        >>> Rule("best_average").choose(rivals).ewc_lambda
        10.0
        >>> Rule("most_new", at_most_lost=1.0).choose(rivals).ewc_lambda
        1000.0
        >>> [round(Rule("most_new", at_most_lost=1.0).score(c), 4) for c in rivals]
        [-7.0, 0.87]
    """

    name: str = "best_average"
    at_most_lost: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in ("best_average", "most_new"):
            raise LifelongError(
                f"choice.rule is {self.name}; type choice.rule=best_average or choice.rule=most_new"
            )
        points = self.at_most_lost
        numeric = isinstance(points, int | float) and not isinstance(points, bool)
        if not numeric or not 0 <= points <= 100:
            raise LifelongError(
                f"choice.at_most_lost is {points}; it must be points of accuracy from 0 to 100: "
                "type choice.at_most_lost=1"
            )

    @property
    def words(self) -> str:
        """The rule in words."""
        if self.name == "best_average":
            return "the best average over the tasks"
        return f"most of the new task while the old loses at most {self.at_most_lost:g} points"

    def score(self, candidate: Candidate) -> float:
        """How good a λ is; the scale is explained above.

        Args:
            candidate: what it did.

        Returns:
            A number; higher is better.
        """
        if self.name == "best_average":
            return candidate.average
        # A difference of two fractions of images has rounding noise below any single image's share.
        excess = candidate.lost - self.at_most_lost
        return candidate.new if excess <= 1e-9 else -excess

    def keeps_its_bound(self, candidate: Candidate) -> bool:
        """Whether a choice does what the rule says, or is only the nearest to it.

        Args:
            candidate: the one that was chosen.

        Returns:
            False if ``most_new`` found no λ that loses so little.
        """
        return self.name == "best_average" or self.score(candidate) >= 0

    def choose(self, candidates: Iterable[Candidate]) -> Candidate:
        """The best λ; of equals the smallest, which leaves the network most freedom.

        Args:
            candidates: one or more; several seeds of one λ count by their mean.

        Returns:
            The best, as the mean over its seeds.

        Raises:
            LifelongError: when there is none.
        """
        means = mean_by_lambda(candidates)
        if not means:
            raise LifelongError("no λ to choose from: no run was finished; see the errors above")
        return max(means, key=lambda candidate: (self.score(candidate), -candidate.ewc_lambda))


def mean_by_lambda(candidates: Iterable[Candidate]) -> list[Candidate]:
    """One candidate for each λ, the mean over its seeds.

    Args:
        candidates: any number, of the same tasks.

    Returns:
        By λ, the smallest first.
    """
    found: dict[float, list[Candidate]] = {}
    for candidate in candidates:
        found.setdefault(candidate.ewc_lambda, []).append(candidate)
    return [
        Candidate(
            ewc_lambda,
            before=fmean(one.before for one in same),
            old=fmean(one.old for one in same),
            new=fmean(one.new for one in same),
            old_tasks=same[0].old_tasks,
        )
        for ewc_lambda, same in sorted(found.items())
    ]


def candidate_of(summary: Summary) -> Candidate:
    """What a finished run's λ did, from its validation curves; the test sets are not read.

    Args:
        summary: of a run over at least two tasks.

    Returns:
        The candidate.
    """
    *before, last = summary.curves
    known = [
        curves[f"val/{t}/accuracy"][-1] for t, curves in zip(summary.tasks, before, strict=False)
    ]
    figures = {name: values[-1] for name, values in last.items()}
    return candidate_at(summary.ewc_lambda, summary.tasks, known, figures)


def choose_from(summaries: Iterable[Summary], rule: Rule) -> Candidate:
    """The best λ of a sweep, from validation images alone.

    Args:
        summaries: any number of seeds for each λ.
        rule: how to choose.

    Returns:
        The best, as the mean over its seeds.
    """
    return rule.choose(candidate_of(summary) for summary in summaries)


def candidate_at(
    ewc_lambda: float,
    tasks: Sequence[str],
    before: Sequence[float],
    figures: Mapping[str, float],
) -> Candidate:
    """What a λ did up to some epoch of the last task.

    Args:
        ewc_lambda: λ.
        tasks: the names, in order; at least two.
        before: for each old task the accuracy right after it was learnt.
        figures: ``retained/<task>`` for the old tasks and ``val/<task>/accuracy`` for the last.

    Returns:
        The candidate.

    Raises:
        LifelongError: when there is only one task, so that nothing can be retained.
    """
    if len(tasks) < 2:
        raise LifelongError(
            f"λ cannot be chosen on {tasks[0]} alone: it weighs what was learnt before; "
            "type benchmark=mnist_usps"
        )
    return Candidate(
        ewc_lambda,
        before=fmean(before),
        old=fmean(figures[f"retained/{task}"] for task in tasks[:-1]),
        new=figures[f"val/{tasks[-1]}/accuracy"],
        old_tasks=len(tasks) - 1,
    )


def verdict(best: Candidate, rule: Rule) -> str:
    """The choice in one sentence.

    Args:
        best: what the rule chose.
        rule: how it chose.

    Returns:
        The sentence.
    """
    ewc_lambda, mean = as_typed(best.ewc_lambda), mean_of_old(best.old_tasks)
    together = f"{mean}, " if mean else ""
    if not rule.keeps_its_bound(best):
        return (
            f"no λ has {rule.words}: {ewc_lambda} loses least, {best.lost:.2f} points "
            f"({together}validation images)"
        )
    return (
        f"best λ = {ewc_lambda} by the rule: {rule.words}. It kept {100 * best.old:.2f} % "
        f"({together}lost {best.lost:.2f} points) and reached {100 * best.new:.2f} % on the new "
        "task, on validation images; the test images played no part"
    )


@dataclass(frozen=True)
class TradeOffPoint:
    """One λ: accuracies on validation images in per cent, mean and standard error over seeds.

    Args:
        ewc_lambda: λ.
        old: on the old task, after the last; the mean where several are old.
        new: on the last task.
        old_error: the standard error of ``old``; 0 for one seed.
        new_error: the standard error of ``new``; 0 for one seed.
        old_tasks: the number of tasks that are old.
    """

    ewc_lambda: float
    old: float
    new: float
    old_error: float = 0.0
    new_error: float = 0.0
    old_tasks: int = 1

    @property
    def average(self) -> float:
        """The mean accuracy over all tasks."""
        return (self.old_tasks * self.old + self.new) / (self.old_tasks + 1)


def trade_off(summaries: Iterable[Summary]) -> list[TradeOffPoint]:
    """The points of a sweep over λ, by λ, from validation images alone.

    Args:
        summaries: runs over the same tasks, with any number of seeds for each λ.

    Returns:
        One point per λ, the smallest first. The official test sets take no part.
    """
    found: dict[float, list[Candidate]] = {}
    for summary in summaries:
        found.setdefault(summary.ewc_lambda, []).append(candidate_of(summary))
    points = []
    for ewc_lambda, same in sorted(found.items()):
        old, new = mean_of([one.old for one in same]), mean_of([one.new for one in same])
        count = same[0].old_tasks
        points.append(TradeOffPoint(ewc_lambda, old.value, new.value, old.error, new.error, count))
    return points
