"""What a method knows of the network that it consolidated, beside the penalty itself."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from lifelong.core.protocols import Penalty
from lifelong.errors import LifelongError
from lifelong.methods.selection import Selection


@dataclass
class Remembered:
    """The network as it was when a task was consolidated last.

    Args:
        shapes: of all its parameters, protected or not.
        examples: how many each importance is the mean over, one number a consolidation.
        omega: Ω of the weights that were consolidated, in nats.
        step: the Trainer's step at the end of the fit; None outside a Trainer.
        data: a fingerprint of that fit's training data; None where there is none.
    """

    shapes: dict[str, list[int]] = field(default_factory=dict)
    examples: list[int] = field(default_factory=list)
    omega: float = 0.0
    step: int | None = None
    data: str | None = None

    def state(self) -> dict[str, Any]:
        """For a checkpoint.

        Returns:
            Plain values.
        """
        return asdict(self)

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "Remembered":
        """What ``state`` returned; a state of before has less.

        Args:
            state: plain values.

        Returns:
            The same again.
        """
        known = {name: state[name] for name in cls.__dataclass_fields__ if name in state}
        return cls(**known)

    def note(self, params: Mapping[str, Tensor], examples: int, omega: float) -> None:
        """Take down a consolidation.

        Args:
            params: parameter name → θ* of the whole network.
            examples: how many its importance is the mean over.
            omega: Ω(θ*) with this task in it, in nats.
        """
        self.shapes |= {name: list(p.shape) for name, p in params.items()}
        self.examples = [*self.examples, examples]
        self.omega, self.step, self.data = omega, None, None

    def follow(self, penalty: Penalty, params: Mapping[str, Tensor], chosen: Selection) -> None:
        """Make a penalty one for the network as it is now, or say why it cannot be.

        What is no longer chosen is let go. An output layer that got more rows keeps the price of
        its old rows; the new ones are free.

        Args:
            penalty: Ω.
            params: parameter name → θ of the whole network.
            chosen: which are to be protected.

        Raises:
            LifelongError: when a protected parameter is missing or has another shape.
        """
        held = penalty.held(params)
        chosen.check([*params, *held])
        left = [name for name in held if not chosen(name)]
        if left:
            penalty.let_go(left)
            held = penalty.held(params)
        gone = [name for name in held if name not in params]
        if gone:
            raise LifelongError(
                f"consolidated parameters are missing: {_some(gone)}; give them their names back, "
                f"or let go of them with ignore={_pattern(gone)!r}"
            )
        anchors = {name: list(a.shape) for name, a in penalty.single_anchors().items()}
        shapes = self.shapes | anchors
        grown = []
        for name in held:
            old, new = shapes.get(name), list(params[name].shape)
            if old is None or old == new:
                continue
            if not (old and old[1:] == new[1:] and new[0] > old[0]):
                raise LifelongError(
                    f"{name!r} was consolidated with the shape {tuple(old)} and is now "
                    f"{tuple(new)}; only an output layer that grows can be followed: let go of it "
                    f"with ignore={_pattern([name])!r}"
                )
            grown.append(name)
        if grown:
            penalty.grow(params, grown)
            self.shapes |= {name: list(params[name].shape) for name in grown}

    def unprotected(
        self, penalty: Penalty, params: Mapping[str, Tensor], chosen: Selection
    ) -> str | None:
        """Say which trainable parameters were there when it was consolidated, without a price.

        Args:
            penalty: Ω.
            params: parameter name → θ of the whole network.
            chosen: which are to be protected.

        Returns:
            A sentence, or None where everything old that is trained is held.
        """
        held = set(penalty.held(params))
        free = [
            name
            for name, p in params.items()
            if p.requires_grad and name in self.shapes and name not in held and chosen(name)
        ]
        if not free:
            return None
        count = sum(math.prod(params[name].shape) for name in free)
        total = sum(p.numel() for p in params.values() if p.requires_grad)
        return (
            f"{len(free)} trainable parameters ({_some(free)}; {count} of {total} numbers) were "
            "frozen when the network was consolidated, and are not protected; consolidate with "
            "include_frozen=True, or freeze them again"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _pattern(names: list[str]) -> str:
    # The one module that they are all of, where there is one.
    owners = {name.rpartition(".")[0] for name in names}
    owner = owners.pop()
    return f"{owner}.*" if owner and not owners else names[0]
