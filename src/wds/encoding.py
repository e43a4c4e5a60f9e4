"""What JSON writers do not know, in terms of what they do: for answers and log lines. Pure."""

from __future__ import annotations


def plain(value: object) -> object:
    """Return a value of a subclass, such as BSON's integers of 64 bits, as one of its base.

    Raises:
        TypeError: it is no number and no text of any class.
    """
    for base in (int, float):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, str):
        return "".join(value)
    msg = f"{type(value).__name__} is no JSON"
    raise TypeError(msg)
