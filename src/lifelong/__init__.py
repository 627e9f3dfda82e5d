"""Learn tasks one after another and keep what was known."""

from typing import TYPE_CHECKING, Any

from lifelong.version import __version__

if TYPE_CHECKING:
    from lifelong.methods import EWC
    from lifelong.methods.protect import protect

__all__ = ["EWC", "__version__", "protect"]


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import; the command line's help and its errors do not wait for it.
    if name == "EWC":
        from lifelong.methods import EWC

        return EWC
    if name == "protect":
        from lifelong.methods.protect import protect

        return protect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
