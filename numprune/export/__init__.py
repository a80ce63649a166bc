"""Writing a model in a form that other engines open."""

from numprune.export.formats import FORMATS, Exported, Format, check_export, export, formats_for
from numprune.export import transformers
from numprune.export import folder, llamagen, onnx  # noqa: F401  (each registers its format)

__all__ = ["FORMATS", "Exported", "Format", "check_export", "export", "formats_for"]
