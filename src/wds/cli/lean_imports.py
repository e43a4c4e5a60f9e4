"""Importing a library without one of its optional dependencies."""

from __future__ import annotations

import sys
from importlib import import_module


def import_without(module: str, optional: str) -> None:
    """Import `module` as if `optional` were not installed, unless `optional` is imported already.

    Some libraries import others only for features that wds does not use, and starting a process
    takes a tenth longer for each. None in `sys.modules` makes an import fail:
    https://docs.python.org/3/reference/import.html#the-module-cache
    """
    if optional in sys.modules:
        return
    sys.modules[optional] = None  # type: ignore[assignment]
    try:
        import_module(module)
    finally:
        del sys.modules[optional]
