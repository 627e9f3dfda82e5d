"""``python -m lifelong.train``, the same as the command ``lifelong-train``."""

from lifelong.cli.train import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
