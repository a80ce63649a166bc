"""A plugin of vLLM: exported folders run by its own layers, each at its own size, and run none of their code.

vLLM finds it by the entry point `vllm.general_plugins` where numprune is installed in its environment. Nothing else of
numprune is imported there, and none of its requirements are needed: `pip install --no-deps numprune`.
"""

ARCHITECTURES = {
    "PrunedLlamaForCausalLM": "PrunedLlama",
    "PrunedMistralForCausalLM": "PrunedLlama",
    "PrunedQwen2ForCausalLM": "PrunedLlama",
    "PrunedQwen3ForCausalLM": "PrunedQwen3",
}
"""What `numprune export` calls a model in its config, and the class in `numprune.vllm.layers` that runs it."""


def register() -> None:
    """Tell vLLM of the architectures; the classes are imported when one of them is opened."""
    from vllm import ModelRegistry

    for name, runner in ARCHITECTURES.items():
        ModelRegistry.register_model(name, f"numprune.vllm.layers:{runner}")
