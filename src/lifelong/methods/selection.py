"""Which parameters of a network are protected."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from lifelong.errors import LifelongError

Patterns = str | Sequence[str] | None


class Selection:
    """Says of a parameter's name whether it is to be protected.

    A pattern is a name with ``*``, ``?`` and ``[…]`` as in file names, of a parameter or of a
    module whose parameters are meant: ``"backbone"``, ``"backbone.*"``, ``"*.bias"``.

    Args:
        modules: what is protected; by default everything.
        ignore: what is not, though ``modules`` names it.

    Example:
        >>> chosen = Selection("backbone", ignore="*.bias")
        >>> [chosen(name) for name in ("backbone.0.weight", "backbone.0.bias", "head.weight")]
        [True, False, False]
    """

    def __init__(self, modules: Patterns = None, ignore: Patterns = None) -> None:
        self.modules, self.ignore = _listed(modules), _listed(ignore)

    def __call__(self, name: str) -> bool:
        """Whether a parameter is to be protected.

        Args:
            name: as in ``named_parameters``.

        Returns:
            True by default.
        """
        chosen = self.modules is None or any(_fits(name, one) for one in self.modules)
        return chosen and not any(_fits(name, one) for one in self.ignore or ())

    @property
    def takes_all(self) -> bool:
        """Whether nothing was said."""
        return self.modules is None and not self.ignore

    def check(self, names: Iterable[str]) -> None:
        """Refuse a pattern that means nothing.

        Args:
            names: of all parameters, those among them that were consolidated and are gone.

        Raises:
            LifelongError: when a pattern of ``modules`` fits none of them.
        """
        known = list(names)
        for pattern in self.modules or ():
            if not any(_fits(name, pattern) for name in known):
                some = ", ".join(known[:3])
                raise LifelongError(
                    f"modules={pattern!r} fits no parameter; they are called {some}, …"
                )


def _listed(patterns: Patterns) -> tuple[str, ...] | None:
    if patterns is None:
        return None
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
