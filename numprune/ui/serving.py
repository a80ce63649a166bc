"""How the dashboard is served, and what its visitors may ask for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from numprune.calibration.names import DATASETS, SELF, parse_sources
from numprune.errors import InputError
from numprune.ui.session import LoadRequest


@dataclass(frozen=True)
class Serving:
    """How the page is served.

    Attributes:
        host, port: where to listen.
        auth: (user, password) visitors must give.
        root_path: path under which a proxy shows the page.
        share: whether gradio opens a public link.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    auth: tuple[str, str] | None = None
    root_path: str = ""
    share: bool = False


@dataclass(frozen=True)
class Policy:
    """What visitors may ask for.

    Attributes:
        models: the only names that may be loaded; None for any. With a list, calibration text is limited to
            datasets, uploads and the model's own samples, so that no file of the server can be read.
        max_parameters: of a model; None for any.
        exports: folder below which models may be exported on this machine; None where they can only be downloaded.
        push: whether models may be pushed to the Hub from here, with the visitor's own token.
    """

    models: Collection[str] | None = None
    max_parameters: int | None = None
    exports: Path | None = None
    push: bool = False

    def check(self, request: LoadRequest, own_texts: str) -> None:
        """Raise InputError for what may not be loaded; `own_texts` is the folder of uploaded texts."""
        if self.models is None:
            return
        if request.model not in self.models:
            raise InputError(f"'{request.model}' may not be loaded here; choose one of {', '.join(self.models)}.")
        for source in parse_sources(str(request.calibration.data)):
            uploaded = Path(own_texts).resolve() in Path(source).resolve().parents if own_texts else False
            # A pattern would match what others have uploaded.
            if source not in (SELF, *DATASETS) and (not uploaded or set(source) & set("*?[")):
                raise InputError("Files of the server may not be read here; upload the text or choose a dataset.")

    def export_target(self, name: str) -> Path:
        """The path of an export by its name below the folder for exports.

        Raises:
            InputError: there is no such folder, the name leads out of it, links followed, or is taken.
        """
        if self.exports is None:
            raise InputError("Exports may not be written on this machine; download the model instead.")
        try:
            root = self.exports.resolve()
            path = (root / name).resolve()
            taken = path.exists()
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"'{name[:60]}' is no name for a file; choose another one.") from error
        if root not in path.parents:
            raise InputError(f"'{name[:60]}' is not below the folder for exports; give a name such as small.")
        if taken:
            raise InputError(f"'{name[:60]}' is there already; choose another name.")
        return self.exports / path.relative_to(root)
