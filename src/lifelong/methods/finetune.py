"""Fine-tuning: the network just goes on learning."""

from lifelong.methods.base import Method


class Finetune(Method):
    """Adds nothing and keeps nothing: the lower bound.

    Example:
        >>> Finetune().keeps_state
        False
    """
