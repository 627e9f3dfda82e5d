"""Attention and recurrent networks written out, so that rules see how they use their weights.

`nn.MultiheadAttention`, `nn.LSTM`, `nn.GRU` and `nn.RNN` hand their weights to functions in which
no module can be watched. Here are the same networks as linear maps whose inputs and output
gradients are recorded; what they return differs by rounding alone.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional


@runtime_checkable
class Recorder(Protocol):
    """What takes down one linear map: `output = input Wᵀ + b`."""

    def __call__(
        self, module: nn.Module, a: Tensor, output: Tensor, names: tuple[str, str], uses: int = 1
    ) -> None:
        """Record that the parameters of these names met `a`, `uses` times in the graph."""


def opened(module: nn.Module, record: Recorder) -> Callable[..., Any] | None:
    """Return a forward of a module that records its linear maps.

    Args:
        module: Any module.
        record: What is told of each map.

    Returns:
        The forward, None for modules that have no such form here.
    """
    kind = type(module)
    if "forward" in vars(module):
        return None
    if isinstance(module, nn.MultiheadAttention):
        plain = module.in_proj_weight is not None and module.bias_k is None
        same = kind.forward is nn.MultiheadAttention.forward
        return _Attention(module, record) if same and plain and not module.add_zero_attn else None
    for recurrent in (nn.LSTM, nn.GRU, nn.RNN):
        if isinstance(module, recurrent) and kind.forward is recurrent.forward:
            return None if module.proj_size else _Recurrent(module, record)
    return None


class _Attention:
    """Self-attention; any other use takes the module's own way."""

    def __init__(self, module: nn.MultiheadAttention, record: Recorder) -> None:
        self._module, self._record = module, record

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        module = self._module
        itself = query is key and key is value and query.ndim == 3 and not query.is_nested
        if not itself or (is_causal and attn_mask is None):
            return type(module).forward(
                module,
                query,
                key,
                value,
                key_padding_mask=key_padding_mask,
                need_weights=need_weights,
                attn_mask=attn_mask,
                average_attn_weights=average_attn_weights,
                is_causal=is_causal,
            )
        projected = functional.linear(query, module.in_proj_weight, module.in_proj_bias)
        self._record(module, query, projected, ("in_proj_weight", "in_proj_bias"))
        if not module.batch_first:
            projected = projected.transpose(0, 1)
        n, length, _ = projected.shape
        heads = projected.view(n, length, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        mask = _mask(attn_mask, key_padding_mask, q)
        weights = None
        if need_weights:
            scores = q @ k.mT / q.shape[-1] ** 0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            mixed = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed = mixed.transpose(1, 2).flatten(2)
        return module.out_proj(mixed if module.batch_first else mixed.transpose(0, 1)), weights


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
    # what is added to the scores [N, heads, T, S]
    total: Tensor | None = None
    if attn_mask is not None:
        part = _added(attn_mask, q.dtype)
        total = part if part.ndim == 2 else part.view(len(q), -1, *part.shape[1:])
    if padding is not None:
        part = _added(padding, q.dtype)[:, None, None, :]
        total = part if total is None else total + part
    return total


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype is torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
    return mask.to(dtype)


class _Recurrent:
    """A recurrent network, step by step; packed and single sequences take the module's own way."""

    def __init__(self, module: nn.RNNBase, record: Recorder) -> None:
        self._module, self._record = module, record
        self._is_lstm = isinstance(module, nn.LSTM)

    def __call__(self, input: Any, hx: Any = None) -> Any:
        module = self._module
        if not isinstance(input, Tensor) or input.ndim != 3 or input.is_nested:
            return type(module).forward(module, input, hx)
        x = input if module.batch_first else input.transpose(0, 1)
        directions = 2 if module.bidirectional else 1
        if hx is None:
            hx = x.new_zeros(module.num_layers * directions, len(x), module.hidden_size)
            hx = (hx, hx) if self._is_lstm else hx
        first = hx if self._is_lstm else (hx,)
        last: list[tuple[Tensor, ...]] = []
        for layer in range(module.num_layers):
            outputs = []
            for direction in range(directions):
                state = tuple(s[layer * directions + direction] for s in first)
                suffix = f"_l{layer}" + ("_reverse" if direction else "")
                hidden, state = self._pass(x, state, suffix, bool(direction))
                outputs.append(hidden)
                last.append(state)
            x = torch.cat(outputs, dim=-1)
        ends = tuple(torch.stack(part) for part in zip(*last, strict=True))
        x = x if module.batch_first else x.transpose(0, 1)
        return x, (ends if self._is_lstm else ends[0])

    def _pass(
        self, x: Tensor, state: tuple[Tensor, ...], suffix: str, backwards: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        module = self._module
        w_ih, w_hh = (getattr(module, f"weight_{part}{suffix}") for part in ("ih", "hh"))
        b_ih, b_hh = (
            getattr(module, f"bias_{part}{suffix}") if module.bias else None
            for part in ("ih", "hh")
        )
        inward = functional.linear(x, w_ih, b_ih)
        # nothing is added: a place whose gradient is that of every step's recurrent map
        place = torch.zeros_like(inward, requires_grad=torch.is_grad_enabled())
        inward_steps, places = inward.unbind(1), place.unbind(1)
        steps = range(x.shape[1])
        before: list[Tensor] = [x] * len(steps)
        hidden: list[Tensor] = [x] * len(steps)
        for t in reversed(steps) if backwards else steps:
            before[t] = state[0].detach()
            recurrent = functional.linear(state[0], w_hh, b_hh) + places[t]
            state = self._step(inward_steps[t], recurrent, state)
            hidden[t] = state[0]
        self._record(module, x, inward, (f"weight_ih{suffix}", f"bias_ih{suffix}"))
        names = f"weight_hh{suffix}", f"bias_hh{suffix}"
        self._record(module, torch.stack(before, 1), place, names, len(steps))
        return torch.stack(hidden, 1), state

    def _step(
        self, inward: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        module = self._module
        if self._is_lstm:
            i, f, g, o = (inward + recurrent).chunk(4, dim=-1)
            c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            return o.sigmoid() * c.tanh(), c
        if isinstance(module, nn.GRU):
            (r, z, n), (hr, hz, hn) = inward.chunk(3, dim=-1), recurrent.chunk(3, dim=-1)
            z = (z + hz).sigmoid()
            n = (n + (r + hr).sigmoid() * hn).tanh()
            return ((1 - z) * n + z * state[0],)
        act = torch.tanh if module.mode == "RNN_TANH" else torch.relu
        return (act(inward + recurrent),)
