"""Numbers from the page or an endpoint, which may be anything that JSON holds."""

from __future__ import annotations

import math
from typing import Any

from numprune.errors import InputError


def number(value: Any, what: str) -> float:
    """A finite number.

    Args:
        what: the name of the box or value, for the error.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{what} is {value!r}; give a number.")
    return float(value)


def whole(value: Any, what: str, *, empty: int | None = None) -> int:
    """A whole number.

    Args:
        what: the name of the box or value, for the error.
        empty: what a box that was left empty stands for.

    Raises:
        InputError: it is none.
    """
    if value is None and empty is not None:
        return empty
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value % 1:
        raise InputError(f"{what} is {value!r}; give a whole number.")
    return int(value)
