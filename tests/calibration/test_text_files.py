"""The same texts in every kind of file people keep them in."""

import gzip
import json
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from architectures import make_tokenizer

from numprune import InputError, calibrate
from numprune.calibration.data import documents, token_rows
from numprune.calibration.sources import parse_sources

TEXTS = ["the cat, and the dog", 'a "hen"\nand two lines', "naïve ½ 日本"]
ROWS = [{"id": index, "text": text} for index, text in enumerate(TEXTS)]
BOM = "\ufeff".encode()


def jsonl(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def table(rows, separator):
    return pd.DataFrame(rows).to_csv(index=False, sep=separator).encode()


def parquet(rows, path):
    pd.DataFrame(rows).to_parquet(path)
    return path.read_bytes()


FORMS = {
    "a.jsonl": lambda _: jsonl(ROWS),
    "a.JSONL": lambda _: jsonl(ROWS),
    "a.ndjson": lambda _: jsonl(ROWS),
    "lines.json": lambda _: jsonl(ROWS),
    "mark.jsonl": lambda _: BOM + jsonl(ROWS),
    "crlf.jsonl": lambda _: jsonl(ROWS).replace(b"\n", b"\r\n"),
    "a.json": lambda _: json.dumps(ROWS).encode(),
    "a.Json": lambda _: json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "strings.json": lambda _: json.dumps(TEXTS).encode(),
    "data.json": lambda _: json.dumps({"version": 1, "data": ROWS}).encode(),
    "columns.json": lambda _: json.dumps({"id": [0, 1, 2], "text": TEXTS}).encode(),
    "one column.json": lambda _: json.dumps({"text": TEXTS}).encode(),
    "a.csv": lambda _: table(ROWS, ","),
    "a.CSV": lambda _: BOM + table(ROWS, ","),
    "semicolons.csv": lambda _: table(ROWS, ";"),
    "one column.csv": lambda _: table([{"review": text} for text in TEXTS], ","),
    "a.tsv": lambda _: table(ROWS, "\t"),
    "a.parquet": lambda folder: parquet(ROWS, folder / "written"),
    "a.PARQUET": lambda folder: parquet(ROWS, folder / "written"),
    "no suffix but Parquet": lambda folder: parquet(ROWS, folder / "written"),
    "a.txt": lambda _: "<|endoftext|>".join(TEXTS).encode(),
    "mark.TXT": lambda _: BOM + "<|endoftext|>".join(TEXTS).encode(),
    "wide.txt": lambda _: "<|endoftext|>".join(TEXTS).encode("utf-16"),
    "crlf.txt": lambda _: "<|endoftext|>".join(TEXTS).replace("\n", "\r\n").encode(),
    "wiki.raw": lambda _: "<|endoftext|>".join(TEXTS).encode(),
}


@pytest.mark.parametrize("packed", [False, True], ids=["", "gz"])
@pytest.mark.parametrize("name", FORMS)
def test_the_same_texts_come_out_of_every_form(tmp_path, name, packed):
    data = FORMS[name](tmp_path)
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(data) if packed else data)
    assert documents(path, "train") == TEXTS


TURNS = [("user", "the cat?"), ("assistant", "a cat.")]
CHAT = [{"role": role, "content": text} for role, text in TURNS]
SHARE = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in TURNS]
PARTS = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in TURNS]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"messages": CHAT}, "the cat?\na cat."),
        ({"id": 3, "conversations": SHARE}, "the cat?\na cat."),
        ({"messages": PARTS}, "the cat?\na cat."),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, "the cat?\na cat."),
        ({"prompt": "the cat", "completion": " sat"}, "the cat sat"),
        ({"prompt": "the cat?", "completion": "sat"}, "the cat?\nsat"),
        ({"instruction": "do", "input": "", "output": "done"}, "do\n\ndone"),
        ({"instruction": "do", "input": "this", "output": "done"}, "do\n\nthis\n\ndone"),
        ({"question": "why", "context": "here", "answer": "so"}, "why\n\nhere\n\nso"),
        ({"content": "plain", "url": "x"}, "plain"),
        ({"sentence": "plain", "label": 1}, "plain"),
        ({"text": "first", "content": "second"}, "first"),
        ({"body": "alone"}, "alone"),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_rows_give_their_text_by_the_names_of_their_columns(tmp_path, row, text, form):
    path = tmp_path / f"a.{form}"
    path.write_bytes(jsonl([row]) if form == "jsonl" else parquet([row], path))
    assert documents(path, "train") == [text]


def test_another_column_is_taken_by_name(tmp_path, model):
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "no", "story": "the cat and the dog", "chat": CHAT}] * 9))
    assert documents(tmp_path / "a.jsonl", "train", column="story")[0] == "the cat and the dog"
    assert documents(tmp_path / "a.jsonl", "train", column="chat")[0] == "the cat?\na cat."
    stats = calibrate(model, tmp_path / "a.jsonl", samples=2, sequence_length=8, text_column="story")
    assert stats.source.text_column == "story"
    with pytest.raises(InputError, match="has no column plot; its keys are text, story, chat"):
        documents(tmp_path / "a.jsonl", "train", column="plot")


def test_conversations_are_written_by_the_tokenizers_template_with_one_beginning(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.chat_template = "<s>{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"messages": CHAT}, {"conversations": SHARE}]))
    expected = "user: the cat?</s>assistant: a cat.</s>"
    assert documents(tmp_path / "a.jsonl", "train", tokenizer) == [expected] * 2
    rows = token_rows(tmp_path / "a.jsonl", tokenizer, "train")
    assert [row.tolist().count(0) for row in rows] == [1, 1]
    assert [row.tolist().count(1) for row in rows] == [2, 2]


def test_a_template_that_refuses_a_conversation_is_one_sentence(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"messages": CHAT}]))
    with pytest.raises(InputError, match=r"Line 1 of .*a.jsonl, column messages, does not fit .*roles must alternate"):
        documents(tmp_path / "a.jsonl", "train", tokenizer)


def test_folders_and_patterns_are_all_their_files_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "one"}]))
    (tmp_path / "sub/c.csv").write_text("text\nthree\n")
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert documents(tmp_path, "train") == ["one", "two", "three"]
    assert documents(f"{tmp_path}/*.[tj]*", "train")[:2] == ["one", "two"]
    assert documents(f"{tmp_path}/**/*.csv", "train") == ["three"]
    assert parse_sources(f"{tmp_path}/*.txt") == {f"{tmp_path}/*.txt": 1.0}


def test_files_named_after_splits_are_read_for_their_split(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        (tmp_path / f"{name}.txt").write_text(name)
    assert documents(tmp_path, "train") == ["train-00000-of-00002", "train-00001-of-00002"]
    assert documents(tmp_path, "test") == ["validation-00000-of-00001"]
    (tmp_path / "test.txt").write_text("test")
    assert documents(tmp_path, "test") == ["test"]


def test_a_name_with_commas_or_equal_signs_that_is_there_is_one_source(tmp_path):
    (tmp_path / "a,b=2.txt").write_text("one")
    (tmp_path / "x,y").mkdir()
    for name in ("a,b=2.txt", "x,y"):
        assert parse_sources(tmp_path / name) == {str(tmp_path / name): 1.0}


class Dataset(list):
    def select(self, indices):
        return Dataset(self[index] for index in indices)


@pytest.fixture
def hub(monkeypatch):
    """Stands for the datasets package; keeps what was asked for."""
    asked = []

    def load_dataset(path, config=None, *, split, revision, data_files):
        asked.append((path, config, split))
        return Dataset({"text": f"row {index}", "title": f"title {index}"} for index in range(3))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


@pytest.mark.parametrize(
    ("name", "asked", "first"),
    [
        ("ada/books", ("ada/books", None, "train"), "row 0"),
        ("ada/books:en", ("ada/books", "en", "train"), "row 0"),
        ("ada/books:en:validation", ("ada/books", "en", "validation"), "row 0"),
        ("ada/books::test:title", ("ada/books", None, "test"), "title 0"),
        ("ada/books:::title", ("ada/books", None, "train"), "title 0"),
    ],
)
def test_a_dataset_of_the_hub_is_named_with_its_parts(hub, name, asked, first):
    assert documents(name, "train") == [first, first.replace("0", "1"), first.replace("0", "2")]
    assert hub == [asked]


def test_a_path_that_is_not_there_is_no_dataset_of_the_hub(hub):
    for name in ("data/stories.txt", "data/stories.jsonl.gz", "a/b/c", "no-such-name"):
        with pytest.raises(InputError, match="is neither a file nor a dataset name"):
            documents(name, "train")
    assert hub == []
