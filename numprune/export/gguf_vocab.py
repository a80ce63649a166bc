"""Tokenizers as llama.cpp reads them.

Two kinds are known to both sides: byte-level BPE, whose merges are written as they are and whose rule for cutting a
text into words must be one that llama.cpp has under a name, and SentencePiece's BPE with a piece for every byte, whose
merges become scores of the pieces.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))

_NUMBERS_OF_THREE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SINGLE_DIGITS = _NUMBERS_OF_THREE.replace("{1,3}", "")
# The rules by which a text is cut into words, and whether a word that is a token is left whole whatever the merges
# say: llama.cpp's name for both.
_RULES = {
    (("gpt-2",), False): "gpt-2",
    (("digits", "gpt-2"), False): "smollm",
    ((_NUMBERS_OF_THREE,), True): "llama-bpe",
    ((_NUMBERS_OF_THREE,), False): "smaug-bpe",
    ((_SINGLE_DIGITS,), False): "qwen2",
}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in llama.cpp's terms.

    Attributes:
        model: "gpt2" (byte-level BPE) or "llama" (SentencePiece).
        pre: the name of the rule for cutting words.
        tokens: one per row of the embedding.
        types: of each token, llama.cpp's number.
        scores: of each token, for SentencePiece.
        merges: in order, for BPE.
        special: ids by the name of their role (bos, eos, unk, pad).
        adds_bos, adds_eos: whether a text gets them.
        space_prefix: whether a space is put before a text.
        chat_template: one template or several by name.
        notes: what a user should know, in sentences.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    special: dict[str, int]
    adds_bos: bool
    adds_eos: bool
    space_prefix: bool
    chat_template: str | list[dict[str, str]] | None
    notes: list[str]

    def write(self, writer: Any) -> None:
        """Add the tokenizer's keys to a gguf.GGUFWriter."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        for role, token in self.special.items():
            getattr(writer, f"add_{role}_token_id")(token)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        writer.add_add_space_prefix(self.space_prefix)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def vocabulary_refusal(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """Why llama.cpp cannot tokenize as a tokenizer does, as half a sentence after the model's name; or None."""
    if tokenizer is None:
        return "has no tokenizer, which is part of the file"
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return "has a tokenizer without a tokenizer.json"
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model = spec["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return f"has a tokenizer of type {model['type']}, where byte-pair encoding is expected"
    if tokenizer.eos_token_id is None:
        return "has a tokenizer without an end-of-text token"
    if _framing(tokenizer) is None:
        return "has a tokenizer that puts more around a text than one beginning and one end token"
    if model.get("byte_fallback"):
        if not model["vocab"].keys() >= _BYTES:
            return "has a SentencePiece tokenizer without a piece for every byte"
        return None if _space_prefix(spec) is not None else "has a SentencePiece tokenizer with rules of its own"
    if _rule(spec) is None or _normalizers(spec) not in ([], ["NFC"]):
        return "has a tokenizer whose rule for cutting a text into words llama.cpp does not follow"
    return None


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """A tokenizer that `vocabulary_refusal` did not refuse, for a model that embeds `rows` tokens."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model = spec["model"]
    sentencepiece = bool(model.get("byte_fallback"))
    tokens = {token: text for text, token in model["vocab"].items()}
    added = {entry["id"]: entry for entry in spec["added_tokens"]}
    tokens |= {token: entry["content"] for token, entry in added.items()}
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    framing = _framing(tokenizer)
    return Vocabulary(
        model="llama" if sentencepiece else "gpt2",
        pre="default" if sentencepiece else _rule(spec),
        tokens=[tokens.get(token, f"[PAD{token}]") for token in range(rows)],
        types=[_type(token, tokens, added, model) for token in range(rows)],
        scores=_scores(tokens, merges, rows) if sentencepiece else None,
        merges=None if sentencepiece else [" ".join(merge) for merge in merges],
        special=_special(tokenizer),
        adds_bos=framing[0],
        adds_eos=framing[1],
        space_prefix=bool(sentencepiece and _space_prefix(spec)),
        chat_template=_chat_template(tokenizer),
        notes=_notes(spec, sentencepiece),
    )


def _framing(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool] | None:
    """Whether a text gets a beginning and an end token; None when it gets anything else."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    for bos in (False, True):
        for eos in (False, True):
            if framed == [tokenizer.bos_token_id] * bos + bare + [tokenizer.eos_token_id] * eos:
                return bos, eos
    return None


def _rule(spec: dict[str, Any]) -> str | None:
    """llama.cpp's name for the way a byte-level tokenizer cuts words."""
    pre = spec["pre_tokenizer"] or {}
    steps = pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]
    rules = []
    for step in steps:
        match step:
            case {"type": "Digits", "individual_digits": True}:
                rules.append("digits")
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
                rules.append(pattern)
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": cuts}:
                rules += ["gpt-2"] * cuts
            case _:
                return None
    return _RULES.get((tuple(rules), bool(spec["model"].get("ignore_merges"))))


def _normalizers(spec: dict[str, Any]) -> list[str]:
    normalizer = spec["normalizer"] or {"type": "Sequence", "normalizers": []}
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    return [step["type"] for step in steps]


def _space_prefix(spec: dict[str, Any]) -> bool | None:
    """Whether a SentencePiece tokenizer puts a space before a text; None when it does anything else besides."""
    if spec["pre_tokenizer"] is None and _normalizers(spec) in (["Replace"], ["Prepend", "Replace"]):
        return "Prepend" in _normalizers(spec)
    match spec["pre_tokenizer"]:
        case {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": scheme}:
            return scheme != "never" if spec["normalizer"] is None else None
    return None


def _type(token: int, tokens: dict[int, str], added: dict[int, dict[str, Any]], model: dict[str, Any]) -> int:
    """llama.cpp's number for the kind of a token."""
    from gguf import TokenType

    if token not in tokens:
        return int(TokenType.UNUSED)
    if model.get("byte_fallback") and tokens[token] in _BYTES:
        return int(TokenType.BYTE)
    if tokens[token] == model.get("unk_token"):
        return int(TokenType.UNKNOWN)
    if token in added:
        return int(TokenType.CONTROL if added[token]["special"] else TokenType.USER_DEFINED)
    return int(TokenType.NORMAL)


def _scores(tokens: dict[int, str], merges: list[tuple[str, ...]], rows: int) -> list[float]:
    """The earlier the merge that makes a piece, the higher its score; what no merge makes comes last."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge), rank)
    return [-float(ranks.get(tokens.get(token, ""), len(merges))) for token in range(rows)]


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    # llama.cpp takes whichever token has a fixed id for the beginning of a text when the file names none.
    bos = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = {"bos": bos, "eos": tokenizer.eos_token_id, "unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    return {role: token for role, token in ids.items() if token is not None}


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> str | list[dict[str, str]] | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return [{"name": name, "template": text} for name, text in template.items()]
    return template


def _notes(spec: dict[str, Any], sentencepiece: bool) -> list[str]:
    notes = []
    if not sentencepiece and "NFC" in _normalizers(spec):
        notes.append("llama.cpp does not bring texts into Unicode's form NFC; text that is in it is tokenized alike.")
    if sentencepiece and spec["pre_tokenizer"] is not None:
        notes.append(
            "llama.cpp puts a space before a text that already begins with one; other text is tokenized alike."
        )
    stripping = [entry["content"] for entry in spec["added_tokens"] if entry["lstrip"] or entry["rstrip"]]
    if stripping:
        notes.append(f"llama.cpp leaves the spaces beside {', '.join(stripping[:3])} that transformers takes away.")
    return notes
