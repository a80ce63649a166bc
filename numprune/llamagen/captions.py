"""Captions of a text-conditional decoder: texts, and their features by the T5 encoder it was trained with."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, T5EncoderModel

from numprune.errors import InputError, LoadError
from numprune.files import atomic_file
from numprune.models.placement import resolve_device

ENCODER = "google/flan-t5-xl"
"""The encoder LlamaGen's text-conditional decoders were trained with."""

CAPTION_FILES = ("captions.safetensors", "captions.txt")
"""What is looked for beside a text-conditional decoder: features, or one caption a line."""


@dataclass(frozen=True)
class Captions:
    """Texts with their features.

    Attributes:
        texts: one for each caption.
        features: (captions, tokens, size) float32; what stands behind a caption's own tokens is not looked at.
        lengths: tokens of each caption.
        source: where the features come from, in words.
    """

    texts: list[str]
    features: torch.Tensor
    lengths: list[int]
    source: str = "given features"

    def __post_init__(self) -> None:
        counts = (len(self.texts), len(self.features), len(self.lengths))
        if self.features.ndim != 3 or len(set(counts)) != 1 or not self.texts:
            raise InputError(
                f"There are {counts[0]} captions, features of shape {tuple(self.features.shape)} and {counts[2]}"
                " lengths; give (captions, tokens, size) and as many texts and lengths."
            )
        most = self.features.shape[1]
        if not all(1 <= length <= most for length in self.lengths):
            raise InputError(f"Caption lengths are {self.lengths}; each must be 1 to {most}, the tokens there are.")
        if not bool(torch.isfinite(self.features).all()):
            raise InputError("Caption features are not finite; encode the captions again, in float32.")

    def left_padded(self) -> torch.Tensor:
        """Features with zeros in front of a caption's own tokens, as LlamaGen's decoders read them."""
        padded = torch.zeros_like(self.features)
        for row, length in enumerate(self.lengths):
            padded[row, self.features.shape[1] - length :] = self.features[row, :length]
        return padded

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file that `Captions.read` opens."""
        tensors = {"features": self.features.float().contiguous(), "lengths": torch.tensor(self.lengths)}
        with atomic_file(path) as partial:
            save_file(tensors, partial, metadata={"texts": json.dumps(self.texts)})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Captions:
        """Features from a safetensors file with `features`, `lengths` and, in its metadata, `texts` (a JSON list).

        Raises:
            LoadError: the file is missing, damaged or something else.
            InputError: its parts do not fit each other.
        """
        try:
            with safe_open(path, "pt") as file:
                texts = json.loads((file.metadata() or {})["texts"])
                features, lengths = file.get_tensor("features").float(), file.get_tensor("lengths").tolist()
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise LoadError(
                f"{path} holds no caption features ({error}); give a file written by Captions.save."
            ) from error
        return cls(texts, features, lengths, f"features in {Path(path).name}")


def encode_captions(
    texts: Sequence[str], tokens: int = 120, *, encoder: str = ENCODER, device: str = "auto"
) -> Captions:
    """Features of texts by a T5 encoder, lower-cased and stripped, cut after `tokens`.

    Raises:
        InputError: there is no text, or an empty one.
        LoadError: the encoder is not to be had.
    """
    cleaned = [text.strip().lower() for text in texts]
    if not cleaned or not all(cleaned):
        raise InputError("A caption is empty; give at least one text, and a word in each.")
    target = resolve_device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        module = T5EncoderModel.from_pretrained(encoder, weights_only=True).to(target).eval()
    except Exception as error:  # hub and network errors come in many types
        raise LoadError(
            f"The text encoder {encoder} is not to be had ({type(error).__name__}); connect to the network, or give a"
            f" file of features ({CAPTION_FILES[0]}, written by Captions.save)."
        ) from error
    batch = tokenizer(cleaned, max_length=tokens, padding="max_length", truncation=True, return_tensors="pt").to(target)
    with torch.inference_mode():
        features = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    lengths = batch["attention_mask"].sum(1).tolist()
    return Captions(list(texts), features.float().cpu(), lengths, f"encoded by {encoder}")


def captions_from(
    source: Captions | str | os.PathLike[str] | Sequence[str], tokens: int, device: str = "auto"
) -> Captions:
    """Captions as they are, from a file (features, or one text a line), or from texts.

    Raises:
        LoadError, InputError: as in `Captions.read` and `encode_captions`.
    """
    if isinstance(source, Captions):
        return source
    if isinstance(source, (str, os.PathLike)):
        path = Path(source).expanduser()
        if path.suffix != ".txt":
            return Captions.read(path)
        try:
            source = [line for line in path.read_text(encoding="utf8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise LoadError(f"{path} cannot be read as text ({error}); write one caption a line, in UTF-8.") from error
    return encode_captions(source, tokens, device=device)
