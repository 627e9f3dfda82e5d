"""What several processes have to agree on: one importance, one network, and who is to speak."""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, nn

from lifelong.core.fisher.diagonal import NothingMattersError
from lifelong.core.fisher.examples import count
from lifelong.core.fisher.partial_sums import Layout, ShareSums
from lifelong.core.importance import DiagonalImportance, as_importance
from lifelong.core.protocols import Importance
from lifelong.errors import LifelongError
from lifelong.learning.progress import Progress


def estimate_over_processes(
    trainer: Trainer,
    estimator: Callable[..., Importance],
    network: nn.Module,
    batches: Iterable[Any],
    progress: Progress | None = None,
) -> Importance:
    """Estimate an importance on the examples of all processes, the same bits on each of them.

    F = Σ_r n_r F_r / Σ_r n_r: every process estimates on its own share, then the sums behind the
    means are added up in float64 and divided by the number of all examples. A share may be empty.
    The processes see one network: its buffers (the running statistics of batch norms, which no
    process averages while learning) are first made those of process 0. Labels that are sampled are
    drawn from numbers that differ between the processes.

    Up to rounding it is the estimate of one process where the estimator leaves nothing out. The
    lightest terms that exact labels leave out are chosen in each share by itself, so that the two
    differ by up to the estimator's ``threshold`` (3e-7 of the diagonal's trace, 1e-2 of that of G).

    With one process the estimator is called as it is.

    Args:
        trainer: knows the processes.
        estimator: of ``(network, batches, progress=...)``, a mean over examples. It calls progress
            with the number of examples that it has used.
        network: the bare network, not its wrapper.
        batches: this process's share, every example in one share only.
        progress: shown how far this process is.

    Returns:
        The importance.

    Raises:
        LifelongError: when the strategy keeps no whole network in each process, or the estimate
            of another process failed.
        ValueError: when no process has an example.
    """  # noqa: DOC502
    if trainer.world_size == 1:
        return as_importance(estimator(network, batches, progress=progress))
    if not isinstance(trainer.strategy, DDPStrategy):
        name = type(trainer.strategy).__name__
        raise LifelongError(
            f"the strategy is {name}; importances over several processes need the whole network in "
            "each of them: type trainer=ddp, or Trainer(strategy='ddp')"
        )
    follow_first_process(network)
    share = _Share()
    try:
        share.estimate(trainer.global_rank, estimator, network, batches, progress)
    except Exception as error:
        share.fail(error)
    return _added_up(share, trainer).mean()


class Counted:
    """An estimator that notes on how many examples it estimated.

    Args:
        estimator: of ``(network, batches, progress=...)``; it calls progress with the number of
            examples that it has used.

    Attributes:
        examples: of this process, in the latest call; 0 where it did not say.
    """

    def __init__(self, estimator: Callable[..., Importance]) -> None:
        self._estimator = estimator
        self.examples = 0

    def __call__(
        self, network: nn.Module, batches: Iterable[Any], *, progress: Progress | None = None
    ) -> Importance:
        """Estimate, and count.

        Args:
            network: as the estimator wants it.
            batches: of examples.
            progress: shown how far it is.

        Returns:
            What the estimator returns.
        """

        def count_and_show(done: int, total: int | None) -> None:
            self.examples = done
            if progress is not None:
                progress(done, total)

        return self._estimator(network, batches, progress=count_and_show)

    def over_processes(self, trainer: Trainer) -> int:
        """How many it were in all processes.

        Args:
            trainer: knows the processes.

        Returns:
            The sum.
        """
        if trainer.world_size == 1:
            return self.examples
        total = torch.tensor([self.examples], device=trainer.strategy.root_device)
        distributed.all_reduce(total)
        return int(total)


@torch.no_grad()
def follow_first_process(network: nn.Module) -> None:
    """Make a network's buffers those of process 0; the parameters agree already.

    Args:
        network: the network of this process.
    """
    if distributed.is_available() and distributed.is_initialized():
        for buffer in network.buffers():
            distributed.broadcast(buffer, src=0)


def mean_over_processes(value: Tensor, trainer: Trainer) -> Tensor:
    """The mean of a number that every process has.

    Args:
        value: a scalar.
        trainer: knows the processes.

    Returns:
        The mean; with one process the number itself.
    """
    if trainer.world_size == 1:
        return value.detach()
    mean = trainer.strategy.reduce(value.detach().clone(), reduce_op="mean")
    assert isinstance(mean, Tensor)
    return mean


class _Share:
    """What one process found on its own examples.

    Attributes:
        sums: None without an example.
        used: how many examples.
        nothing: said where nothing matters for those that there are.
        error: why there is no estimate.
    """

    def __init__(self) -> None:
        self.sums: ShareSums | None = None
        self.used = 0
        self.nothing: Exception | None = None
        self.error: Exception | None = None

    def estimate(
        self,
        rank: int,
        estimator: Callable[..., Importance],
        network: nn.Module,
        batches: Iterable[Any],
        progress: Progress | None,
    ) -> None:
        batches = iter(batches)
        first = next((batch for batch in batches if _holds_examples(batch)), None)
        if first is None:
            return

        def count_and_show(done: int, total: int | None) -> None:
            self.used = done
            if progress is not None and rank == 0:
                progress(done, total)

        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # The processes were seeded alike: the same draws would go to different examples.
            torch.manual_seed(torch.initial_seed() + rank)
            found = estimator(network, chain([first], batches), progress=count_and_show)
        self.sums = ShareSums.of(found, self.used)

    def fail(self, error: Exception) -> None:
        # A share whose labels are all ignored is no error where the others have labels.
        for one in (error, error.__cause__):
            if isinstance(one, NothingMattersError) and self.used:
                self.sums, self.nothing = ShareSums.of(one.importance, self.used), error
                return
        self.error = error


def _holds_examples(batch: Any) -> bool:
    # what is no pair is for the estimator to refuse
    return not (isinstance(batch, tuple | list) and len(batch) == 2) or count(batch[0]) > 0


def _added_up(share: _Share, trainer: Trainer) -> ShareSums:
    own, device = share.sums, trainer.strategy.root_device
    # how many examples, whether nothing matters for them, whether the estimate failed, by process
    found = torch.zeros(3, trainer.world_size, dtype=torch.int64, device=device)
    mine = [0 if own is None else own.count, int(share.nothing is None), int(bool(share.error))]
    found[:, trainer.global_rank] = torch.tensor(mine, device=device)
    distributed.all_reduce(found)
    counts, something, failed = found
    if share.error is not None:
        raise share.error
    if bool(failed.any()):
        others = ", ".join(map(str, failed.nonzero().flatten().tolist()))
        raise LifelongError(
            f"the estimate of what matters failed in process {others}; its own error says why"
        )
    if not int(counts.sum()):
        raise ValueError(
            "the batches of no process hold an example; wanted at least one in all of them"
        )
    if not bool((something & (counts > 0)).any()):
        raise share.nothing or LifelongError("nothing matters in any process; their errors say why")
    # Who has no example knows the names and shapes from the first who has.
    layout: Layout = trainer.strategy.broadcast(
        own.layout if own is not None else (DiagonalImportance, []),
        src=int(counts.nonzero()[0]),
    )
    if own is None:
        own = ShareSums.none(layout, device)
    same = torch.tensor([own.layout == layout], dtype=torch.int64, device=device)
    distributed.all_reduce(same, op=distributed.ReduceOp.MIN)
    if not bool(same):
        raise ValueError(
            "the processes have importances of other names or shapes; "
            "estimate all with the same estimator and network"
        )
    for total in own.sums:
        distributed.all_reduce(total)
        # The order of adding is the backend's own affair; the same bits everywhere are not.
        distributed.broadcast(total, src=0)
    return ShareSums(layout, own.sums, int(counts.sum()))


def of_first_process(value: Any) -> Any:
    """What the first of several processes has.

    Args:
        value: a plain value.

    Returns:
        That of the first process; with one process the value itself.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]
