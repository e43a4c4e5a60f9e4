"""`json_default`, the hook that lets JSON encoders write BSON's number and text types."""

from __future__ import annotations


def json_default(value: object) -> object:
    """Return an instance of a subclass of int, float or str as the built-in type itself.

    JSON encoders call it for types that they do not know, such as BSON's `Int64`.

    Raises:
        TypeError: `value` is neither a number nor text.
    """
    for base in (int, float):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, str):
        return "".join(value)
    msg = f"{type(value).__name__} cannot be written as JSON"
    raise TypeError(msg)
