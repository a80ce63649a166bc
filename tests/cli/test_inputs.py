"""Bad and odd inputs on the command line: the exit code, and that the sentence names the thing."""

import shutil

import pytest
from inputs import (
    BAD_INPUT,
    CANNOT_LOAD,
    MODELS,
    NAMES,
    OK,
    PLACES,
    RECIPES,
    SCORES,
    STORY,
    TEXTS,
    save_tiny,
    words,
    write_named,
    write_places,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny checkpoint; copied before it is changed."""
    folder = tmp_path_factory.mktemp("inputs") / "tiny"
    save_tiny(folder)
    return folder


def judged(run, argv, code, says):
    """Run a command; a refusal is one sentence that holds `says`, an accepted input may be told in a note."""
    got, out, err = run(*argv)
    assert got == code, err
    assert "Traceback" not in err
    for word in says:
        assert word in err, err
    if code != OK:
        assert out == ""
        lines = err.strip().splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("numprune: ")
        assert lines[0].endswith(".")
        assert len(lines[0]) < 700


@pytest.mark.parametrize(
    ("name", "content", "flags", "code", "says"), TEXTS, ids=[f"{row[0]} {row[3]}" for row in TEXTS]
)
def test_text(run, tiny, tmp_path, name, content, flags, code, says):
    path = tmp_path / name
    path.write_bytes(content)
    argv = [
        "score",
        tiny,
        "--calibration",
        path,
        "--samples",
        2,
        "--sequence-length",
        8,
        "--method",
        "magnitude",
        *flags,
    ]
    judged(run, argv, code, [says.replace("{path}", str(path))])


@pytest.mark.parametrize(("name", "code", "says"), NAMES, ids=[repr(row[0][:40]) for row in NAMES])
def test_calibration_by_name(run, tiny, tmp_path, name, code, says):
    write_named(tmp_path)
    data = name.replace("{folder}", str(tmp_path))
    argv = ["score", tiny, "--calibration", data, "--samples", 2, "--sequence-length", 8, "--method", "magnitude"]
    judged(run, argv, code, words(says, tmp_path))


@pytest.mark.parametrize(("edit", "what", "code", "says"), MODELS, ids=[row[1] for row in MODELS])
def test_checkpoint(run, tiny, tmp_path, edit, what, code, says):
    folder = shutil.copytree(tiny, tmp_path / "model")
    edit(folder)
    (tmp_path / "a.txt").write_text(STORY)
    judged(run, ["eval", folder, "--data", tmp_path / "a.txt", "--sequence-length", 16], code, words(says, folder))


@pytest.mark.parametrize(("name", "says"), PLACES, ids=[repr(row[0][:40]) for row in PLACES])
def test_model_by_name(run, tmp_path, name, says):
    write_places(tmp_path)
    given = name.replace("{folder}", str(tmp_path))
    judged(run, ["eval", given, "--data", tmp_path / "a.txt"], CANNOT_LOAD, [says])


@pytest.mark.parametrize(("content", "what", "says"), RECIPES, ids=[row[1] for row in RECIPES])
def test_recipe(run, tiny, tmp_path, content, what, says):
    (tmp_path / "recipe.json").write_bytes(content)
    (tmp_path / "a.txt").write_text(STORY)
    text = ["--calibration", tmp_path / "a.txt"] if what != "a calibration as a word" else []
    text += ["--samples", 2, "--sequence-length", 8] if "calibration" not in says else []
    judged(
        run, ["prune", tiny, "--recipe", tmp_path / "recipe.json", *text, "--out", tmp_path / "o"], BAD_INPUT, [says]
    )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(("content", "what", "says"), SCORES, ids=[row[1] for row in SCORES])
def test_file_of_scores(run, tmp_path, content, what, says):
    (tmp_path / "s.safetensors").write_bytes(content)
    judged(run, ["serve", "--scores", tmp_path / "s.safetensors"], BAD_INPUT, [says, "s.safetensors"])


def test_the_table_is_long_enough():
    assert sum(map(len, (TEXTS, NAMES, MODELS, PLACES, RECIPES, SCORES))) >= 200
