"""Sampling token by token.

The loop is not transformers' `generate`, for three reasons: every row draws from a generator of its own,
so a seed gives the same text whatever else runs in the process and however rows are batched; it is a Python
generator, so the dashboard streams and stops it; and calibration can let a row start over after a document ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from numprune.errors import CancelEvent, InputError, NumericalError, Progress, check_cancelled
from numprune.generation.sampling import Sampling, draw
from numprune.models.model import Model


def generate(
    model: Model,
    prompt: str | Sequence[str],
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> str | list[str]:
    """Continue one prompt (a string) or several (a list); returns prompt and continuation, as given.

    The same model, prompt, settings and seed give the same text. See `Sampling` for the arguments.

    Raises:
        InputError: a setting is out of range or a prompt is too long.
        Cancelled: `cancel` was set.
    """
    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, seed)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    texts = prompts
    for step, so_far in enumerate(stream_text(model, prompts, sampling, cancel=cancel), 1):
        texts = so_far
        if progress is not None:
            progress(step, max_new_tokens, "writing")
    return texts[0] if isinstance(prompt, str) else texts


def stream_text(
    model: Model, prompts: Sequence[str], sampling: Sampling, *, cancel: CancelEvent | None = None
) -> Iterator[list[str]]:
    """Yield, after every token, the texts so far (prompt and continuation) of all prompts."""
    ids, mask = encode_prompts(model, prompts)
    rows = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
    eos = end_tokens(model)
    for tokens in sample_tokens(model, ids, mask, sampling, cancel=cancel):
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if token >= 0 and token not in eos:
                row.append(token)
        yield [model.tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def encode_prompts(model: Model, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and attention mask, (prompts, tokens) each, on the model's device."""
    if model.tokenizer is None:
        raise InputError("This model has no tokenizer; load a folder that has one to generate text.")
    if not prompts:
        raise InputError("There is no prompt; give at least one.")
    encoded = [row or [start_token(model)] for row in model.tokenizer(list(prompts), verbose=False)["input_ids"]]
    embedded = model.module.get_input_embeddings().weight.shape[0]
    highest = max(map(max, encoded))
    if highest >= embedded:
        raise InputError(f"The prompt has token id {highest}; this model knows 0 to {embedded - 1}.")
    length = max(map(len, encoded))
    limit = model.maximum_length
    if limit is not None and length >= limit:
        raise InputError(f"The prompt has {length} tokens; this model reads {limit} in all, so shorten it.")
    # Padding is masked, so any id serves; the tokenizer may have none, or one the model has no embedding for.
    ids = torch.tensor([[0] * (length - len(row)) + row for row in encoded])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in encoded])
    return ids.to(model.device), mask.to(model.device)


def start_token(model: Model) -> int:
    """The token a text begins with: BOS, or EOS for tokenizers without one."""
    config, tokenizer = model.config.get_text_config(decoder=True), model.tokenizer
    own = () if tokenizer is None else (tokenizer.bos_token_id,)
    ends = () if tokenizer is None else (tokenizer.eos_token_id,)
    for token in (*own, config.bos_token_id, *ends, *_ids(config.eos_token_id)):
        if isinstance(token, int):
            return token
    raise InputError("The model defines no token to begin a text with; give a prompt.")


def end_tokens(model: Model) -> set[int]:
    """Tokens that end a text: those of the generation config, of the config and of the tokenizer."""
    configs = (model.module.generation_config, model.config.get_text_config(decoder=True))
    tokens = {token for config in configs for token in _ids(config.eos_token_id)}
    return tokens if model.tokenizer is None else tokens | {*_ids(model.tokenizer.eos_token_id)}


def _ids(token: int | Sequence[int] | None) -> tuple[int, ...]:
    """Token ids that a config has one, several or none of."""
    return () if token is None else (token,) if isinstance(token, int) else tuple(token)


def unknown_tokens(model: Model) -> torch.Tensor:
    """Ids the model has logits for but its tokenizer no token, (ids,); rows that fill up an embedding."""
    if model.tokenizer is None:
        return torch.empty(0, dtype=torch.long)
    known = torch.zeros(model.module.get_output_embeddings().weight.shape[0], dtype=torch.bool)
    ids = torch.tensor(sorted(model.tokenizer.get_vocab().values()), dtype=torch.long)
    known[ids[ids < len(known)]] = True
    return (~known).nonzero()[:, 0]


def _frequencies_change_behind(config: Any) -> int | None:
    """Tokens up to which longrope rotates keys by its short factors, and by its long ones from the next on."""
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None


def crosses(mask: torch.Tensor, new: int, boundary: int) -> bool:
    """Whether the last `new` tokens (rows, tokens) make a batch longer than `boundary`, which it was not before."""
    length = int(mask.sum(-1).max())
    return length > boundary >= length - new


@torch.inference_mode()
def sample_tokens(
    model: Model,
    ids: torch.Tensor,
    mask: torch.Tensor,
    sampling: Sampling,
    *,
    restart: bool = False,
    use_cache: bool = True,
    cancel: CancelEvent | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the next token of every row, (rows,) on the CPU, until all rows ended or the length is reached.

    Args:
        ids, mask: left-padded ids and attention mask, (rows, tokens).
        restart: let a row that ended go on with a new document instead of yielding -1 for it.
        use_cache: False recomputes the whole sequence at every step.
    """
    eos = torch.tensor(sorted(end_tokens(model)), dtype=torch.long)
    generators = [torch.Generator().manual_seed(sampling.seed + row) for row in range(len(ids))]
    warpers = sampling.warpers()
    unknown = unknown_tokens(model).to(ids.device)
    boundary = _frequencies_change_behind(model.config)
    begin = start_token(model) if restart else -1
    steps = sampling.max_new_tokens
    if model.maximum_length is not None:
        steps = min(steps, model.maximum_length - ids.shape[1])
    cache = DynamicCache(config=model.config) if use_cache else None
    ended = torch.zeros(len(ids), dtype=torch.bool)
    step_ids = ids
    for _ in range(steps):
        check_cancelled(cancel)
        if cache is not None and boundary is not None and crosses(mask, step_ids.shape[1], boundary):
            # What the cache holds was rotated by other frequencies.
            cache, step_ids = DynamicCache(config=model.config), ids
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -step_ids.shape[1] :]
        logits = model.module(
            input_ids=step_ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=use_cache,
            position_ids=positions,
            logits_to_keep=1,
        ).logits[:, -1]
        if not bool(torch.isfinite(logits).all()):
            raise NumericalError("The model's logits are not finite; load it in float32 or prune less.")
        uniform = torch.cat([torch.rand(1, generator=generator) for generator in generators])
        logits[:, unknown] = -torch.inf
        tokens = draw(logits.float(), sampling.temperature, warpers, uniform).cpu()
        tokens[ended] = begin
        yield tokens.clone()
        ended = torch.isin(tokens, eos) if restart else ended | torch.isin(tokens, eos)
        if not restart and bool(ended.all()):
            return
        # A row that ended stays in the batch; what it is fed does not matter.
        column = tokens.clamp(min=0)[:, None].to(ids.device)
        ids = torch.cat([ids, column], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        step_ids = column if use_cache else ids
