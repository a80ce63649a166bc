"""Runs in an environment with vLLM: reads what to serve from standard input, prints what was written as JSON."""

import json
import sys

from vllm import LLM, SamplingParams

asked = json.load(sys.stdin)
engine = LLM(
    asked["folder"],
    skip_tokenizer_init=True,
    dtype="float32",
    enforce_eager=not asked["compiled"],
    max_model_len=asked["longest"],
    trust_remote_code=asked["trusted"],
    enable_prefix_caching=True,
)
sampling = SamplingParams(temperature=0, max_tokens=asked["new"], logprobs=1, ignore_eos=True, detokenize=False)
prompts = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
found = []
for _ in range(2):
    for output in engine.generate(prompts, sampling, use_tqdm=False):
        (written,) = output.outputs
        logs = [steps[token].logprob for steps, token in zip(written.logprobs, written.token_ids, strict=True)]
        cached = output.num_cached_tokens or 0
        found.append({"tokens": list(written.token_ids), "log-probabilities": logs, "cached": cached})
print(json.dumps({"runs as": engine.llm_engine.model_config.architecture, "written": found}))
