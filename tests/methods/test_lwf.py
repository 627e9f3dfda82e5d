"""LwF: the old network's answers, and each argument."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from lifelong.errors import LifelongError
from lifelong.learning import ContinualLearner
from lifelong.methods import LwF
from lifelong.run.resume.journal import Journal

from .strangers import Stranger, Tagger, loader, params, tagged, trainer
from .test_arguments import Own, batches, fit, network


def divergence(old: Tensor, new: Tensor, temperature: float) -> Tensor:
    log_p, log_q = (x.div(temperature).log_softmax(-1) for x in (old, new))
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def stepped(method: LwF, module: Any, **also: Any) -> dict[str, Tensor]:
    """The parameters after one step of plain SGD."""
    fit(module, method, limit_train_batches=1, **also)
    return {name: p.clone() for name, p in params(module).items()}


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 5.0}], ids=str)
@pytest.mark.parametrize("weight", [1.0, 30.0])
@pytest.mark.parametrize("own", [False, True])
def test_a_step_goes_down_the_loss_and_the_divergence_from_the_old_answers(
    settings: dict[str, float], weight: float, own: bool
) -> None:
    method, journal = LwF(weight, **settings, consolidates=False), Journal()
    old, x, y = network(3), *batches(1)[0]
    holder: Any = Own()
    if own:
        holder = ContinualLearner(network(), lambda p: torch.optim.SGD(p, 0.1), ["a"])
        holder.method = method
        method.consolidate(old)
    else:
        holder.body.load_state_dict(old.state_dict())
        method.consolidate(holder)
        holder.body.load_state_dict(network().state_dict())
    expected = network()
    logits = expected(x)
    omega = divergence(old(x).detach(), logits, settings.get("temperature", 2.0))
    (cross_entropy(logits, y) + weight * omega).backward()
    came = stepped(method, holder, logger=[journal])
    for (_, p), q in zip(came.items(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, (q - 0.1 * q.grad).detach(), rtol=1e-9, atol=1e-12)
    (logged,) = [row for _, row in journal.entries if "train/penalty" in row]
    assert logged["train/penalty"] == pytest.approx(float(omega), rel=1e-6)
    assert logged["train/penalty_weighted"] == pytest.approx(weight * float(omega), rel=1e-6)


def test_without_change_of_the_network_nothing_is_added_at_the_first_step() -> None:
    free, held = Own(), Own()
    method = LwF(1e4, consolidates=False)
    method.consolidate(held)
    came, plain = stepped(method, held), stepped(LwF(0.0), free)
    for name, p in came.items():
        torch.testing.assert_close(p, plain[name], rtol=1e-9, atol=1e-12)
    # the second step is held
    moved, unheld = Own(), Own()
    method.consolidate(moved)
    fit(moved, method, limit_train_batches=2)
    fit(unheld, LwF(0.0), limit_train_batches=2)
    assert (moved.body[0].weight - unheld.body[0].weight).abs().max() > 1e-3


def normed(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Linear(7, 5)).double()


@pytest.mark.parametrize("own", [False, True])
def test_the_old_network_answers_in_eval_mode_and_leaves_no_trace(own: bool) -> None:
    means, x = [], batches(1)[0][0]
    for weight in (0.0, 1.0):
        method, journal = LwF(weight, consolidates=False), Journal()
        module: Any = Own()
        if own:
            module = ContinualLearner(normed(0), lambda p: torch.optim.SGD(p, 0.1), ["a"])
            module.method = method
        module.body = normed(3) if not own else module.network
        old = normed(3)
        method.consolidate(old if own else module)
        if not own:
            module.body = normed(0)
        kept = {name: t.clone() for name, t in method.state_dict()["network"].items()}
        fit(module, method, limit_train_batches=1, logger=[journal])
        means.append(module.body[1].running_mean.clone())
        assert module.body[1].training
        assert all(torch.equal(method.state_dict()["network"][n], t) for n, t in kept.items())
        if weight:
            expected = divergence(old.eval()(x), normed(0)(x), 2.0)
            first = next(row for _, row in journal.entries if "train/penalty" in row)
            assert first["train/penalty"] == pytest.approx(float(expected), rel=1e-6)
    assert torch.equal(means[0], means[1])


@pytest.mark.parametrize("stranger", ["classes", "words"])
def test_strangers_keep_their_answers(stranger: str) -> None:
    drifts, x = [], torch.randn(64, 6, dtype=torch.float64)
    for weight in (0.0, 20.0):
        module: Any = Stranger(norm=True) if stranger == "classes" else Tagger()
        tasks = [loader(t) if stranger == "classes" else tagged(t) for t in (0, 1)]
        if stranger == "words":
            x = torch.cat([batch["words"] for batch in tasks[1]])
        method = LwF(weight)
        own = module.training_step
        trainer(method).fit(module, tasks[0])
        module.eval()
        before = module(x).detach()
        module.train()
        trainer(method, max_epochs=8).fit(module, tasks[1])
        assert module.training_step == own
        module.eval()
        drifts.append(float(divergence(before, module(x).detach(), 1.0)))
    assert drifts[1] < 0.4 * drifts[0]


def test_positions_that_are_ignored_count_for_nothing() -> None:
    module, method = Tagger(), LwF(1.0, consolidates=False)
    method.consolidate(Tagger(seed=1))
    (batch, *_) = list(tagged())
    old, new = Tagger(seed=1)(batch["words"]), module(batch["words"])
    kept = batch["tags"] != -100
    assert not kept.all()
    whole = cross_entropy(new[kept], batch["tags"][kept]) + divergence(old[kept], new[kept], 2.0)
    journal = Journal()
    trainer(method, logger=[journal], log_every_n_steps=1).fit(module, tagged())
    first = next(row for _, row in journal.entries if "train/penalty" in row)
    total = first["train/task_loss"] + first["train/penalty_weighted"]
    assert total == pytest.approx(float(whole), rel=1e-9)


def test_an_output_layer_that_grew_is_held_in_the_classes_it_had() -> None:
    module, method = Stranger(classes=3), LwF(1.0)
    trainer(method).fit(module, loader())
    module.head = nn.Linear(8, 5).double()
    journal = Journal()
    trainer(method, logger=[journal], log_every_n_steps=1).fit(module, loader(1, classes=5))
    assert next(row["train/penalty"] for _, row in journal.entries if "train/penalty" in row) > 0


class YesOrNo(Stranger):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return binary_cross_entropy_with_logits(self(batch[0])[:, 0], (batch[1] > 0).double())


def test_yes_or_no_answers_are_softened_one_by_one() -> None:
    module, method = YesOrNo(), LwF(1.0, temperature=3.0, consolidates=False)
    other = YesOrNo(seed=2)
    method.consolidate(other)
    x = next(iter(loader()))[0]
    old, new = (m(x)[:, :1].detach() / 3 for m in (other, module))
    expected = divergence(torch.cat([old, 0 * old], 1), torch.cat([new, 0 * new], 1), 1.0)
    journal = Journal()
    trainer(method, logger=[journal], log_every_n_steps=1).fit(module, loader())
    first = next(row for _, row in journal.entries if "train/penalty" in row)
    assert first["train/penalty"] == pytest.approx(float(expected), rel=1e-9)


class Numbers(Stranger):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return mse_loss(self(batch[0])[:, 0], batch[1].double())


class Manual(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Unnamed(Stranger):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Numbers, "calls mse_loss, and LwF softens class probabilities; wanted cross_entropy"),
        (Manual, r"optimizes by itself .* return the loss, or take EWC"),
        (Unnamed, r"calls no loss function .* \(none came\); wanted cross_entropy"),
    ],
)
def test_what_has_no_class_probabilities_is_refused_before_the_first_step(
    module: Any, said: str
) -> None:
    one, it = trainer(LwF(1.0)), module()
    with pytest.raises(LifelongError, match=said) as error:
        one.fit(it, loader())
    assert "\n" not in str(error.value)
    assert one.global_step == 0
    assert "training_step" not in vars(it)


@pytest.mark.parametrize("wrong", [{"ewc_lambda": -1.0}, {"temperature": 0.0}])
def test_what_is_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; it must be a finite number"):
        LwF(**wrong)


def test_it_remembers_only_what_it_is_told_to() -> None:
    module, method = Own(), LwF(1.0, consolidates=False)
    fit(module, method)
    assert method.state_dict() == {"network": {}}
    fit(module, kept := LwF(1.0))
    assert all(torch.equal(kept.state_dict()["network"][n], p) for n, p in params(module).items())


class Asks(Stranger):
    """Looks, within its step, at a gradient that it makes by itself."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].clone().requires_grad_()
        self(x).square().sum().backward()
        assert x.grad is not None, "the step's own backward pass was swallowed"
        return super().training_step(batch, batch_idx)


def test_what_a_step_does_by_hand_goes_on_while_it_is_watched() -> None:
    one = trainer(LwF(1.0))
    one.fit(Asks(), loader())
    assert one.global_step == 8
