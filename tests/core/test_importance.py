"""What an importance is made of, and its way into a file and back."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lifelong.core import (
    DiagonalImportance,
    Importance,
    KroneckerFactors,
    KroneckerPenalty,
    Penalty,
    QuadraticPenalty,
    fisher_diagonal,
    from_plain,
    kronecker_factors,
    to_plain,
)


def importances() -> list[Importance]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    batches = [(torch.randn(9, 4), torch.randint(3, (9,)))]
    return [fisher_diagonal(net, batches), kronecker_factors(net, batches)]


def test_both_estimators_and_both_penalties_keep_the_protocols() -> None:
    diagonal, factors = importances()
    assert isinstance(diagonal, DiagonalImportance)
    assert isinstance(factors, KroneckerFactors)
    assert isinstance(diagonal, Importance)
    assert isinstance(factors, Importance)
    for penalty in (QuadraticPenalty(), KroneckerPenalty()):
        assert isinstance(penalty, Penalty)


def test_an_importance_comes_back_from_a_file_that_is_not_trusted(tmp_path: Path) -> None:
    for importance in importances():
        torch.save(to_plain(importance), tmp_path / "importance.pt")
        back = from_plain(torch.load(tmp_path / "importance.pt", weights_only=True))
        assert type(back) is type(importance)
        one, other = importance.tensors(), back.tensors()
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_plain_dictionary_counts_as_a_diagonal() -> None:
    content = to_plain({"w": torch.ones(2)})
    assert content["kind"] == "diagonal"
    assert from_plain(content).traces() == {"w": 2.0}


def test_what_is_of_another_kind_is_refused() -> None:
    class Other(DiagonalImportance):
        pass

    with pytest.raises(ValueError, match="the importance is a Other"):
        to_plain(Other({}))
    with pytest.raises(ValueError, match="kind of importance is 'x'"):
        from_plain({"kind": "x"})


def test_the_traces_add_up_to_the_trace_of_the_whole() -> None:
    diagonal, factors = importances()
    assert list(diagonal.traces()) == list(diagonal.tensors())
    assert isinstance(factors, KroneckerFactors)
    by_hand = {
        name: float(torch.kron(G, A).double().diagonal().sum()) for name, (A, G) in factors.items()
    }
    by_hand |= {name: float(f.sum()) for name, f in factors.diagonal.items()}
    assert factors.traces() == pytest.approx(by_hand, rel=1e-5)
    assert factors.trace() == pytest.approx(sum(by_hand.values()), rel=1e-5)


def test_only_importances_of_single_parameters_are_shown_as_such() -> None:
    params = {"w": torch.ones(2, 3)}
    single = QuadraticPenalty()
    single.fold(params, {"w": 2 * torch.ones(2, 3)})
    assert single.single_importances()["w"].sum().item() == 12.0
    assert torch.equal(single.single_anchors()["w"], params["w"])
    together = KroneckerPenalty()
    together.fold({"weight": params["w"]}, KroneckerFactors({"": (torch.eye(3), torch.eye(2))}))
    assert together.single_importances() == together.single_anchors() == {}
