"""What a penalty does when the network that it holds has another head, or only a part of it."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.core.penalty.kronecker_layers import as_matrix, names_of
from lifelong.core.penalty.kronecker_term import KroneckerTerm
from lifelong.core.penalty.sharded import check_whole


def set_buffer(tree: nn.Module, name: str, value: Tensor) -> None:
    """Keep ``value`` under a dotted name, as ``named_parameters`` has it.

    Args:
        tree: the root of modules that are made as they are needed.
        name: dotted.
        value: becomes a buffer.
    """
    *path, leaf = name.split(".")
    for part in path:
        if part not in tree._modules:
            tree.add_module(part, nn.Module())
        tree = tree.get_submodule(part)
    tree.register_buffer(leaf, value)


class ReshapedDiagonal(nn.Module):
    """The part of ``QuadraticPenalty`` that follows a network whose parameters are not the same."""

    importance: nn.Module
    anchor: nn.Module
    scale: nn.Module
    _flat: Any

    def _placed(self, tensor: Tensor) -> Tensor:
        raise NotImplementedError

    def held(self, params: Mapping[str, Tensor]) -> list[str]:  # noqa: ARG002 - as of factors
        """Which parameters have a price.

        Args:
            params: parameter name → θ.

        Returns:
            The names of the consolidated ones, those that ``params`` lacks among them.
        """
        return [name for name, _ in self.importance.named_buffers()]

    def let_go(self, names: Collection[str]) -> None:
        """Hold some parameters no longer; the constant of the others stays.

        Args:
            names: of parameters; those that were never consolidated do not matter.
        """
        for attribute in ("importance", "anchor", "scale"):
            kept = nn.Module()
            for name, value in getattr(self, attribute).named_buffers():
                if name not in names:
                    set_buffer(kept, name, value)
            setattr(self, attribute, kept)
        self._flat = None

    @torch.no_grad()
    def grow(self, params: Mapping[str, Tensor], names: Collection[str]) -> None:
        """Follow parameters that got more rows: the old rows keep their price, the new are free.

        Args:
            params: parameter name → θ as it is now.
            names: of the consolidated parameters that are longer than their anchors.

        Raises:
            ValueError: when one of them is spread over processes.
        """  # noqa: DOC502 - raised by what is called
        check_whole({name: params[name] for name in names}, "a layer that grows")
        for name in names:
            theta = params[name].detach()
            f, anchor = self.importance.get_buffer(name), self.anchor.get_buffer(name)
            price = f.new_zeros(theta.shape)
            price[: len(f)] = f
            start = theta.to(anchor.device, anchor.dtype, copy=True)
            start[: len(anchor)] = anchor
            set_buffer(self.importance, name, self._placed(price))
            set_buffer(self.anchor, name, self._placed(start))
        self._flat = None


class ReshapedLayers(nn.Module):
    """The part of ``KroneckerPenalty`` that follows a network whose parameters are not the same."""

    layers: nn.ModuleDict
    rest: Any  # a ReshapedDiagonal
    _steps: dict[str, Any]

    def held(self, params: Mapping[str, Tensor]) -> list[str]:
        """Which parameters have a price.

        Args:
            params: parameter name → θ.

        Returns:
            The names of the consolidated ones.
        """
        found = self.rest.held(params)
        for key, terms in self.layers.items():
            weight, bias = names_of(key)
            columns = terms[0].anchor.shape[1]  # type: ignore[index]
            alone = weight in params and params[weight][0].numel() == columns
            found += [weight] if alone else [weight, bias]
        return found

    def let_go(self, names: Collection[str]) -> None:
        """Hold some parameters no longer.

        Args:
            names: of parameters. A layer is held as a whole: its weight decides for its bias.
        """
        self.rest.let_go(names)
        kept = {key: terms for key, terms in self.layers.items() if names_of(key)[0] not in names}
        self.layers = nn.ModuleDict(kept)
        self._steps.clear()

    def pull_of(self, params: Mapping[str, Tensor], weight: float) -> None:
        """Factors stay with the parameters, and give all gradients at once.

        Args:
            params: unused.
            weight: unused.
        """

    def shard_like(self, params: Mapping[str, Tensor]) -> None:
        """Factors are of whole layers.

        Args:
            params: parameter name → θ.

        Raises:
            ValueError: when a parameter is spread over processes.
        """  # noqa: DOC502 - raised by what is called
        check_whole(params, "a penalty of Kronecker factors")

    @torch.no_grad()
    def grow(self, params: Mapping[str, Tensor], names: Collection[str]) -> None:
        """Follow layers that got more outputs: the old ones keep their price, the new are free.

        The damping μ ‖Δ‖², one number for the whole layer, holds the new rows to where they are.

        Args:
            params: parameter name → θ as it is now.
            names: of the consolidated parameters that are longer than their anchors.
        """
        rest = set(self.rest.held(params))
        self.rest.grow(params, [name for name in names if name in rest])
        for key, terms in self.layers.items():
            weight, bias = names_of(key)
            if weight not in names:
                continue
            parts = [params[weight].detach()]
            if terms[0].anchor.shape[1] > parts[0][0].numel():  # type: ignore[index]
                parts.append(params[bias].detach())
            matrix = as_matrix(parts)
            grown = [_grown(term, matrix) for term in terms]  # type: ignore[attr-defined]
            self.layers[key] = nn.ModuleList(grown)
        self._steps.clear()


def _grown(term: KroneckerTerm, weights: Tensor) -> KroneckerTerm:
    rows, more = len(term.anchor), len(weights) - len(term.anchor)
    anchor = weights.to(term.anchor.device, term.anchor.dtype, copy=True)
    anchor[:rows] = term.anchor
    new = KroneckerTerm(anchor, term.A, nn.functional.pad(term.G, (0, more, 0, more)))
    new.shift.copy_(term.shift)
    return new.to(term.anchor.device)
