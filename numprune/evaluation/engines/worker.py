"""One model in one engine: a program for any Python that has the engine, whether numprune is installed there or not.

It is told what to open on standard input and then every run to make, a line of JSON each, and answers each with one:

    {"engine": "vllm", "path": "folder", "threads": 2, "device": "auto", "dtype": "auto", "longest": 128, "batch": 32}
    {"version": "0.32.0", "device": "cpu", "dtype": "float32", "runs_as": "...", "weights": 538e6, "cache_itemsize": 4}
    {"batch": 8, "prompt_tokens": 64, "new_tokens": 64}
    {"first": 0.21, "rest": 1.93, "peak": 812345600}

or with {"refused": "why"}. Seconds are counted from the prompts to the first token of every sequence, and from there to
the last one; decoding is greedy, and no token ends it early. Whatever engines print goes to standard error.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import Any


def prompt_of(tokens: int) -> list[int]:
    """What every sequence begins with: arbitrary ids that every vocabulary has, since values do not change the work."""
    return [1 + place % 50 for place in range(tokens)]


BLOCK = 128
"""Tokens of a block of vLLM's cache, at most."""


class Memory:
    """Resident memory of this process beyond what it was, in bytes; None where the system does not tell."""

    def __init__(self) -> None:
        self._before = self._status("VmRSS")

    def restart(self) -> None:
        """Let the peak start from what is in use now."""
        if self._before is not None:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int | None:
        return None if self._before is None else max(self._status("VmHWM") - self._before, 0)

    @staticmethod
    def _status(name: str) -> int | None:
        if not os.access("/proc/self/clear_refs", os.W_OK):
            return None
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


class Transformers:
    """What numprune opens, run by the classes of transformers."""

    def __init__(self, asked: dict[str, Any]) -> None:
        import torch

        from numprune.evaluation import memory, speed
        from numprune.loading import load
        from numprune.models.placement import dtype_name

        torch.set_num_threads(asked["threads"])
        self._memory, self._speed, self._tensor = memory, speed, torch.tensor
        self._model = load(asked["path"], device=asked["device"], dtype=asked["dtype"])
        self.facts = {
            "version": version("transformers"),
            "device": str(self._model.device),
            "dtype": dtype_name(self._model.dtype),
            "runs_as": self._model.architecture,
            "weights": self._model.bytes,
            "cache_itemsize": self._model.dtype.itemsize,
        }

    def run(self, batch: int, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        device = self._model.device
        prompt = self._tensor([prompt_of(prompt_tokens)] * batch, device=device)
        before = self._memory.reset_peak(device) if self._memory.measurable(device) else None
        done = self._speed.run_once(self._model, prompt, new_tokens, None)
        peak = None if before is None else self._model.bytes + max(self._memory.peak(device) - before, 0)
        return {"first": done.first, "rest": done.rest, "peak": peak}


class LlamaCpp:
    """A GGUF file in llama.cpp, by its C interface: llama-cpp-python's own class holds one sequence at a time."""

    def __init__(self, asked: dict[str, Any]) -> None:
        import llama_cpp
        import numpy as np

        self._api, self._argmax, self._threads = llama_cpp, np.argmax, asked["threads"]
        self._context, self._batch = None, 0
        self._memory = Memory()
        offload = asked["device"] != "cpu" and llama_cpp.llama_supports_gpu_offload()
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = -1 if offload else 0
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(asked["path"]), settings)
        if not self._model:
            raise ValueError("llama.cpp does not open the GGUF file")
        self._tokens = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        described = ctypes.create_string_buffer(200)
        llama_cpp.llama_model_desc(self._model, described, len(described))
        name, *kind = described.value.decode(errors="replace").split()
        self._on_gpu = offload
        self.facts = {
            "version": llama_cpp.__version__,
            "device": "gpu" if offload else "cpu",
            "dtype": kind[-1] if kind else "gguf",
            "runs_as": name,
            "weights": llama_cpp.llama_model_size(self._model),
            "cache_itemsize": 2,  # float16, unless it is told otherwise
        }

    def run(self, batch: int, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        api = self._api
        self._prepare(batch, prompt_tokens, new_tokens)
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        prompt = [(token, place) for place, token in enumerate(prompt_of(prompt_tokens))]
        prompts = self._filled([prompt] * batch)
        self._memory.restart()
        began = time.perf_counter()
        tokens = self._decoded(prompts, batch)
        first = time.perf_counter()
        for place in range(prompt_tokens, prompt_tokens + new_tokens):
            step = self._filled([[(token, place)] for token in tokens])
            tokens = self._decoded(step, batch)
            api.llama_batch_free(step)
        rest = time.perf_counter() - first
        api.llama_batch_free(prompts)
        # What a GPU holds is not in the memory of the process.
        return {"first": first - began, "rest": rest, "peak": None if self._on_gpu else self._memory.peak()}

    def _prepare(self, batch: int, prompt_tokens: int, new_tokens: int) -> None:
        """A context of so many sequences; the one of the run before where it fits."""
        wanted = batch, prompt_tokens, new_tokens
        if self._batch == wanted:
            return
        if self._context is not None:
            self._api.llama_free(self._context)
        settings = self._api.llama_context_default_params()
        settings.n_seq_max = batch
        settings.n_ctx = batch * -(-(prompt_tokens + new_tokens) // 256) * 256  # in whole blocks, as it pads them
        settings.n_batch = batch * prompt_tokens
        settings.n_threads = settings.n_threads_batch = self._threads
        self._context, self._batch = self._api.llama_init_from_model(self._model, settings), wanted
        if not self._context:
            self._context, self._batch = None, 0
            raise MemoryError(f"llama.cpp makes no context for batch {batch}")

    def _filled(self, sequences: list[list[tuple[int, int]]]) -> Any:
        """A batch of (token, position) of every sequence, whose last ones are to be continued."""
        size = sum(map(len, sequences))
        batch = self._api.llama_batch_init(size, 0, 1)
        batch.n_tokens = at = 0
        for number, sequence in enumerate(sequences):
            for token, place in sequence:
                batch.token[at], batch.pos[at] = token, place
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, number
                batch.logits[at] = place == sequence[-1][1]
                at += 1
        batch.n_tokens = size
        return batch

    def _decoded(self, batch: Any, sequences: int) -> list[int]:
        """The likeliest token after every sequence."""
        failed = self._api.llama_decode(self._context, batch)
        if failed:
            raise MemoryError(f"llama.cpp's decode ended with {failed}")
        # Outputs are counted from the end, one of each sequence.
        logits = [self._api.llama_get_logits_ith(self._context, place - sequences) for place in range(sequences)]
        return [int(self._argmax(_array(row, self._tokens))) for row in logits]


def _array(pointer: Any, length: int) -> Any:
    import numpy as np

    return np.ctypeslib.as_array(pointer, (length,))


class OnnxRuntime:
    """A graph by `numprune.export` in ONNX Runtime, whose cache stays where the runtime has it."""

    def __init__(self, asked: dict[str, Any]) -> None:
        import numpy as np
        import onnxruntime

        self._np, self._value = np, onnxruntime.OrtValue.ortvalue_from_numpy
        self._memory = Memory()
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = asked["threads"]
        graph = Path(asked["path"]) / "model.onnx"
        self._session = onnxruntime.InferenceSession(str(graph), settings, providers=["CPUExecutionProvider"])
        names = [each.name for each in self._session.get_inputs()]
        self._caches = self._session.get_inputs()[3:]
        self._names, self._outputs = names, [each.name for each in self._session.get_outputs()]
        self.facts = {
            "version": onnxruntime.__version__,
            "device": "cpu",
            "dtype": "float32",
            "runs_as": "graph",
            "weights": sum(file.stat().st_size for file in graph.parent.glob(f"{graph.name}*")),
            "cache_itemsize": 4,
        }

    def run(self, batch: int, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        np = self._np
        empty = [np.zeros((batch, each.shape[1], 0, each.shape[3]), np.float32) for each in self._caches]
        past, ids = list(map(self._value, empty)), np.array([prompt_of(prompt_tokens)] * batch)
        self._memory.restart()
        began = time.perf_counter()
        ids, past = self._step(ids, past, prompt_tokens)
        first = time.perf_counter()
        for total in range(prompt_tokens + 1, prompt_tokens + new_tokens + 1):
            ids, past = self._step(ids, past, total)
        return {"first": first - began, "rest": time.perf_counter() - first, "peak": self._memory.peak()}

    def _step(self, ids: Any, past: list[Any], total: int) -> tuple[Any, list[Any]]:
        """The likeliest token after every sequence (batch, 1), and the cache of `total` tokens."""
        np = self._np
        places = np.broadcast_to(np.arange(total - ids.shape[1], total), ids.shape)
        mask = np.ones((ids.shape[0], total), np.int64)
        given = [*map(self._value, (ids, mask, np.ascontiguousarray(places))), *past]
        fed = dict(zip(self._names, given, strict=True))
        logits, *present = self._session.run_with_ort_values(self._outputs, fed)
        return logits.numpy()[:, -1:].argmax(-1), present


class Vllm:
    """A folder for transformers in vLLM, driven step by step in this process."""

    def __init__(self, asked: dict[str, Any]) -> None:
        import vllm
        from vllm.platforms import current_platform

        self._parameters, self._prompt = vllm.SamplingParams, vllm.TokensPrompt
        self._memory, self._count = Memory(), 0
        on_cpu = current_platform.is_cpu()
        dtype = asked["dtype"]
        if dtype == "auto" and on_cpu:
            dtype = "float32"
        itemsize = 4 if dtype == "float32" else 2
        self._on_gpu = not on_cpu
        blocks = -(-asked["longest"] // BLOCK) + 1
        self._engine = vllm.LLM(
            asked["path"],
            skip_tokenizer_init=True,
            dtype=dtype,
            enforce_eager=asked["eager"],
            max_model_len=asked["longest"],
            max_num_seqs=asked["batch"],
            # Whole prompts of the largest batch in one step, as the other engines read them.
            max_num_batched_tokens=max(asked["batch"] * asked["longest"], 2048),
            trust_remote_code=True,
            enable_prefix_caching=False,
            model_impl=asked["implementation"],
            # No more than the sequences need, and as much again so that none has to wait; two models share a device.
            kv_cache_memory_bytes=2 * blocks * BLOCK * (1 + asked["batch"]) * asked["cached"] * itemsize,
            gpu_memory_utilization=0.4,
        )
        config = self._engine.llm_engine.model_config
        self.facts = {
            "version": vllm.__version__,
            "device": current_platform.device_type,
            "dtype": str(config.dtype).removeprefix("torch."),
            "runs_as": config.architecture,
            # It packs them in its own way, where they cannot be counted.
            "weights": asked["parameters"] * itemsize,
            "cache_itemsize": itemsize,
        }

    def run(self, batch: int, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        engine = self._engine.llm_engine
        sampling = self._parameters(temperature=0, max_tokens=1 + new_tokens, ignore_eos=True, detokenize=False)
        for _ in range(batch):
            self._count += 1
            prompt = self._prompt(prompt_token_ids=prompt_of(prompt_tokens))
            engine.add_request(str(self._count), prompt, sampling)
        self._memory.restart()
        began, first, written = time.perf_counter(), None, set()
        while engine.has_unfinished_requests():
            written |= {output.request_id for output in engine.step() if output.outputs[0].token_ids}
            if first is None and len(written) == batch:
                first = time.perf_counter()
        rest = time.perf_counter() - first
        return {"first": first - began, "rest": rest, "peak": None if self._on_gpu else self._memory.peak()}


ENGINES = {"transformers": Transformers, "llama.cpp": LlamaCpp, "onnxruntime": OnnxRuntime, "vllm": Vllm}


def reason(error: Exception) -> str:
    """What went wrong, on one line that can be read."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(lines[0], 240, placeholder=" ...").rstrip(".:") if lines else type(error).__name__


def main() -> None:
    # Engines print; what they print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf8")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    asked = json.loads(sys.stdin.readline())
    try:
        engine = ENGINES[asked["engine"]](asked)
    except Exception as error:  # of any library
        answer({"refused": reason(error)})
        return
    answer(engine.facts)
    for line in sys.stdin:
        try:
            answer(engine.run(**json.loads(line)))
        except Exception as error:
            answer({"refused": reason(error)})


if __name__ == "__main__":
    main()
