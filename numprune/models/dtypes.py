"""Data types by name."""

from __future__ import annotations

from typing import Any

DTYPE_NAMES = ("float32", "float16", "bfloat16")
"""Names of the data types a model can have."""


def dtype_name(dtype: Any) -> str:
    """The name a data type goes by in commands, reports and files, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")
