import json
import sys
from types import SimpleNamespace

import pytest
import torch
from architectures import random_ids, tiny_model

from numprune import DATASETS, InputError, calibrate, perplexity
from numprune.calibration.data import describe, documents, token_rows


class Rows:
    """What a dataset of the datasets package offers."""

    def __init__(self, columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, column):
        return self.columns[column]

    def select(self, indices):
        return Rows({name: [values[i] for i in indices] for name, values in self.columns.items()})


@pytest.fixture
def hub(monkeypatch):
    """Stands for the datasets package: texts by column, or an error, and a record of what was asked for."""
    state = SimpleNamespace(columns={}, error=None, asked=[])

    def load_dataset(path, config, *, split, revision, data_files):
        state.asked.append(SimpleNamespace(path=path, config=config, split=split, files=data_files))
        if state.error is not None:
            raise state.error
        return Rows(state.columns)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return state


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("first\n\nsecond\n")
    assert documents(tmp_path / "a.txt", "train") == ["first\n\nsecond\n"]
    assert documents(str(tmp_path / "a.txt"), "train") == ["first\n\nsecond\n"]


def test_a_text_file_is_cut_between_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one<|endoftext|>two<|endoftext|>\n<|endoftext|>")
    assert documents(tmp_path / "a.txt", "train") == ["one", "two"]


def test_rows_of_a_jsonl_file_are_documents(tmp_path):
    texts = ["one", 'two "quoted"\nlines', "naïve ½", "separated\u2028by\x85odd\x0clines"]
    lines = [json.dumps({"text": text, "title": "x"}, ensure_ascii=i % 2 == 0) for i, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    assert documents(tmp_path / "a.jsonl", "train") == texts


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{oops", "is not JSON"),
        ('{"title": "x", "tags": "y"}', "its keys are title, tags: name one with --text-column"),
        ('["text"]', "is a list, where an object"),
        ("7", "is a number, where an object"),
        ('{"text": null}', "column text, is null, not a string"),
        ('{"text": 3}', "column text, is a number, not a string"),
    ],
)
def test_a_bad_line_of_a_jsonl_file_is_named(tmp_path, line, says):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n\n' + line + "\n")
    with pytest.raises(InputError, match=f"Line 3 of .*a.jsonl.* {says}"):
        documents(tmp_path / "a.jsonl", "train")


def test_a_list_of_texts_is_taken_as_it_is():
    assert documents(["one", "two", "  "], "train") == ["one", "two"]
    assert documents(("one",), "test") == ["one"]


@pytest.mark.parametrize("texts", [[], [""], ["  ", "\n"]])
def test_a_list_without_text_is_refused(texts):
    with pytest.raises(InputError, match="holds no text; give at least one"):
        documents(texts, "train")


def test_an_empty_file_is_refused(tmp_path):
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_text(" \n")
        with pytest.raises(InputError, match=f"{name} holds no text"):
            documents(tmp_path / name, "train")


@pytest.mark.parametrize("data", [[1, 2], ["text", None], None, 7, [b"text"]])
def test_something_else_than_text_is_refused(data):
    with pytest.raises(InputError, match="pass strings or a token tensor"):
        documents(data, "train")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 in Latin-1")
    with pytest.raises(InputError, match=r"a.txt cannot be read as text \(it is not UTF-8 text\)"):
        documents(tmp_path / "a.txt", "train")


@pytest.mark.parametrize("name", ["no-such-dataset", "/no/such/file.txt", "Once upon a time " * 400, "a\0b", ""])
def test_an_unknown_name_is_refused_with_what_is_known(name):
    with pytest.raises(InputError, match="is neither a file nor a dataset name") as caught:
        documents(name, "train")
    assert all(known in str(caught.value) for known in DATASETS)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "ids",
    [torch.rand(2, 3), torch.zeros(0, dtype=torch.long), torch.zeros(2, 2, 2, dtype=torch.long), torch.tensor(5)],
)
def test_token_tensors_of_the_wrong_kind_are_refused(ids):
    with pytest.raises(InputError, match="Token ids must be integers"):
        token_rows(ids, None, "train")


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_token_tensors_are_rows(dtype):
    assert [row.tolist() for row in token_rows(torch.tensor([[1, 2], [3, 4]], dtype=dtype), None, "train")] == [
        [1, 2],
        [3, 4],
    ]
    assert [row.tolist() for row in token_rows(torch.tensor([1, 2, 3], dtype=dtype), None, "train")] == [[1, 2, 3]]


def test_text_needs_a_tokenizer():
    model = tiny_model("llama")
    with pytest.raises(InputError, match="no tokenizer; pass token ids as a tensor"):
        calibrate(model, ["some text"], samples=1, sequence_length=4)
    assert calibrate(model, random_ids(1, 8), samples=1, sequence_length=8).tokens == 8


def test_every_document_begins_as_the_tokenizer_begins_a_text(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    rows = token_rows(["the cat", "and"], tokenizer, "train")
    assert [int(row[0]) for row in rows] == [0, 0]
    assert tokenizer.decode(rows[0][1:]) == "the cat"


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_that_cannot_be_reached_is_one_sentence(hub, model, name):
    hub.error = ConnectionError("Couldn't reach 'x' on the Hub (LocalEntryNotFoundError)\nmore\nlines")
    with pytest.raises(
        InputError, match=f"Dataset {name} .* cannot be read: Couldn't reach .*check the network"
    ) as caught:
        calibrate(model, name, samples=1, sequence_length=8)
    assert "\n" not in str(caught.value)


def test_a_missing_datasets_package_is_explained(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        InputError, match=r"wikitext2 .* needs the datasets package; run pip install 'numprune\[data\]'"
    ):
        calibrate(model, "wikitext2", samples=1, sequence_length=8)


def test_wikitext_is_one_text_joined_by_blank_lines(hub):
    hub.columns = {"text": ["", " = Title = ", "", "Body."]}
    assert documents("wikitext2", "train") == ["\n\n = Title = \n\n\n\nBody."]
    assert hub.asked[0].path == "Salesforce/wikitext"


def test_tinystories_stay_apart(hub):
    hub.columns = {"text": [f"story {i}" for i in range(30000)]}
    stories = documents("tinystories", "train")
    assert stories[:2] == ["story 0", "story 1"]
    assert len(stories) == 20000


def test_c4_reads_one_file_and_its_first_rows(hub):
    hub.columns = {"text": [str(i) for i in range(2000)]}
    assert documents("c4", "test") == [" ".join(str(i) for i in range(1100))]
    assert list(hub.asked[0].files) == [hub.asked[0].split]
    assert len(hub.asked[0].files) == 1


def test_calibration_reads_train_and_perplexity_reads_test(hub, model):
    hub.columns = {"sentence": ["the cat and the dog sat on a mat"] * 9}
    calibrate(model, "ptb", samples=2, sequence_length=16)
    perplexity(model, "ptb", sequence_length=16)
    assert [asked.split for asked in hub.asked] == ["train", "test"]


def test_short_descriptions(tmp_path):
    assert describe("wikitext2") == "wikitext2"
    assert describe(tmp_path / "a.txt") == str(tmp_path / "a.txt")
    assert describe(["text"]) == "texts"
    assert describe(torch.zeros(1)) == "tokens"
