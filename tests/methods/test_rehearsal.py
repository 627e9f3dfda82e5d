"""Replay, DER++, A-GEM: against steps made by hand, and each argument."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parameter import Parameter

from lifelong.errors import LifelongError
from lifelong.learning import ContinualLearner
from lifelong.methods import AGEM, DERpp, Replay
from lifelong.methods.agem import project_
from lifelong.run.resume.journal import Journal

from .strangers import Stranger, Tagger, loader, params, tagged, trainer
from .test_arguments import Batches, Own, batches, fit, network

KINDS: tuple[Any, ...] = (Replay, DERpp, AGEM)
every_kind = pytest.mark.parametrize("kind", KINDS)


def filled(kind: Any, seed: int = 3, **settings: Any) -> Any:
    """A method that keeps some of batches(9), with the logits of another network."""
    method = kind(**{"buffer_size": 12, "minibatch_size": 5, "consolidates": False, **settings})
    other = Own()
    other.body = network(seed)
    method.consolidate(other, batches(9))
    return method


def examples(method: Any, which: int = 0, step: int = 0) -> tuple[Tensor, Tensor]:
    places = method.buffer.draw(method.minibatch_size, step, 0, which)
    return method.buffer.columns[0][places], method.buffer.columns[1][places]


def whole(data: Batches) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])


def holder(own: bool, method: Any) -> Any:
    if not own:
        return Own()
    learner = ContinualLearner(network(), lambda p: torch.optim.SGD(p, 0.1), ["a"])
    learner.method = method
    return learner


def gradient(net: nn.Module, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("own", [False, True])
def test_replay_steps_on_one_batch_of_both(own: bool) -> None:
    method, net = filled(Replay), network()
    module = holder(own, method)
    (x, y), (u, v) = batches(1)[0], examples(method)
    assert len(u) == 5
    loss = cross_entropy(net(torch.cat([x, u])), torch.cat([y, v]))
    expected = flat(net) - 0.1 * gradient(net, loss)
    fit(module, method, limit_train_batches=1)
    torch.testing.assert_close(flat(module), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    "weights", [{}, {"alpha": 0.0}, {"beta": 0.0}, {"alpha": 3.0}, {"beta": 2.0}], ids=str
)
def test_derpp_steps_on_the_logits_and_the_labels_as_they_were(
    own: bool, weights: dict[str, float]
) -> None:
    method, net, journal = filled(DERpp, **weights), network(), Journal()
    module = holder(own, method)
    (x, y), (u, _), (v, w) = batches(1)[0], examples(method, 0), examples(method, 1)
    assert u.shape == v.shape
    assert not torch.equal(u, v)
    alpha, beta = weights.get("alpha", 1.0), weights.get("beta", 0.5)
    then = network(3)(u).detach()
    more = alpha * (net(u) - then).square().mean() + beta * cross_entropy(net(v), w)
    expected = flat(net) - 0.1 * gradient(net, cross_entropy(net(x), y) + more)
    fit(module, method, limit_train_batches=1, logger=[journal])
    torch.testing.assert_close(flat(module), expected, rtol=1e-9, atol=1e-12)
    (logged,) = [row for _, row in journal.entries if "train/penalty" in row]
    assert logged["train/penalty"] == pytest.approx(float(more), rel=1e-6)


@pytest.mark.parametrize("kind", [Replay, DERpp])
def test_each_micro_batch_has_old_examples_of_its_own(kind: Any) -> None:
    method, net, module = filled(kind), network(), Own()
    total: Any = 0.0
    for index, (x, y) in enumerate(batches(1)[:2]):
        draws = [method.buffer.draw(5, 0, index, which) for which in (0, 1)]
        (u, v), (a, b) = ([c[places] for c in method.buffer.columns[:2]] for places in draws)
        if kind is Replay:
            total = total + cross_entropy(net(torch.cat([x, u])), torch.cat([y, v])) / 2
            continue
        more = (net(u) - network(3)(u).detach()).square().mean() + 0.5 * cross_entropy(net(a), b)
        total = total + (cross_entropy(net(x), y) + more) / 2
    expected = flat(net) - 0.1 * gradient(net, total)
    fit(module, method, limit_train_batches=2, accumulate_grad_batches=2)
    torch.testing.assert_close(flat(module), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("accumulated", [1, 3])
def test_agem_steps_along_the_projected_gradient(own: bool, accumulated: int) -> None:
    projected = 0
    for seed in range(6):
        method, net = filled(AGEM, seed=seed, minibatch_size=9), network()
        # labels that pull the other way, in some draws
        method.buffer.columns[1] = (method.buffer.columns[1] + seed) % 5
        module = holder(own, method)
        data = batches(seed)[:accumulated]
        g = gradient(net, sum(cross_entropy(net(x), y) for x, y in data) / accumulated)
        u, v = examples(method)
        r = gradient(net, cross_entropy(net(u), v))
        if g @ r < 0:
            projected += 1
            g = g - g @ r / (r @ r) * r
        before = flat(net)
        also: Any = {"limit_train_batches": accumulated, "accumulate_grad_batches": accumulated}
        fit(module, method, seed=seed, **also)
        torch.testing.assert_close(flat(module), before - 0.1 * g, rtol=1e-9, atol=1e-12)
    assert 0 < projected < 6


def test_no_negative_inner_product_is_left_and_none_is_touched_that_was_positive() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        theta = [Parameter(torch.zeros(3, 2).double()), Parameter(torch.zeros(4).double())]
        g, r = torch.randn(2, 10, generator=generator, dtype=torch.float64)
        for p, part in zip(theta, g.split([6, 4]), strict=True):
            p.grad = part.view_as(p).clone()
        changed = project_(theta, r)
        after = torch.cat([p.grad.flatten() for p in theta])
        assert changed is bool(g @ r < 0)
        if changed:
            assert abs(float(after @ r)) < 1e-12
            # the nearest of those: what was taken away lies along r
            torch.testing.assert_close(after + g @ r / (r @ r) * r, g, rtol=1e-9, atol=1e-12)
        else:
            assert torch.equal(after, g)


def test_agem_leaves_the_module_as_it_was_when_it_looks_back() -> None:
    method, module = filled(AGEM), Own()
    module.body = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Dropout(), nn.Linear(7, 5))
    module.double()
    other = Own()
    other.load_state_dict(module.state_dict(), strict=False)
    other.body = nn.Sequential(*module.body).double()
    seen: list[Tensor] = []

    class Look(Callback):
        def on_before_optimizer_step(self, *_: Any) -> None:
            seen.extend([module.body[1].running_mean.clone(), torch.get_rng_state()])

    torch.manual_seed(0)
    fit(module, Look(), method, Look(), limit_train_batches=1)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert module.body[1].training


@every_kind
def test_what_is_kept_are_real_examples_of_the_fits_data_or_of_the_batches(kind: Any) -> None:
    for given, data in ((None, batches(1)), (batches(5), batches(5))):
        method = kind(buffer_size=10, batches=given)
        fit(Own(), method)
        images, labels = whole(data)
        assert len(method.buffer) == 10
        for x, y in zip(*method.buffer.columns[:2], strict=True):
            (place,) = (images == x).all(dim=1).nonzero()[:, 0].tolist()
            assert int(labels[place]) == int(y)
        assert method.figures == {"buffer/examples": 10.0, "buffer/bytes": method.buffer.bytes}
    empty = kind(buffer_size=10, consolidates=False)
    fit(Own(), empty)
    assert len(empty.buffer) == 0


@every_kind
def test_size_fill_and_seed_reach_the_buffer(kind: Any) -> None:
    method = kind(buffer_size=7, fill="balanced", seed=4, minibatch_size=3)
    buffer = method.buffer
    assert (buffer.size, buffer.fill, buffer.seed, method.minibatch_size) == (7, "balanced", 4, 3)
    assert kind(11).buffer.size == 11


@every_kind
@pytest.mark.parametrize("stranger", ["classes", "words"])
def test_strangers_remember_with_it(kind: Any, stranger: str) -> None:
    rises = []
    for size in (0, 48):
        module: Any = Stranger(norm=True) if stranger == "classes" else Tagger()
        tasks = [loader(t) if stranger == "classes" else tagged(t) for t in (0, 1)]
        method, own = kind(size, minibatch_size=24), module.training_step
        trainer(method, max_epochs=6).fit(module, tasks[0])
        before = loss_on(module, tasks[0])
        trainer(method, max_epochs=6).fit(module, tasks[1])
        assert module.training_step == own
        rises.append(loss_on(module, tasks[0]) - before)
    assert rises[1] < 0.6 * rises[0]


@torch.no_grad()
def loss_on(module: Any, data: Any) -> float:
    module.eval()
    losses = []
    for batch in data:
        found = (
            module.training_step(batch)
            if isinstance(batch, dict)
            else module.training_step(batch, 0)
        )
        losses.append(float(found["loss"] if isinstance(found, dict) else found))
    module.train()
    return sum(losses) / len(losses)


@every_kind
def test_a_fit_that_is_resumed_goes_on_with_the_same_examples(kind: Any, tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_epoch_end(self, one: Trainer, *_: Any) -> None:
            if one.current_epoch == 0:
                one.save_checkpoint(tmp_path / "middle.ckpt")

    module = Own()
    fit(module, filled(kind), Save(), max_epochs=2)
    kept = torch.load(tmp_path / "middle.ckpt", weights_only=True)["callbacks"][kind.__name__]
    assert torch.equal(kept["buffer"]["columns"][0], filled(kind).buffer.columns[0])
    again, fresh = Own(), kind(buffer_size=12, minibatch_size=5, consolidates=False)
    fit(again, fresh, ckpt_path=tmp_path / "middle.ckpt", max_epochs=2)
    assert torch.equal(flat(again), flat(module))


def test_logits_are_those_of_the_network_that_was_consolidated_and_stay() -> None:
    method, module = DERpp(20, minibatch_size=4), Own()
    fit(module, method)
    torch.testing.assert_close(
        method.buffer.columns[2], module(method.buffer.columns[0]).detach(), rtol=1e-9, atol=1e-12
    )
    first = {
        tuple(x.tolist()): z
        for x, z in zip(method.buffer.columns[0], method.buffer.columns[2], strict=True)
    }
    fit(module, method, seed=2)
    task = method.buffer.task
    assert 0 < int((task == 0).sum()) < 20
    for x, z, t in zip(
        method.buffer.columns[0], method.buffer.columns[2], task.tolist(), strict=True
    ):
        expected = first[tuple(x.tolist())] if t == 0 else module(x.unsqueeze(0))[0].detach()
        torch.testing.assert_close(z, expected, rtol=1e-9, atol=1e-12)
    plain = DERpp(20)
    plain.consolidate(module.body, batches(1))  # a network that is no LightningModule
    torch.testing.assert_close(
        plain.buffer.columns[2], module(plain.buffer.columns[0]).detach(), rtol=1e-9, atol=1e-12
    )


def test_logits_are_kept_in_eval_mode_and_leave_no_trace() -> None:
    module, method = Stranger(norm=True), DERpp(20, consolidates=False)
    module.body.append(nn.Dropout())
    before = module.body[1].running_mean.clone()
    data, state = list(loader()), torch.get_rng_state()
    method.consolidate(module, data)
    assert torch.equal(module.body[1].running_mean, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.body[1].training
    images, _, logits = method.buffer.columns
    torch.testing.assert_close(logits, module.eval()(images).detach(), rtol=1e-9, atol=1e-12)


def test_another_size_of_the_output_is_refused() -> None:
    module, method = Stranger(classes=3), DERpp(20)
    trainer(method).fit(module, loader())
    module.head = nn.Linear(8, 4).double()
    with pytest.raises(LifelongError, match=r"has 4 numbers .* kept have 3; wanted an output"):
        trainer(method).fit(module, loader(1))


class Manual(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def test_a_module_that_goes_backward_by_itself_is_refused_but_for_replay() -> None:
    for kind in (DERpp, AGEM):
        with pytest.raises(LifelongError, match="optimizes by itself") as error:
            trainer(kind(5)).fit(Manual(), loader())
        assert "\n" not in str(error.value)
    module, method = Manual(), Replay(20)
    for t in (0, 1):
        trainer(method).fit(module, loader(t))
    assert len(method.buffer) == 20


def test_data_that_are_used_up_are_refused_before_the_first_step() -> None:
    one = trainer(Replay(5))
    with pytest.raises(LifelongError, match="used up"):
        one.fit(Stranger(), iter(list(loader())))
    assert one.global_step == 0


class Endless(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield from loader()


def test_data_without_an_end_are_refused_unless_the_fit_has_one() -> None:
    endless: Any = torch.utils.data.DataLoader(Endless(), batch_size=None)
    one = trainer(Replay(5), max_epochs=-1)
    with pytest.raises(LifelongError, match=r"might never end.*max_steps.*batches=\[") as error:
        one.fit(Stranger(), endless)
    assert "\n" not in str(error.value)
    assert one.global_step == 0
    method = Replay(5)
    trainer(method, max_epochs=-1, max_steps=3).fit(Stranger(), endless)
    assert len(method.buffer) == 5


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        *((kind, {"minibatch_size": 0}) for kind in KINDS),
        *((kind, {"buffer_size": -1}) for kind in KINDS),
        *((kind, {"fill": "fifo"}) for kind in KINDS),
        *((DERpp, {name: value}) for name in ("alpha", "beta") for value in (-1.0, float("nan"))),
    ],
)
def test_what_is_out_of_range_is_refused(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} is .*; it must be"):
        kind(**wrong)


@every_kind
def test_after_a_fit_nothing_acts_on_the_module(kind: Any) -> None:
    module, method = Own(), filled(kind)
    start = {name: p.clone() for name, p in params(module).items()}

    class Fails(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("a fault of a test")

    with pytest.raises(RuntimeError, match="a fault of a test"):
        fit(module, method, Fails())
    assert "training_step" not in vars(module)
    assert any((p != start[name]).any() for name, p in params(module).items())
