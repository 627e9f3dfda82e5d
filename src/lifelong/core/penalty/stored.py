"""How F̄ and θ̄ are kept: in which type, on which device, whole or a part in each process."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias
from zlib import crc32

import torch
from torch import Generator, Tensor, nn

from lifelong.core.penalty.reshaping import ReshapedDiagonal, set_buffer
from lifelong.core.penalty.sharded import entire, local, shard
from lifelong.core.penalty.storage import (
    Kept,
    check_storage,
    rekeyed,
    to_bfloat16,
    to_log8,
)

ANCHORS = ("each", "last")
# one of ANCHORS: checked with a message that names them, as it is what users type
Anchors: TypeAlias = str


class StoredDiagonal(ReshapedDiagonal):
    """The part of ``QuadraticPenalty`` that keeps its buffers.

    Args:
        storage: how F̄ is kept; see there.
        device: where F̄ and θ̄ stay; None where they follow ``to``.
        anchors: what F̄ holds to; see there.

    Raises:
        ValueError: when ``storage`` or ``anchors`` is none of those.
    """

    constant: Tensor
    folds: Tensor

    def __init__(
        self, storage: str, device: torch.device | str | None, anchors: Anchors = "each"
    ) -> None:
        super().__init__()
        check_storage(storage)
        if anchors not in ANCHORS:
            raise ValueError(f"anchors is {anchors!r}; it must be one of {', '.join(ANCHORS)}")
        self.anchored: Anchors = anchors
        self.storage = storage
        self.device = None if device is None else torch.device(device)
        self.importance = nn.Module()
        self.anchor = nn.Module()
        self.scale = nn.Module()  # of log8
        self.register_buffer("constant", torch.zeros((), dtype=torch.float64, device=self.device))
        if storage != "float32":
            self.register_buffer("folds", torch.zeros((), dtype=torch.int64))
        # Walking the trees of buffers in every step would cost 3 % of it.
        self._flat: list[tuple[str, Tensor, Kept]] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was consolidated yet, so that Ω is zero everywhere."""
        return next(self.importance.buffers(), None) is None

    def importances(self) -> Mapping[str, Tensor]:
        """The folded importance F̄ of every consolidated parameter.

        Returns:
            Parameter name → F̄, in the parameter's shape; what is kept in fewer bytes is made whole
            when it is asked for, and not kept so.
        """
        if self.storage == "float32":
            return dict(self.importance.named_buffers())
        return Decoded({name: f for name, _, f in self._consolidated()})

    def anchors(self) -> dict[str, Tensor]:
        """The folded anchor θ̄ of every consolidated parameter.

        Returns:
            Parameter name → θ̄, in the parameter's shape.
        """
        return dict(self.anchor.named_buffers())

    @torch.no_grad()
    def shard_like(self, params: Mapping[str, Tensor]) -> None:
        """Keep of F̄ and θ̄ in each process what it has of the parameters: nothing is sent.

        Args:
            params: parameter name → θ, those that ``fully_shard`` has spread among them.
        """
        for tree in (self.importance, self.anchor):
            for name, whole in list(tree.named_buffers()):
                param = params.get(name, whole)
                if local(param) is not param and local(whole) is whole:
                    set_buffer(tree, name, shard(whole.to(param.device), param))
                    self._flat = None

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The buffers, each of them whole: where they are spread every process has to call this.

        Args:
            *args: as of any module.
            **kwargs: as of any module.

        Returns:
            Name → tensor.
        """
        state = super().state_dict(*args, **kwargs)
        for name, value in state.items():
            state[name] = entire(value)
        return state

    def _begin_fold(self) -> None:
        self._flat = None
        if self.storage != "float32":
            self.folds += 1

    def _consolidated(self) -> list[tuple[str, Tensor, Kept]]:
        if self._flat is None:
            scales = dict(self.scale.named_buffers())
            numbers = dict(self.importance.named_buffers())
            self._flat = [
                (name, local(anchor), Kept(local(numbers[name]), scales.get(name)))
                for name, anchor in self.anchor.named_buffers()
            ]
        return self._flat

    def _keep(self, name: str, f: Tensor, dtype: torch.dtype, *, is_new: bool) -> None:
        draws = None
        if not is_new and self.storage != "float32":
            # torch's generator looks at 32 bits of a seed
            draws = Generator().manual_seed(crc32(f"{int(self.folds)} {name}".encode()))
        if self.storage == "log8":
            f, scale = to_log8(f, draws)
            set_buffer(self.scale, name, scale)
        else:
            f = to_bfloat16(f, draws) if self.storage == "bfloat16" else f.to(dtype, copy=True)
        set_buffer(self.importance, name, self._placed(f))

    def _remember(self, name: str, theta: Tensor, dtype: torch.dtype) -> None:
        # A copy: a float64 parameter that is folded first would otherwise be its own anchor.
        set_buffer(self.anchor, name, self._placed(theta.to(dtype, copy=True)))

    def _hold_to(self, params: Mapping[str, Tensor]) -> None:
        # All of F̄ at one point: Ω is zero there.
        self.constant.zero_()
        for name, anchor in self.anchors().items():
            anchor.copy_(params[name].detach())

    def _placed(self, tensor: Tensor) -> Tensor:
        if self.device is None:
            return tensor
        tensor = tensor.to(self.device)
        pins = self.device.type == "cpu" and torch.cuda.is_available()
        return tensor.pin_memory() if pins else tensor

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        if self.device is not None:  # what stays where it is
            return self
        self._flat = None  # the buffers that move to another device are other tensors
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # The buffers of this instance become those that the state has, so that a fresh penalty
        # loads any state strictly; their values are then copied in by torch as ever.
        start = f"{prefix}importance."
        names = [key.removeprefix(start) for key in state_dict if key.startswith(start)]
        rekeyed(state_dict, prefix, names, self.storage)
        for tree in ("importance", "anchor", "scale"):
            fresh = nn.Module()
            for name in names:
                value = state_dict.get(f"{prefix}{tree}.{name}")
                if value is not None:
                    like_it = torch.empty_like(value, device=self.constant.device)
                    set_buffer(fresh, name, self._placed(like_it))
            setattr(self, tree, fresh)
        self._flat = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Decoded(Mapping[str, Tensor]):
    """Parameter name → F̄, made whole when it is asked for, so that one is whole at a time.

    Args:
        kept: parameter name → F̄ as it is kept.
    """

    def __init__(self, kept: Mapping[str, Kept]) -> None:
        self._kept = kept

    def __getitem__(self, name: str) -> Tensor:
        return self._kept[name].decoded()

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)
