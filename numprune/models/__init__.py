"""What of a model can be pruned, and how it is narrowed and run."""

from numprune.lazy import lazily

__all__, __getattr__ = lazily(
    __name__,
    {
        "numprune.models.adapter": "Adapter Block Section register",
        "numprune.models.embedded": "DEFAULT_MODEL embedded_models held_out_text",
        "numprune.models.model": "Model",
    },
)
