"""Names of prunable modules."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from numprune.errors import InputError

Kind = Literal["attention", "mlp"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class ModuleKey(NamedTuple):
    """Names one prunable module: layer index and kind; written `3.mlp` in recipes and reports."""

    layer: int
    kind: Kind

    def __str__(self) -> str:
        return f"{self.layer}.{self.kind}"

    @classmethod
    def parse(cls, text: str) -> ModuleKey:
        layer, _, kind = text.partition(".")
        if not layer.isdecimal() or kind not in KINDS:
            raise InputError(f"'{text}' does not name a module; write LAYER.KIND such as 0.attention or 3.mlp.")
        return cls(int(layer), kind)
