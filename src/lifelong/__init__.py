"""Learn tasks one after another and keep what was known."""

from typing import TYPE_CHECKING, Any

from lifelong.version import __version__

if TYPE_CHECKING:
    from lifelong.methods import EWC

__all__ = ["EWC", "__version__"]


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import; the command line's help and its errors do not wait for it.
    if name == "EWC":
        from lifelong.methods import EWC

        return EWC
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
