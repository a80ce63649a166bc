"""What `bench engines` may have measured: transformers ran both models, llama.cpp not every batch, vLLM none."""

from numprune.evaluation.engines.records import (
    KIND,
    AtBatch,
    Counted,
    EngineComparison,
    EngineResult,
    InEngine,
    Measured,
)


def measured(decode, *, peak=2_000_000):
    """One model at a batch, whose decoding took so many tokens per second."""
    return Measured((decode, decode - 10, decode + 10), (900.0, 800.0, 1000.0), (0.02, 0.01, 0.03), peak, 400_000)


def at(batch, *, peak=2_000_000):
    gains = (1.25, 1.2, 1.3), (1.1, 0.9, 1.2)
    return AtBatch(batch, None, measured(100.0, peak=peak), measured(125.0, peak=peak), *gains, 1.5, 1.4)


NOT_RUN = AtBatch(8, "the pruned model: out of <memory>", None, None, None, None, 1.4, 1.4)
OPENED = InEngine("LlamaForCausalLM", "float32", 8_000_000), InEngine("LlamaForCausalLM", "float32", 6_000_000)
COMPARISON = EngineComparison(
    kind=KIND,
    dense=Counted("big <b>model</b>", 2_000_000),
    pruned=Counted("smaller", 1_500_000),
    prompt_tokens=64,
    new_tokens=32,
    repetitions=3,
    threads=2,
    machine="a processor, 2 cores",
    engines=[
        EngineResult("transformers", "5.23.0", "cpu", None, *OPENED, [at(1), at(8)]),
        EngineResult("llama.cpp", "0.3.36", "cpu", None, *OPENED, [at(1, peak=None), NOT_RUN]),
        EngineResult("vllm", None, None, "the dense model: heads are <24> wide", None, None, []),
    ],
)
