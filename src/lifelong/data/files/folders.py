"""Whether a folder may be written."""

import os
import stat
from pathlib import Path

_ANY_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def is_writable(folder: Path) -> bool:
    """Return whether a folder, or for a missing one its nearest existing parent, may be written.

    A folder whose mode has no write bit is read-only even to the superuser, who could write there:
    it was marked so on purpose.

    Args:
        folder: The folder; it need not exist.

    Returns:
        True when files may be made there.
    """
    path = folder.absolute()
    try:
        existing = next(candidate for candidate in (path, *path.parents) if candidate.exists())
        marked = existing.is_dir() and existing.stat().st_mode & _ANY_WRITE
    except OSError:  # a parent that may not even be looked into
        return False
    return bool(marked) and os.access(existing, os.W_OK | os.X_OK)
