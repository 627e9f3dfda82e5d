from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lifelong.core.fisher import diagonal as fisher_module
from lifelong.core.fisher.capture import Capture
from lifelong.core.fisher.diagonal import fisher_diagonal
from lifelong.core.fisher.evaluation import Evaluation

Oracle = Callable[[nn.Module, Tensor], dict[str, Tensor]]

pytestmark = pytest.mark.usefixtures("double")


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).contiguous()


def normed(module: nn.Module) -> nn.Module:
    for p in module.parameters():
        nn.init.normal_(p)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 2)
    return module


def check(network: nn.Module, x: Tensor, oracle: Oracle, fused: bool | None = None) -> None:
    """Compare with the loop; `fused` says whether per-example gradients may, or must, be needed."""
    fell_back: list[str] = []
    plain = fisher_module.Diagonal._fall_back

    def spy(self: object, chunk: object, rest: dict[str, nn.Parameter], kept: object) -> None:
        fell_back.extend(rest)
        plain(self, chunk, rest, kept)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fisher_module.Diagonal, "_fall_back", spy)
        came = fisher_diagonal(network, [(x[:3], None), (x[3:], None)], threshold=0)
    wanted = oracle(network, x)
    assert came.keys() == wanted.keys()
    for name, expected in wanted.items():
        assert expected.any(), f"{name}: the test would see nothing"
        atol = 1e-9 * float(expected.max())
        torch.testing.assert_close(came[name], expected, rtol=1e-9, atol=atol, msg=name)
    if fused is not None:
        assert bool(fell_back) is not fused, fell_back


IMAGES = (6, 4, 7, 6)
SEQUENCES = (6, 4, 9)
RULES = {
    "linear": (nn.Sequential(nn.Linear(4, 3)), (6, 4)),
    "linear without bias": (nn.Sequential(nn.Linear(4, 3, bias=False)), (6, 4)),
    "linear over positions": (nn.Sequential(nn.Linear(5, 3), nn.Tanh(), Mean()), (6, 4, 5)),
    "linear over a grid": (nn.Sequential(nn.Linear(5, 3), Mean(), nn.Tanh(), Mean()), (6, 4, 2, 5)),
    "linear with one position": (nn.Sequential(nn.Linear(5, 3), Mean()), (6, 1, 5)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), SEQUENCES),
    "conv1d, same": (nn.Conv1d(4, 6, 4, padding="same", padding_mode="circular"), SEQUENCES),
    "conv2d": (nn.Conv2d(4, 3, 3), IMAGES),
    "conv2d, stride, padding": (nn.Conv2d(4, 3, (3, 2), stride=(2, 3), padding=(2, 1)), IMAGES),
    "conv2d, dilation": (nn.Conv2d(4, 3, 3, dilation=(1, 2), bias=False), IMAGES),
    "conv2d, one position": (nn.Conv2d(4, 3, (7, 6)), IMAGES),
    "conv2d, one position, padding": (nn.Conv2d(4, 3, 5, stride=9, padding=1), (6, 4, 3, 3)),
    "conv2d, one position, groups": (nn.Conv2d(4, 8, (7, 6), groups=4), IMAGES),
    "conv1d, one position": (nn.Conv1d(4, 6, 9, bias=False), SEQUENCES),
    "conv2d, groups": (nn.Conv2d(4, 8, 3, groups=4), IMAGES),
    "conv2d, reflect": (nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), IMAGES),
    "conv2d, same": (nn.Conv2d(4, 3, (2, 3), padding="same"), IMAGES),
    "layer norm": (nn.LayerNorm(9), SEQUENCES),
    "layer norm of two": (nn.LayerNorm((4, 9)), SEQUENCES),
    "group norm": (nn.GroupNorm(2, 4), IMAGES),
    "batch norm": (nn.BatchNorm1d(4), (6, 4)),
    "batch norm 1d": (nn.BatchNorm1d(4), SEQUENCES),
    "batch norm 2d": (nn.BatchNorm2d(4), IMAGES),
    "batch norm with an eps of its own": (nn.BatchNorm1d(4, eps=0.5), (6, 4)),
    "layer norm with an eps of its own": (nn.LayerNorm(9, eps=0.5), SEQUENCES),
    "group norm with an eps of its own": (nn.GroupNorm(2, 4, eps=0.5), IMAGES),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_agrees_with_the_loop(name: str, looped_fisher: Oracle) -> None:
    module, shape = RULES[name]
    module = normed(module.double())
    width = module(torch.randn(shape)).flatten(1).shape[1]
    network = nn.Sequential(module, nn.Tanh(), Flat(), nn.Linear(width, 3))
    check(network, torch.randn(shape), looped_fisher, fused=True)


@pytest.mark.parametrize("padding", [None, 0])
def test_an_embedding_adds_up_a_token_that_comes_twice(
    padding: int | None, looped_fisher: Oracle
) -> None:
    network = nn.Sequential(nn.Embedding(5, 4, padding_idx=padding), Mean(), nn.Linear(4, 3))
    tokens = torch.randint(5, (7, 6))
    assert any(len(set(row)) < 6 for row in tokens.tolist())
    check(network, tokens, looped_fisher, fused=True)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.GroupNorm(3, 6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 2, dilation=2),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


def test_a_convolutional_network_agrees_with_the_loop(looped_fisher: Oracle) -> None:
    network, x = convolutional(), torch.randn(7, 1, 12, 12)
    network(x)
    check(network, x, looped_fisher, fused=True)


class Transformer(nn.Module):
    def __init__(self, batch_first: bool, each_position: bool = False) -> None:
        super().__init__()
        self.batch_first, self.each_position = batch_first, each_position
        self.embedding = nn.Embedding(6, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 10, dropout=0.5, batch_first=batch_first)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = self.layer(x) if self.batch_first else self.layer(x.transpose(0, 1)).transpose(0, 1)
        x = self.head(self.norm(x))
        return x if self.each_position else x.mean(dim=1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("each_position", [True, False])
def test_a_transformer_agrees_with_the_loop(
    batch_first: bool, each_position: bool, looped_fisher: Oracle
) -> None:
    # as many tokens as examples: nothing in the shapes tells which is which
    tokens = torch.randint(6, (5, 5))
    check(Transformer(batch_first, each_position), tokens, looped_fisher, fused=True)


class Attending(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embedding, self.options = nn.Embedding(6, 8), options
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        options = {k: v(tokens) if callable(v) else v for k, v in self.options.items()}
        mixed, weights = self.attention(x, x, x, **options)
        x = self.head(mixed).mean(dim=1)
        return x if weights is None else x + weights.flatten(1)[:, :4]


def padded(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1]) > tokens[:, :1] % 3


CAUSAL = torch.ones(3, 3).triu(1)
MASKS: dict[str, dict[str, Any]] = {
    "none": {"need_weights": False},
    "weights": {},
    "weights of each head": {"average_attn_weights": False},
    "boolean": {"attn_mask": CAUSAL.bool(), "need_weights": False},
    "added": {"attn_mask": -3.0 * CAUSAL.double(), "is_causal": True},
    "padding": {"key_padding_mask": padded, "need_weights": False},
    "both": {"key_padding_mask": padded, "attn_mask": CAUSAL.bool()},
    "of each head": {
        "attn_mask": lambda t: CAUSAL.bool().expand(2 * len(t), 3, 3),
        "need_weights": False,
    },
}


@pytest.mark.parametrize("name", MASKS)
def test_attention_that_is_written_out_is_torchs_own(name: str, looped_fisher: Oracle) -> None:
    network, tokens = Attending(**MASKS[name]).eval(), torch.randint(6, (5, 3))
    check(network, tokens, looped_fisher, fused=True)
    wanted = network(tokens)
    with Capture(Evaluation(network), lambda _: False) as capture:
        torch.testing.assert_close(capture.run(tokens)[0], wanted, rtol=1e-12, atol=1e-12)


class Crossing(Attending):
    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(self.attention(x, x.tanh(), x, need_weights=False)[0]).mean(dim=1)


def test_attention_to_others_takes_per_example_gradients(looped_fisher: Oracle) -> None:
    check(Crossing(), torch.randint(6, (5, 3)), looped_fisher, fused=False)


class Recurrent(nn.Module):
    def __init__(self, module: nn.RNNBase, ends: bool = False) -> None:
        super().__init__()
        self.rnn, self.ends = module, ends
        width = module.hidden_size * (2 if module.bidirectional else 1)
        self.head = nn.Linear(module.proj_size or width, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden, state = self.rnn(x)
        hidden = hidden if self.rnn.batch_first else hidden.transpose(0, 1)
        if self.ends:
            state = state[1] if isinstance(state, tuple) else state
            return self.head(state.transpose(0, 1).reshape(len(x), -1))
        return self.head(hidden.square().mean(dim=1))


class TimeFirst(Recurrent):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1))


RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Recurrent(nn.LSTM(4, 3, batch_first=True)),
    "lstm, two layers, both ways": lambda: Recurrent(
        nn.LSTM(4, 3, num_layers=2, bidirectional=True, batch_first=True)
    ),
    "lstm, time first": lambda: TimeFirst(nn.LSTM(4, 3)),
    "lstm, last cell": lambda: Recurrent(nn.LSTM(4, 3, batch_first=True), ends=True),
    "gru": lambda: Recurrent(nn.GRU(4, 3, batch_first=True)),
    "gru, both ways, last state": lambda: Recurrent(
        nn.GRU(4, 3, bidirectional=True, batch_first=True), ends=True
    ),
    "gru without bias": lambda: Recurrent(nn.GRU(4, 3, bias=False, batch_first=True)),
    "tanh": lambda: Recurrent(nn.RNN(4, 3, batch_first=True)),
    "relu": lambda: Recurrent(nn.RNN(4, 3, nonlinearity="relu", batch_first=True)),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_network_that_is_written_out_is_torchs_own(
    name: str, looped_fisher: Oracle
) -> None:
    network, x = RECURRENT[name](), torch.randn(5, 4, 4)
    check(network, x, looped_fisher, fused=True)
    wanted = network(x)
    with Capture(Evaluation(network), lambda _: False) as capture:
        torch.testing.assert_close(capture.run(x)[0], wanted, rtol=1e-12, atol=1e-12)
    assert "forward" not in vars(network.rnn)


def test_a_projected_lstm_takes_per_example_gradients(looped_fisher: Oracle) -> None:
    network = Recurrent(nn.LSTM(4, 3, proj_size=2, batch_first=True))
    check(network, torch.randn(5, 4, 4), looped_fisher, fused=False)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths = x[:, 0, 0].detach().abs().long().clamp(1, 4)
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        return self.head(self.rnn(packed)[1][0])


def test_packed_sequences_take_per_example_gradients(looped_fisher: Oracle) -> None:
    check(Packed(), 3 * torch.randn(5, 4, 4), looped_fisher, fused=False)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inside(self.inside(x).tanh()).tanh())


def test_a_module_called_twice_adds_up_before_squaring(looped_fisher: Oracle) -> None:
    check(Twice(), torch.randn(6, 4), looped_fisher, fused=True)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens).mean(dim=1).tanh())


def test_tied_weights_add_up_before_squaring(looped_fisher: Oracle) -> None:
    network = Tied()
    check(network, torch.randint(6, (7, 3)), looped_fisher, fused=True)
    assert list(fisher_diagonal(network, [(torch.randint(6, (7, 3)), None)])) == [
        "embedding.weight"
    ]


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        # the head's weight outside its module, too
        return self.head(x * self.scale) + (x @ self.head.weight.T).tanh()


def test_bare_parameters_and_borrowed_weights_agree_with_the_loop(looped_fisher: Oracle) -> None:
    check(Bare(), torch.randn(6, 4), looped_fisher, fused=False)


class Branching(Bare):
    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().abs().sum()) < 0:  # no vmap can look into a number
            return self.head(x)
        return self.head(x * self.scale)


def test_what_vmap_cannot_do_is_done_one_by_one(looped_fisher: Oracle) -> None:
    check(Branching(), torch.randn(6, 4), looped_fisher, fused=False)


class Borrowed(nn.Module):
    """Calls a module, drops its output and uses its weight elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.inside(x)
        return self.head(nn.functional.linear(x.tanh(), self.inside.weight, self.inside.bias))


class Merged(nn.Module):
    """Puts positions into the dimension that elsewhere counts examples."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.inside(x.reshape(-1, 4)).tanh().view(x.shape)
        return self.head(inside.mean(dim=1))


class Reparametrised(nn.Sequential):
    def __init__(self) -> None:
        old = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        super().__init__(old, nn.Tanh(), nn.Linear(4, 3))


class Subclass(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


UNUSUAL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "borrowed": (Borrowed, (6, 4)),
    "merged": (Merged, (6, 3, 4)),
    "reparametrised": (Reparametrised, (6, 4)),
    "subclass": (lambda: nn.Sequential(Subclass(4, 4), nn.Linear(4, 3)), (6, 4)),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose1d(4, 3, 2), Flat(), nn.LazyLinear(3)),
        SEQUENCES,
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_use_is_slower_and_never_wrong(name: str, looped_fisher: Oracle) -> None:
    build, shape = UNUSUAL[name]
    network, x = build(), torch.randn(shape)
    network(x)
    check(network, x, looped_fisher, fused=False)
