"""Calibration samples the model makes itself, kept on disk so that a second run is immediate."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from numprune.calibration.names import cache_folder
from numprune.errors import CancelEvent, NumpruneError, Progress
from numprune.files import atomic_file
from numprune.generation.text import Sampling, sample_tokens, start_token
from numprune.models.batches import SAMPLED_SEQUENCES
from numprune.models.embedded import embedded_model
from numprune.models.model import Model

_CHECK = "sha256"
"""Metadata of a file of samples: of its tensor, whose bits nothing else vouches for."""


def self_samples(
    model: Model,
    samples: int,
    length: int,
    seed: int,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> torch.Tensor:
    """Sequences drawn from the model's own distribution (temperature 1, nothing cut off).

    A row that ends a document begins the next one, as in packed training text. Image models draw as their
    `sampling_settings` say, for classes drawn uniformly. Samples of an embedded model with default settings ship with
    it; all others are written to `cache_folder()`.

    Returns:
        (samples, length) token ids; of image models the class and its codes, as in `LlamaGen.rows`.
    """
    settings = "".join(f"-{key}{value}" for key, value in model.sampling_settings.items())
    name = f"self-{model.fingerprint()}-{samples}x{length}-{seed}{settings}.safetensors"
    folders = [folder for folder in (embedded_model(model.name), cache_folder()) if folder is not None]
    for folder in folders:
        tokens = _kept(folder / name)
        if tokens is not None and tokens.shape == (samples, length):
            return tokens
    tokens = draw_samples(model, samples, length, seed, progress=progress, cancel=cancel)
    _keep(tokens, folders[-1] / name)
    return tokens


def draw_samples(
    model: Model,
    samples: int,
    length: int,
    seed: int,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> torch.Tensor:
    """`self_samples` without the disk."""
    if not model.adapter.reads_text:
        return model.draw_rows(samples, seed, progress=progress, cancel=cancel)[:, :length]
    parts = []
    total = samples * (length - 1)
    for begin in range(0, samples, SAMPLED_SEQUENCES):
        rows = min(SAMPLED_SEQUENCES, samples - begin)
        ids = torch.full((rows, 1), start_token(model), device=model.device)
        sampling = Sampling(max_new_tokens=length - 1, temperature=1.0, top_p=1.0, seed=seed + begin)
        columns = [ids[:, 0].cpu()]
        drawn = sample_tokens(model, ids, torch.ones_like(ids), sampling, restart=True, cancel=cancel)
        for step, tokens in enumerate(drawn, 1):
            columns.append(tokens)
            if progress is not None:
                progress(begin * (length - 1) + step * rows, total, "sampling calibration text")
        parts.append(torch.stack(columns, dim=1))
    return torch.cat(parts)


def _kept(path: Path) -> torch.Tensor | None:
    """Samples that were kept; None where they are not there, or not as they were written."""
    try:
        with safe_open(path, framework="pt") as file:
            tokens, written = file.get_tensor("tokens"), (file.metadata() or {}).get(_CHECK)
    except (OSError, SafetensorError):
        return None
    # Files of earlier versions have no check, nor has what ships with an embedded model.
    return tokens.long() if written in (None, _check(tokens)) else None


def _check(tokens: torch.Tensor) -> str:
    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()


def _keep(tokens: torch.Tensor, path: Path) -> None:
    # The cache only saves time; a full or read-only disk must not fail the calibration.
    with suppress(NumpruneError), atomic_file(path) as partial:
        kept = tokens.to(torch.int32).contiguous()
        save_file({"tokens": kept}, partial, {_CHECK: _check(kept)})
