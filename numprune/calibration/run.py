"""One pass over calibration text, streaming Gram matrices."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from numprune.calibration.data import Data, check_ids, describe
from numprune.calibration.sources import draw_rows
from numprune.calibration.statistics import BlockInfluence, CalibrationStats, GramAccumulator
from numprune.errors import CancelEvent, InputError, NumericalError, Progress, check_cancelled
from numprune.models.adapter import Block
from numprune.models.batches import sequences_per_forward
from numprune.models.hooks import After, Before, first, hooked
from numprune.models.model import Model, twin
from numprune.plan.keys import ModuleKey
from numprune.plan.recipe import CalibrationRecipe
from numprune.ranks import joined


def calibrate(
    model: Model,
    data: Data,
    *,
    samples: int = 128,
    sequence_length: int = 2048,
    batch_size: int | Literal["auto"] = "auto",
    seed: int = 0,
    bos: bool = True,
    text_column: str | None = None,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> CalibrationStats:
    """Collect XᵀX of the inputs of every o_proj and down_proj (paper, section 4: 128 samples of 2048 tokens).

    Memory is one float64 Gram matrix per module beside the model; activations live for one batch of one layer.

    Args:
        data: a dataset name (wikitext2, c4, ptb, tinystories), OWNER/NAME:CONFIG:SPLIT:COLUMN of the hub, a file
            (txt, json, jsonl, csv, tsv, parquet, each also .gz), a folder or pattern of files, or "self" for the
            model's own samples, texts or images; several of these with commas between them, weights after "=" if given
            ("c4=2,wikitext2=1,self=1"), whose sequences come in turn; a list of strings; or token ids (tokens,) or
            (sequences, tokens), of which no window leaves its sequence.
        samples: sequences or images to use; windows are drawn without overlap while the text lasts.
        sequence_length: tokens per sequence; capped, with a note and a warning, at what the model supports. Of an
            image, the class and its codes.
        batch_size: sequences per forward pass; "auto" keeps a batch near 4096 tokens on a CPU, 16384 elsewhere.
        seed: for drawing windows, or for the model's own samples.
        bos: whether every sequence of text begins as the tokenizer begins a text (with BOS, where it adds one), within
            its length; else only documents do, wherever they fall. Token ids are taken as they are given.
        text_column: the column of rows that holds the text; None for the first that is known by its name.

    Raises:
        InputError: the text cannot be read or is too short, or a number is out of range.
        NumericalError: weights or activations are not finite; the tensor or the layer is named.
        Cancelled: `cancel` was set.
    """
    began, notes = time.monotonic(), []
    model.check_finite("download the checkpoint again, or load it in float32 or bfloat16")
    source = CalibrationRecipe(describe(data), samples, sequence_length, seed, bos, text_column)
    rows = calibration_rows(model, data, source, notes, progress=progress, cancel=cancel)
    if batch_size == "auto":
        batch_size = sequences_per_forward(model.device, rows.shape[1])
    elif batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1.")
    ranks = joined()
    batches = [rows[own] for own in ranks.batches(len(rows), batch_size)]
    accumulators, influence = _run(model, batches, progress, cancel)
    return CalibrationStats(
        modules={key: accumulator.finish(ranks) for key, accumulator in accumulators.items()},
        data=describe(data),
        samples=len(rows),
        sequence_length=rows.shape[1],
        tokens=rows.numel(),
        seed=seed,
        bos=bos,
        text_column=text_column,
        fingerprint=model.fingerprint(),
        notes=notes,
        seconds=time.monotonic() - began,
        rows=rows.to("cpu", torch.int32),
        influence=influence.finish(ranks),
    )


def calibration_rows(
    model: Model,
    data: Data,
    source: CalibrationRecipe,
    notes: list[str],
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> torch.Tensor:
    """The token ids a calibration reads, (sequences, tokens); what differs from the request is added to the notes.

    Args:
        data: what `source` names, or what only the caller has. Of several processes the first one reads it for all.

    Raises:
        InputError: the text cannot be read or is too short, or a number is out of range.
        Cancelled: `cancel` was set.
    """
    rows, told = joined().from_first(lambda: _drawn_rows(model, data, source, progress, cancel))
    notes += told
    return rows


def _drawn_rows(
    model: Model, data: Data, source: CalibrationRecipe, progress: Progress | None, cancel: CancelEvent | None
) -> tuple[torch.Tensor, list[str]]:
    samples, sequence_length, notes = source.samples, source.sequence_length, []
    # A sequence of one token predicts none.
    for name, value, least in (
        ("samples", samples, 1),
        ("sequence_length", sequence_length, 2),
    ):
        if value < least:
            raise InputError(f"{name} is {value}; give at least {least}.")
    limit = model.maximum_length
    if limit is not None and sequence_length > limit:
        # An image is as long as it is; nobody asked for more.
        if model.adapter.reads_text:
            notes.append(f"Sequence length {sequence_length} was capped at {limit}, the most this model supports.")
            warnings.warn(notes[-1], stacklevel=2)
        sequence_length = limit
    rows = draw_rows(
        model,
        data,
        samples,
        sequence_length,
        source.seed,
        notes,
        bos=source.bos,
        column=source.text_column,
        progress=progress,
        cancel=cancel,
    )
    check_ids([rows], model)
    return rows, notes


def calibrate_by_recipe(
    model: Model, source: CalibrationRecipe, *, progress: Progress | None = None, cancel: CancelEvent | None = None
) -> CalibrationStats:
    """`calibrate` on what a recipe says.

    Raises:
        InputError: the recipe names no text; else, and other errors, as `calibrate`.
    """
    if source.data is None:
        raise InputError(
            "The recipe was calibrated on text it does not name; give a file, a dataset or the model's own samples as"
            " its calibration."
        )
    return calibrate(
        model,
        source.data,
        samples=source.samples,
        sequence_length=source.sequence_length,
        seed=source.seed,
        bos=source.bos,
        text_column=source.text_column,
        progress=progress,
        cancel=cancel,
    )


def within_length(model: Model, source: CalibrationRecipe) -> CalibrationRecipe:
    """The recipe with sequences no longer than the model reads."""
    return replace(source, sequence_length=min(source.sequence_length, model.maximum_length or source.sequence_length))


@torch.no_grad()
def _run(
    model: Model, batches: Sequence[torch.Tensor], progress: Progress | None, cancel: CancelEvent | None
) -> tuple[dict[ModuleKey, GramAccumulator], BlockInfluence]:
    # Hooks are put on it: what others run on the model meanwhile must not be counted.
    module = twin(model.module)
    blocks = model.adapter.blocks(module)
    device = _gram_device(model, blocks)
    accumulators = {block.key: GramAccumulator(block.last.in_features, device) for block in blocks}
    collectors = {block.last: collector(block.key, accumulators[block.key]) for block in blocks}
    layers = model.adapter.layers(module)
    influence, entering = BlockInfluence(len(layers)), {}

    def enters(index: int) -> Before:
        def note(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entering[index] = args[0] if args else kwargs["hidden_states"]

        return note

    def leaves(index: int) -> After:
        return lambda _, output: influence.add(index, entering.pop(index), first(output))

    before = collectors | {layer: enters(index) for index, layer in enumerate(layers)}
    with hooked(before=before, after={layer: leaves(index) for index, layer in enumerate(layers)}):
        done = 0
        for batch in batches:
            check_cancelled(cancel)
            # The backbone alone: logits of a whole batch would be the largest tensor and nobody reads them.
            module.base_model(input_ids=batch.to(model.device), use_cache=False)
            done += len(batch)
            if progress is not None:
                progress(done, sum(map(len, batches)), "calibrating")
    return accumulators, influence


def collector(key: ModuleKey, accumulator: GramAccumulator) -> Before:
    """Adds what reaches a module's last linear; raises NumericalError for what is not finite."""

    def collect(args: tuple[torch.Tensor, ...], _: dict[str, Any]) -> None:
        x = args[0]
        if not accumulator.add(x.reshape(-1, x.shape[-1])):
            raise NumericalError(
                f"Layer {key.layer} feeds non-finite values into its {key.kind} output projection;"
                " load the model in float32 or bfloat16, or check its weights."
            )

    return collect


def _gram_device(model: Model, blocks: list[Block]) -> torch.device:
    """The model's device when all Gram matrices fit into half of what is free there, the CPU otherwise."""
    needed = 8 * sum(block.last.in_features**2 for block in blocks)
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        if needed < free / 2:
            return model.device
    return torch.device("cpu")
