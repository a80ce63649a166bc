"""The text of single tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from transformers import PreTrainedTokenizerBase


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """What every token adds to the text; a token that holds a part of a character only is \\ufffd."""
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    alone = [tokenizer.decode([token], **options) for token in ids]
    texts = alone[:1]
    for pair, (before, after) in zip(pairwise(ids), pairwise(alone), strict=True):
        # Some tokenizers drop the space a text begins with, so a token is read behind the one before it.
        both = tokenizer.decode(list(pair), **options)
        texts.append(both[len(before) :] if both.startswith(before) else after)
    return texts
