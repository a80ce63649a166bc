import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from numprune.models.pieces import pieces


def sentencepiece_like():
    """A tokenizer that, as Llama 2's, writes a space as ▁ and drops the first one of a text."""
    tokens = ["<s>", "▁the", "▁cat", "s", "▁,"]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


@pytest.mark.parametrize("text", ["the cat and a dog", " the", "x", "a\n\nb ,  c", "</s>the</s>"])
def test_pieces_make_up_the_text(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert len(pieces(tokenizer, ids)) == len(ids)
    assert "".join(pieces(tokenizer, ids)) == text


def test_spaces_in_front_of_words_are_kept():
    assert pieces(sentencepiece_like(), [1, 2, 3, 4]) == ["the", " cat", "s", " ,"]
    assert pieces(sentencepiece_like(), [0, 2])[0] == "<s>"


def test_parts_of_a_character_are_marked():
    byte_level = decoders.ByteLevel()
    tokens = ["a", "Ã", "©"]  # the two bytes of é
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.decoder = byte_level
    assert pieces(PreTrainedTokenizerFast(tokenizer_object=tokenizer), [0, 1, 2, 0]) == ["a", "\ufffd", "\ufffd", "a"]


def test_nothing_has_no_pieces(tokenizer):
    assert pieces(tokenizer, []) == []
