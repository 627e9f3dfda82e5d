"""Training steps as strangers write them, and the Fisher information of each by single examples."""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the step's usual words
from torch.utils.data import DataLoader, TensorDataset

N = 6
Score = Callable[[Any, int], Tensor]


class Own(LightningModule):
    """A small float64 network whose step is a function of (module, batch)."""

    def __init__(self, step: Callable[..., Any], network: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = (network or nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))).double()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.step(self, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def classes(*shape: int, count: int = 3) -> Tensor:
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(1))


X, Y = numbers(N, 4), classes(N)


def brute(module: nn.Module, log_p: Callable[[int], Iterable[tuple[float, Tensor]]]) -> Any:
    """F by single examples: of each, weights and log-probabilities whose squared scores add up."""
    params = {n: p for n, p in module.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p) for n, p in params.items()}
    for i in range(N):
        for weight, one in log_p(i):
            found = torch.autograd.grad(
                one, list(params.values()), retain_graph=True, allow_unused=True
            )
            for name, g in zip(params, found, strict=True):
                if g is not None:
                    total[name] += weight * g.square() / N
    return total


def softmax(logits: Tensor) -> list[tuple[float, Tensor]]:
    """Every label of every position, classes last."""
    rows = logits.reshape(-1, logits.shape[-1]).log_softmax(-1)
    return [(float(v.detach().exp()), v) for row in rows for v in row]


def bernoulli(logits: Tensor) -> list[tuple[float, Tensor]]:
    return [(float((v.sigmoid() * (-v).sigmoid()).detach()), v) for v in logits.flatten()]


def gauss(output: Tensor) -> list[tuple[float, Tensor]]:
    return [(1.0, v) for v in output.flatten()]


def fit(module: LightningModule, data: Any, *callbacks: Any, **settings: Any) -> Trainer:
    base = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": list(callbacks),
    }
    trainer = Trainer(**(base | settings))  # type: ignore[arg-type]
    trainer.fit(module, data)
    return trainer


def loader(*tensors: Tensor, size: int = 3) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=size)


PIXELS, PIXEL_LABELS = numbers(N, 1, 3, 3), classes(N, 3, 3)
TOKENS = classes(N, 4, count=7)
TOKEN_LABELS = classes(N, 4, count=5).masked_fill(classes(N, 4, count=4) == 0, -100)
MANY = (numbers(N, 3) > 0).double()


class Words(nn.Module):
    """Token by token, mixed along the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.embed(ids).cumsum(1).tanh())


class LikeHuggingFace(nn.Module):
    """Makes its own loss, of the labels shifted by one, and returns an object."""

    def __init__(self) -> None:
        super().__init__()
        self.words = Words()

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        logits = self.words(input_ids)
        shifted = F.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1)
        loss = F.cross_entropy(logits.view(-1, 5), shifted, ignore_index=-100)
        return SimpleNamespace(loss=loss, logits=logits)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x).tanh()
        return self.a(h), self.b(h)


def kept(i: int, logits: Tensor) -> Tensor:
    return logits[TOKEN_LABELS[i] != -100]


class NoGrad(Own):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 3, 1))


def ae() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 4))


def poisson(logs: Tensor) -> list[tuple[float, Tensor]]:
    return [(float(v.detach().exp()), v) for v in logs.flatten()]


def spread(output: Tensor) -> list[tuple[float, Tensor]]:
    """Means in the first column, logarithms of their variances in the second."""
    f, s = output.reshape(-1, 2).unbind(1)
    return [(float((-b).detach().exp()), a) for a, b in zip(f, s, strict=True)] + [
        (0.5, b) for b in s
    ]


class ByTime(nn.Module):
    """Tokens [N, T] to scores [T, N, 5], as recurrent networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.out = nn.Embedding(7, 4), nn.RNN(4, 3), nn.Linear(3, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(ids.T))[0])


def masked(loss: Tensor, counts: Tensor) -> Tensor:
    return (loss * counts).sum() / counts.sum()


REST = numbers(2, N)[0]
COUNTS, VARIANCE = MANY[:, :3].clone().fill_diagonal_(1.0), numbers(N, 3, seed=8).exp()
WHOLE = TOKEN_LABELS.clamp_min(0)
# name → module, batches of two sizes, and the log-probabilities of example i
FAMILIES: dict[str, tuple[Callable[[], Own], list[Any], Callable[[Any, int], Any]]] = {
    "a classifier": (
        lambda: Own(lambda m, b: F.cross_entropy(m(b[0]), b[1])),
        [(X[:4], Y[:4]), (X[4:], Y[4:])],
        lambda m, i: softmax(m.net(X[i : i + 1])),
    ),
    "a forward without gradients, extra elements": (
        lambda: NoGrad(lambda m, b: {"loss": F.cross_entropy(m.net(b[0]), b[1], reduction="sum")}),
        [(X[:4], Y[:4], REST[:4], ["a"] * 4), (X[4:], Y[4:], REST[4:], ["b"] * 2)],
        lambda m, i: softmax(m.net(X[i : i + 1])),
    ),
    "dict batches and log-probabilities": (
        lambda: Own(lambda m, b: F.nll_loss(m.net(b["x"]).log_softmax(1), b["mine"])),
        [{"x": X[:4], "mine": Y[:4]}, {"x": X[4:], "mine": Y[4:]}],
        lambda m, i: softmax(m.net(X[i : i + 1])),
    ),
    "segmentation": (
        lambda: Own(lambda m, b: F.cross_entropy(m(b[0]), b[1]), conv()),
        [(PIXELS[:4], PIXEL_LABELS[:4]), (PIXELS[4:], PIXEL_LABELS[4:])],
        lambda m, i: softmax(m.net(PIXELS[i : i + 1]).movedim(1, -1)),
    ),
    "segmentation, flat": (
        lambda: Own(
            lambda m, b: F.cross_entropy(m(b[0]).movedim(1, -1).reshape(-1, 3), b[1].reshape(-1)),
            conv(),
        ),
        [(PIXELS, PIXEL_LABELS)],
        lambda m, i: softmax(m.net(PIXELS[i : i + 1]).movedim(1, -1)),
    ),
    "padded tokens, flat": (
        lambda: Own(lambda m, b: F.cross_entropy(m(b[0]).view(-1, 5), b[1].view(-1)), Words()),
        [(TOKENS[:4], TOKEN_LABELS[:4]), (TOKENS[4:], TOKEN_LABELS[4:])],
        lambda m, i: softmax(kept(i, m.net(TOKENS[i : i + 1])[0])),
    ),
    "a network that makes its own loss": (
        lambda: Own(lambda m, b: m.net(**b).loss, LikeHuggingFace()),
        [
            {"input_ids": TOKENS[:4], "labels": TOKEN_LABELS[:4]},
            {"input_ids": TOKENS[4:], "labels": TOKEN_LABELS[4:]},
        ],
        lambda m, i: softmax(m.net.words(TOKENS[i : i + 1])[0][:-1][TOKEN_LABELS[i][1:] != -100]),
    ),
    "regression, half the squares": (
        lambda: Own(lambda m, b: 0.5 * F.mse_loss(b[1], m(b[0]), reduction="sum") / len(b[0])),
        [(X, numbers(N, 3, seed=5))],
        lambda m, i: gauss(m.net(X[i : i + 1])),
    ),
    "an autoencoder whose forward encodes": (
        lambda: Own(lambda m, b: F.mse_loss(m.net(b), b), ae()),
        [X[:4], X[4:]],
        lambda m, i: gauss(m.net(X[i : i + 1])),
    ),
    "several labels": (
        lambda: Own(lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]), b[1])),
        [(X, MANY)],
        lambda m, i: bernoulli(m.net(X[i : i + 1])),
    ),
    "one probability": (
        lambda: Own(lambda m, b: F.binary_cross_entropy(m(b[0])[:, 0].sigmoid(), b[1][:, 0])),
        [(X, MANY)],
        lambda m, i: bernoulli(m.net(X[i : i + 1])[:, 0]),
    ),
    "two heads": (
        lambda: Own(
            lambda m, b: sum(
                (F.cross_entropy(z, y) for z, y in zip(m.net(b[0]), b[1:], strict=True)),
                torch.zeros(()),
            ),
            Heads(),
        ),
        [(X[:4], Y[:4], Y[:4] % 2), (X[4:], Y[4:], Y[4:] % 2)],
        lambda m, i: [p for z in m.net(X[i : i + 1]) for p in softmax(z)],
    ),
    "a head of classes and one of numbers": (
        lambda: Own(
            lambda m, b: F.cross_entropy(m.net(b[0])[0], b[1]) + F.mse_loss(m.net(b[0])[1], b[2]),
            Heads(),
        ),
        [(X, Y, numbers(N, 2, seed=7))],
        lambda m, i: softmax(m.net(X[i : i + 1])[0]) + gauss(m.net(X[i : i + 1])[1]),
    ),
    "mixed examples": (
        lambda: Own(
            lambda m, b: (
                0.3 * F.cross_entropy(z := m(b[0]), b[1]) + 0.7 * F.cross_entropy(z, b[1].flip(0))
            )
        ),
        [(X, Y)],
        lambda m, i: softmax(m.net(X[i : i + 1])),
    ),
    "smoothed labels": (
        lambda: Own(lambda m, b: F.cross_entropy(m(b[0]), b[1], label_smoothing=0.1)),
        [(X, Y)],
        lambda m, i: softmax(m.net(X[i : i + 1])),
    ),
    "rows ordered by time": (
        lambda: Own(
            lambda m, b: F.cross_entropy(m(b[0]).flatten(0, 1), b[1].T.flatten()), ByTime()
        ),
        [(TOKENS[:4], TOKEN_LABELS[:4]), (TOKENS[4:], TOKEN_LABELS[4:])],
        lambda m, i: softmax(kept(i, m.net(TOKENS[i : i + 1])[:, 0])),
    ),
    "examples in the second dimension": (
        lambda: Own(lambda m, b: F.mse_loss(m(b[0]), b[1].movedim(1, 0)), ByTime()),
        [(TOKENS, numbers(N, 4, 5))],
        lambda m, i: gauss(m.net(TOKENS[i : i + 1])),
    ),
    "a mask by hand": (
        lambda: Own(
            lambda m, b: masked(
                F.cross_entropy(m(b[0]).movedim(2, 1), b[1], reduction="none"), b[2] != -100
            ),
            Words(),
        ),
        [(TOKENS[:4], WHOLE[:4], TOKEN_LABELS[:4]), (TOKENS[4:], WHOLE[4:], TOKEN_LABELS[4:])],
        lambda m, i: softmax(kept(i, m.net(TOKENS[i : i + 1])[0])),
    ),
    "numbers with a mask": (
        lambda: Own(
            lambda m, b: masked(F.mse_loss(m(b[0]), b[1], reduction="none"), b[2]),
        ),
        [(X[:4], VARIANCE[:4], COUNTS[:4]), (X[4:], VARIANCE[4:], COUNTS[4:])],
        lambda m, i: gauss(m.net(X[i : i + 1])[0, COUNTS[i] > 0]),
    ),
    "counts": (
        lambda: Own(lambda m, b: F.poisson_nll_loss(m(b[0]), b[1], full=True)),
        [(X, classes(N, 3).double())],
        lambda m, i: poisson(m.net(X[i : i + 1])),
    ),
    "counts at a rate": (
        lambda: Own(
            lambda m, b: F.poisson_nll_loss(m(b[0]).exp(), b[1], log_input=False, eps=1e-12)
        ),
        [(X, classes(N, 3).double())],
        lambda m, i: poisson(m.net(X[i : i + 1])),
    ),
    "numbers of a given variance": (
        lambda: Own(lambda m, b: F.gaussian_nll_loss(m(b[0]), b[1], b[2])),
        [(X, numbers(N, 3, seed=5), VARIANCE)],
        lambda m, i: gauss(m.net(X[i : i + 1])[0] / VARIANCE[i].sqrt()),
    ),
    "numbers and their variance": (
        lambda: Own(
            lambda m, b: F.gaussian_nll_loss(m(b[0])[:, 0], b[1], m(b[0])[:, 1].exp()),
            nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)),
        ),
        [(X, REST)],
        lambda m, i: spread(m.net(X[i : i + 1])),
    ),
    "a softmax written by hand": (
        lambda: Own(lambda m, b: -m(b[0]).log_softmax(1).gather(1, b[1][:, None]).mean()),
        [(X, Y)],
        lambda m, i: softmax(m.net(X[i : i + 1])),
    ),
}


def plain(m: Any, b: Any) -> Tensor:
    return F.cross_entropy(m(b[0]), b[1])
