"""Writing a model in a form that other engines open."""

from numprune.export import gguf  # noqa: F401
from numprune.export.formats import FORMATS, Exported, Format, check_export, export, formats_for

__all__ = ["FORMATS", "Exported", "Format", "check_export", "export", "formats_for"]
