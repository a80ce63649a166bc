"""Calibration of several sources in turn, and of sequences that stay apart."""

import pytest
import torch
from architectures import random_ids, tiny_model

from numprune import CalibrationRecipe, InputError, Recipe, calibrate
from numprune.calibration.sources import parse_sources, shares


def write(folder, **texts):
    for name, word in texts.items():
        (folder / f"{name}.txt").write_text(" ".join([word] * 600))
    return [str(folder / f"{name}.txt") for name in texts]


@pytest.mark.parametrize(("width", "length"), [(6, 8), (6, 6), (10, 4), (9, 3)])
def test_no_window_leaves_its_sequence(model, width, length):
    """Rows 10 x 6 with a length of 8 once became [5, 5, 5, 5, 6, 6, 6, 6]."""
    rows = torch.arange(10)[:, None].expand(10, width) + 3
    stats = calibrate(model, rows, samples=10, sequence_length=length)
    assert all(len(set(row)) == 1 for row in stats.rows.tolist())
    assert stats.sequence_length == min(width, length)
    assert any("fewer than the 8 asked for" in note for note in stats.notes) == (length > width)


def test_windows_of_given_sequences_overlap_only_when_there_are_too_few(model):
    rows = random_ids(2, 12)
    apart = calibrate(model, rows, samples=6, sequence_length=4)
    whole = {tuple(part) for row in rows.tolist() for part in (row[:4], row[4:8], row[8:])}
    assert {tuple(row) for row in apart.rows.tolist()} == whole
    within = {tuple(row[begin : begin + 4]) for row in rows.tolist() for begin in range(9)}
    assert {tuple(row) for row in calibrate(model, rows, samples=18, sequence_length=4).rows.tolist()} == within


def test_sources_come_in_turn_by_their_weights(model, tmp_path):
    cats, dogs, suns = write(tmp_path, cats="cat", dogs="dog", suns="sun")
    stats = calibrate(model, f"{cats}=2,{dogs},{suns}=1", samples=16, sequence_length=12)
    owners = []
    for row in stats.rows:
        text = model.tokenizer.decode(row, skip_special_tokens=True)
        owners.append(next(word for word in ("cat", "dog", "sun") if word in text))
    assert {word: owners.count(word) for word in set(owners)} == {"cat": 8, "dog": 4, "sun": 4}
    for begin in range(0, 16, 4):  # every quarter is mixed like the whole
        assert sorted(owners[begin : begin + 4]) == ["cat", "cat", "dog", "sun"]
    assert stats.notes == ["Calibration sequences: 8 of cats.txt (50%), 4 of dogs.txt (25%), 4 of suns.txt (25%)."]
    assert stats.source == CalibrationRecipe(f"{cats}=2,{dogs},{suns}=1", 16, 12, 0)


def test_a_mixture_holds_what_its_sources_hold_alone(model, tmp_path):
    cats, dogs = write(tmp_path, cats="cat sat", dogs="dog ran off")
    mixed = calibrate(model, f"{cats},{dogs},self", samples=12, sequence_length=10).rows
    alone = [calibrate(model, each, samples=4, sequence_length=10).rows for each in (cats, dogs, "self")]
    assert sorted(mixed.tolist()) == sorted(torch.cat(alone).tolist())


def test_the_recipe_of_a_mixture_repeats_it(model, tmp_path, run):
    cats, dogs = write(tmp_path, cats="cat", dogs="dog")
    model.save(tmp_path / "model")
    flags = ["--samples", 8, "--sequence-length", 16, "--calibration", f"{cats},{dogs}", "--ratio", 0.3, "--quiet"]
    code, _, err = run("prune", tmp_path / "model", "--out", tmp_path / "first", *flags)
    assert code == 0, err
    recipe = Recipe.read(tmp_path / "first" / "recipe.json")
    assert recipe.calibration.data == f"{cats},{dogs}"
    report = (tmp_path / "first" / "report.json").read_text()
    assert "Calibration sequences: 4 of cats.txt (50%), 4 of dogs.txt (50%)." in report
    assert run("prune", "--recipe", tmp_path / "first" / "recipe.json", "--out", tmp_path / "again", "--quiet")[0] == 0
    for file in ("model.safetensors", "recipe.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "first" / file).read_bytes()


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("self", {"self": 1}),
        ("c4,wikitext2,self", {"c4": 1, "wikitext2": 1, "self": 1}),
        (" c4 = 2 , wikitext2 = 0.5 ", {"c4": 2, "wikitext2": 0.5}),
        ("missing.txt", {"missing.txt": 1}),
    ],
)
def test_names_and_weights_are_read(text, sources):
    assert parse_sources(text) == sources


def test_a_file_is_one_source_whatever_its_name(tmp_path):
    file = tmp_path / "a,b=3.txt"
    file.write_text("text")
    assert parse_sources(file) == {str(file): 1}


@pytest.mark.parametrize("text", ["c4,", ",c4", "c4,c4", "c4=0,self", "c4=-1,self", "c4=x,self", "c4=nan", "=2,c4"])
def test_what_is_no_source_is_refused(text):
    with pytest.raises(InputError, match="is no source of its own; write names with commas"):
        parse_sources(text)


def test_shares_are_whole_and_nobody_goes_empty():
    assert shares({"a": 1, "b": 1, "c": 1}, 64) == {"a": 22, "b": 21, "c": 21}
    assert shares({"a": 1000, "b": 1}, 8) == {"a": 7, "b": 1}
    assert shares({"a": 3, "b": 1}, 128) == {"a": 96, "b": 32}
    with pytest.raises(InputError, match="2 samples cannot come from 3 sources"):
        shares({"a": 1, "b": 1, "c": 1}, 2)


@pytest.mark.parametrize(("samples", "length"), [(6, 10), (40, 25), (3, 2)])
def test_every_sequence_begins_with_bos_where_the_tokenizer_adds_it(tmp_path, framing_tokenizer, samples, length):
    model = tiny_model("llama", tokenizer=framing_tokenizer)
    cats, dogs = write(tmp_path, cats="cat sat", dogs="dog ran off")
    stats = calibrate(model, f"{cats},{dogs}", samples=samples, sequence_length=length)
    rows = stats.rows
    assert stats.notes[0] == "Every sequence of text begins with <s>."
    assert rows.shape == (samples, length)
    assert bool((rows[:, 0] == 0).all())
    assert not bool((rows[:, 1:] == 0).any())  # and none has two, that at the beginning of a file included
    plain = calibrate(model, f"{cats},{dogs}", samples=samples, sequence_length=length, bos=False)
    assert plain.source.bos is False
    text = {tuple(row) for row in plain.rows[:, : length - 1].tolist()}
    assert all(
        tuple(row[1:]) in text for row in rows.tolist() if tuple(row) not in set(map(tuple, plain.rows.tolist()))
    )


def test_given_tokens_and_own_samples_get_no_second_bos(framing_tokenizer):
    model = tiny_model("llama", tokenizer=framing_tokenizer)
    ids = random_ids(4, 12)
    assert torch.equal(calibrate(model, ids, samples=4, sequence_length=12).rows.sort(0)[0], ids.int().sort(0)[0])
    own = calibrate(model, "self", samples=3, sequence_length=12).rows
    assert bool((own[:, 0] == 0).all())
    assert not bool((own[:, :2] == 0).all(1).any())
