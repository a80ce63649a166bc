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


def modules_of(text: str) -> list[ModuleKey]:
    """The modules a text names: one, written `3.mlp`, or both of a layer, written `3`; raises InputError else."""
    if text.isdecimal() and text.isascii():
        return [ModuleKey(int(text), kind) for kind in KINDS]
    return [ModuleKey.parse(text)]
