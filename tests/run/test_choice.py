"""The rules for the best λ, by hand."""

from dataclasses import replace

import pytest

from lifelong.errors import LifelongError
from lifelong.report.best import Candidate, Rule, candidate_of, mean_by_lambda
from lifelong.run import Summary

# before 0.98: what was lost is 58, 8, 0.5 and 0.2 points; the averages are 0.68, 0.93, 0.9275, 0.74
CURVE = [
    Candidate(0.0, 0.98, 0.40, 0.96),
    Candidate(10.0, 0.98, 0.90, 0.96),
    Candidate(1e3, 0.98, 0.975, 0.88),
    Candidate(1e5, 0.98, 0.978, 0.502),
]


def summary(old: float, new: float, test: float = 0.5) -> Summary:
    return Summary(
        benchmark="b",
        scenario="domain",
        method="ewc",
        method_title="EWC",
        has_lambda=True,
        ewc_lambda=100.0,
        seed=0,
        max_epochs=2,
        tasks=["first", "second"],
        data_source={},
        accuracy=[[test, test], [test, test]],
        untrained_accuracy=[test, test],
        average_accuracy=test,
        backward_transfer=test,
        forward_transfer=test,
        forgetting=test,
        retained={"first": test, "second": test},
        seconds={},
        curves=[
            {"val/first/accuracy": [0.8, 0.95]},
            {"retained/first": [0.99, old], "val/second/accuracy": [0.2, new]},
        ],
        parameters=1,
        versions={},
    )


def test_the_best_average_is_that_of_both_tasks() -> None:
    assert [c.average for c in CURVE] == pytest.approx([0.68, 0.93, 0.9275, 0.74])
    assert Rule("best_average").choose(CURVE) == CURVE[1]


@pytest.mark.parametrize(
    ("at_most_lost", "best"), [(100, 0.0), (8, 10.0), (7.9, 1e3), (0.5, 1e3), (0.3, 1e5)]
)
def test_most_new_takes_the_most_that_keeps_the_bound(at_most_lost: float, best: float) -> None:
    rule = Rule("most_new", at_most_lost)
    assert rule.choose(CURVE).ewc_lambda == best
    assert rule.keeps_its_bound(rule.choose(CURVE))


def test_where_no_lambda_keeps_the_bound_the_one_that_loses_least_is_nearest() -> None:
    rule = Rule("most_new", 0.0)
    best = rule.choose(CURVE)
    assert best.ewc_lambda == 1e5
    assert best.lost == pytest.approx(0.2)
    assert rule.score(best) == pytest.approx(-0.2)
    assert not rule.keeps_its_bound(best)


def test_of_equals_the_smallest_lambda_is_chosen_in_any_order() -> None:
    equals = [replace(CURVE[1], ewc_lambda=x) for x in (30.0, 10.0, 20.0)]
    for rule in (Rule("best_average"), Rule("most_new", 50.0), Rule("most_new", 1.0)):
        assert rule.choose(equals).ewc_lambda == 10.0


def test_seeds_count_by_their_mean_and_not_by_the_luckiest() -> None:
    lucky, unlucky = Candidate(1.0, 0.9, 0.95, 0.99), Candidate(1.0, 0.8, 0.45, 0.59)
    steady = Candidate(2.0, 0.9, 0.8, 0.8)
    assert mean_by_lambda([steady, lucky, unlucky]) == [
        pytest.approx(Candidate(1.0, 0.85, 0.70, 0.79).__dict__) == c.__dict__ and c
        for c in mean_by_lambda([lucky, unlucky])
    ] + [steady]
    assert Rule("best_average").choose([lucky, unlucky, steady]) == steady


def test_with_three_tasks_the_two_old_ones_count_twice() -> None:
    assert Candidate(1.0, 0.9, old=0.6, new=0.9, old_tasks=2).average == pytest.approx(0.7)


def test_a_run_is_judged_by_the_last_validation_figures_whatever_its_test_figures() -> None:
    for test in (0.0, 0.5, 1.0):
        assert candidate_of(summary(0.7, 0.8, test)) == Candidate(100.0, 0.95, 0.7, 0.8)


def test_several_old_tasks_are_averaged() -> None:
    three = replace(
        summary(0.7, 0.8),
        tasks=["a", "b", "c"],
        curves=[
            {"val/a/accuracy": [0.9]},
            {"val/b/accuracy": [0.7], "retained/a": [0.1]},
            {"val/c/accuracy": [0.6], "retained/a": [0.5], "retained/b": [0.4]},
        ],
    )
    found = candidate_of(three)
    assert (found.before, found.old, found.new) == pytest.approx((0.8, 0.45, 0.6))
    assert found.average == pytest.approx((0.5 + 0.4 + 0.6) / 3)


def test_what_cannot_be_chosen_from_is_refused_with_the_cure() -> None:
    with pytest.raises(LifelongError, match=r"choice.rule is best; type choice.rule=best_average"):
        Rule("best")
    for points in (-1.0, float("nan"), True, "much"):
        with pytest.raises(LifelongError, match=r"choice.at_most_lost is .*: type"):
            Rule("most_new", points)  # type: ignore[arg-type]
    with pytest.raises(LifelongError, match="no run was finished"):
        Rule().choose([])
    alone = replace(summary(0.7, 0.8), tasks=["first"], curves=[{"val/first/accuracy": [0.9]}])
    with pytest.raises(LifelongError, match=r"on first alone.*benchmark=mnist_usps"):
        candidate_of(alone)
