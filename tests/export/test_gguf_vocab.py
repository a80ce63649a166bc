import json

import pytest
from architectures import make_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from numprune.export.gguf_vocab import read_vocabulary, vocabulary_refusal


def changed(**changes):
    """The tiny tokenizer with some parts of its tokenizer.json replaced."""
    spec = json.loads(make_tokenizer().backend_tokenizer.to_str())
    spec["model"] |= changes.pop("model", {})
    tokenizer = Tokenizer.from_str(json.dumps(spec | changes))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def pieces(**parts):
    """A SentencePiece tokenizer of four merges; two of them make the same piece."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "ab", "abb", "bb", "▁"]
    merges = [("a", "b"), ("ab", "b"), ("b", "b"), ("a", "bb")]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_pieces_score_by_their_first_merge():
    read = read_vocabulary(pieces(normalizer=normalizers.Replace(" ", "▁")), 267)
    assert read.scores[259:] == [-4, -4, 0, -1, -2, -4, -4, -4]  # a, b, ab, abb, bb, ▁ and rows without a token
    assert read.types[:4] == [2, 3, 3, 6]
    assert read.types[-3:] == [1, 5, 5]
    assert (read.model, read.merges, read.space_prefix) == ("llama", None, False)
    assert read.special == {"bos": 1, "eos": 2, "unk": 0}


@pytest.mark.parametrize(
    ("parts", "space"),
    [
        ({"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="first", split=False)}, True),
        ({"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="never", split=False)}, False),
        (
            {"normalizer": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])},
            True,
        ),
    ],
)
def test_the_space_before_a_text(parts, space):
    tokenizer = pieces(**parts)
    assert vocabulary_refusal(tokenizer) is None
    assert read_vocabulary(tokenizer, 265).space_prefix == space


def test_what_stands_around_a_text():
    tokenizer = make_tokenizer()
    assert vocabulary_refusal(tokenizer) is None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    read = read_vocabulary(tokenizer, 104)
    assert read.adds_bos
    assert read.adds_eos
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <s> $A", special_tokens=[("<s>", 0)]
    )
    assert "more around a text" in vocabulary_refusal(tokenizer)


def test_without_a_beginning_token_the_end_token_stands_for_it():
    """llama.cpp would take token 11 for it."""
    tokenizer = make_tokenizer()
    tokenizer.bos_token = None
    read = read_vocabulary(tokenizer, 104)
    assert read.special["bos"] == 1
    assert not read.adds_bos


def test_several_chat_templates():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": "a", "tools": "b"}
    expected = [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}]
    assert read_vocabulary(tokenizer, 104).chat_template == expected


def test_text_that_llama_cpp_treats_otherwise_is_noted():
    assert not read_vocabulary(make_tokenizer(), 104).notes
    [note] = read_vocabulary(changed(normalizer={"type": "NFC"}, **splits(PRETOKENIZE_REGEX)), 104).notes
    assert "NFC" in note


def splits(pattern):
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    levels = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, levels]}}


def prefixed():
    return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        (lambda: None, "has no tokenizer"),
        (lambda: object(), "without a tokenizer.json"),
        (lambda: changed(**splits(r"\w+|\W+")), "llama.cpp does not follow"),
        (lambda: changed(pre_tokenizer=prefixed()), "llama.cpp does not follow"),
        (lambda: changed(normalizer={"type": "Lowercase"}), "llama.cpp does not follow"),
        (lambda: changed(model={"ignore_merges": True}), "llama.cpp does not follow"),
        (lambda: changed(model={"end_of_word_suffix": "</w>"}), "byte-pair encoding is expected"),
        (lambda: changed(model={"byte_fallback": True}), "without a piece for every byte"),
        (lambda: pieces(pre_tokenizer=pre_tokenizers.Metaspace(split=True)), "with rules of its own"),
        (lambda: pieces(normalizer=normalizers.NFKC()), "with rules of its own"),
    ],
)
def test_what_llama_cpp_would_tokenize_otherwise_is_refused(tokenizer, says):
    assert says in vocabulary_refusal(tokenizer())


def test_other_kinds_and_no_end_are_refused():
    words = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    assert "of type WordLevel" in vocabulary_refusal(tokenizer)
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    assert "without an end-of-text token" in vocabulary_refusal(tokenizer)
