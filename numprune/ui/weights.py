"""Where the weights of an open model are: here, on their way, or on another machine."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from numprune.errors import InputError
from numprune.models.outline import Outline
from numprune.ui import engine

if TYPE_CHECKING:
    from numprune.models import Model
    from numprune.plan.recipe import Recipe

ELSEWHERE = (
    "{name} is open without its weights, so what needs them is off: make the plan here, save its recipe under Share and"
    " run numprune prune --recipe where the weights are."
)


class Weights:
    """The weights of one model.

    Attributes:
        outline: the model without them.
        ready: whether `model` answers at once.
        elsewhere: why they will never be here, in a sentence; None where they are or come.
    """

    outline: Outline
    ready: bool = True
    elsewhere: str | None = None

    @property
    def model(self) -> Model:
        """The model; raises InputError where the weights are elsewhere."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Memory the weights take here."""
        return self.outline.bytes

    def adopt(self, recipe: Recipe) -> Recipe:
        """As `Model.adopt`."""
        return self.outline.adopt(recipe)


class Here(Weights):
    """A model in memory."""

    def __init__(self, model: Model, outline: Outline | None = None) -> None:
        self._model = model
        if outline is not None:
            self.outline = outline

    @property
    def model(self) -> Model:
        return self._model

    @cached_property
    def outline(self) -> Outline:
        return engine.outline_of(self._model)

    @property
    def bytes(self) -> int:
        return self._model.bytes


class Coming(Weights):
    """A model that is loaded by whoever first needs it, or before that by a thread that has nothing else to do."""

    def __init__(self, outline: Outline, load: Callable[[], Model]) -> None:
        self.outline = outline
        self._load = load
        self._loading = threading.Lock()
        self._model: Model | None = None

    @property
    def ready(self) -> bool:
        return self._model is not None

    @property
    def model(self) -> Model:
        """The model, waited for.

        Raises:
            LoadError: it cannot be loaded.
            InputError: it is not the one of the outline.
        """
        with self._loading:
            if self._model is None:
                model = self._load()
                if (model.fingerprint(), str(model.device), str(model.dtype)) != (
                    self.outline.fingerprint,
                    self.outline.device,
                    f"torch.{self.outline.dtype}",
                ):
                    raise InputError(
                        f"The scores that ship with {self.outline.name} are of other weights than lie beside them;"
                        " install numprune again, or delete the files of scores to have them made anew."
                    )
                self._model = model
        return self._model


class Elsewhere(Weights):
    """A model of which there are only scores."""

    ready = False
    bytes = 0

    def __init__(self, outline: Outline) -> None:
        self.outline = outline
        self.elsewhere = ELSEWHERE.format(name=outline.name)

    @property
    def model(self) -> Model:
        raise InputError(self.elsewhere)


def only_cpu() -> bool:
    """Whether torch will find nothing but a CPU, told without importing it; False where that is not certain."""
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    return platform.system() == "Linux" and os.name == "posix" and not any(Path(each).exists() for each in drivers)
