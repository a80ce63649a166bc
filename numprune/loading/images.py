"""Opening a published LlamaGen decoder with what lies beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from numprune.llamagen import CAPTION_FILES, TEXT_VQ_FILE, VQ_FILE, LlamaGen, load_checkpoint
from numprune.loading.sources import Source


def load_llamagen(source: Source, **options: Any) -> LlamaGen:
    """A published decoder with the image tokenizer that lies beside it, on disk or on the hub.

    Captions of a text-conditional decoder lie beside it too, or in the working folder when it comes from the hub.
    """
    notes = []
    text = source.path.name.startswith("t2i")
    vq_file = TEXT_VQ_FILE if text else VQ_FILE
    beside = source.folder / vq_file
    vq: str | Path | None = beside if beside.is_file() else None
    captions_folder = source.folder
    if source.repository is not None:
        captions_folder = Path()
        try:
            vq = hf_hub_download(source.repository, vq_file, revision=source.revision)
        except Exception as error:  # hub and network errors come in many types
            vq = None
            what = f"{source.repository} gave no image tokenizer ({type(error).__name__})"
            notes.append(f"{what}, so codes cannot be painted.")
    captions = None
    if text:
        files = (captions_folder / file for file in CAPTION_FILES)
        captions = next((file for file in files if file.is_file()), None)
    model = load_checkpoint(source.path, vq=vq, captions=captions, **options)
    model.name = source.name
    model.notes += notes
    return model
