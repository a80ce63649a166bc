"""`numprune export`, and `prune --uniform` before it."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from numprune.cli import main

MODEL = "tiny-stories"
SMALL = ("--samples", "4", "--sequence-length", "64")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("Once upon a time a little fox saw a big bird. They ran to the park and were very happy. " * 40)
    return path


@pytest.fixture(scope="module")
def even(tmp_path_factory, text):
    """A model with equal counts in all layers, as `numprune prune --uniform` writes it."""
    out = tmp_path_factory.mktemp("even") / "even"
    flags = ["--calibration", str(text), *SMALL, "--ratio", "0.3", "--uniform"]
    assert main(["prune", MODEL, *flags, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def uneven(tmp_path_factory, text):
    out = tmp_path_factory.mktemp("uneven") / "uneven"
    assert main(["prune", MODEL, "--calibration", str(text), *SMALL, "--set", "0.mlp=0.6", "--out", str(out)]) == 0
    return out


def test_writes_the_format_that_is_usual_and_prints_how_to_load_it(run, uneven, tmp_path):
    code, out, err = run("export", uneven, "--out", tmp_path / "out")
    assert code == 0, err
    assert out.startswith(f"{uneven} -> {tmp_path / 'out'}")
    assert f'AutoModelForCausalLM.from_pretrained("{tmp_path / "out"}", trust_remote_code=True)' in out
    assert "modeling_pruned_llama.py in the folder makes the narrower layers" in err
    assert (tmp_path / "out" / "modeling_pruned_llama.py").is_file()


def test_prints_json_alone(run, even, tmp_path):
    code, out, err = run("export", even, "--format", "stock", "--out", tmp_path / "out", "--json", "--dtype", "float16")
    assert code == 0, err
    result = json.loads(out)
    assert (result["format"], result["out"], result["dtype"]) == ("stock", str(tmp_path / "out"), "float16")
    assert result["bytes_on_disk"] == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.num_parameters() == result["parameters"]
    assert str(model.dtype) == "torch.float16"


def test_a_dense_model_keeps_its_own_data_type(run, tmp_path):
    code, out, err = run("export", MODEL, "--out", tmp_path / "out", "--json")
    assert code == 0, err
    assert json.loads(out)["dtype"] == "float16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.float16


def test_lists_formats_and_why_one_cannot_carry_the_model(run, uneven, tmp_path):
    code, out, _ = run("export", uneven, "--formats")
    assert code == 0
    assert "transformers" in out
    assert "MLP channels, not the same in every layer" in out
    formats = {each["format"]: each for each in json.loads(run("export", uneven, "--formats", "--json")[1])["formats"]}
    assert formats["transformers"]["possible"]
    assert formats["transformers"]["reason"] is None
    assert not formats["stock"]["possible"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--format", "stock", "--out", "{tmp}/out"],
            "so 'stock' cannot carry it; use numprune or gguf or transformers",
        ),
        (
            ["--format", "floppy", "--out", "{tmp}/out"],
            "Format 'floppy' is not known; use numprune, gguf, llamagen, transformers",
        ),
        (["--out", "{tmp}/out", "--option", "half"], "--option is 'half'; write NAME=VALUE"),
        (["--out", "{tmp}/out", "--option", "half=yes"], "has no option 'half'"),
        ([], "nowhere to write; give --out"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(run, uneven, tmp_path, flags, says):
    code, out, err = run("export", uneven, *(flag.format(tmp=tmp_path) for flag in flags))
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_not_replaced(run, uneven, tmp_path):
    (tmp_path / "photo.jpg").touch()
    code, _, err = run("export", uneven, "--out", tmp_path)
    assert code == 2
    assert "was not written by numprune" in err
    assert [file.name for file in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_model_that_is_not_there_is_another_exit_code(run, tmp_path):
    assert run("export", tmp_path / "nothing", "--out", tmp_path / "out")[0] == 3


def test_uniform_keeps_equal_counts_and_reports_what_that_costs(even):
    report = json.loads((even / "report.json").read_text())
    for kind in ("attention", "mlp"):
        assert len({module["kept"] for module in report["modules"] if module["module"] == kind}) == 1
    assert abs(report["ratio_reached"] - 0.3) < 0.005
    (note,) = (note for note in report["notes"] if note.startswith("Equal counts in every layer change"))
    assert "on 252 tokens of the calibration text (4 sequences)" in note
    assert json.loads((even / "recipe.json").read_text())["uniform"] is True


@pytest.mark.parametrize("flags", [["--suggest"], ["--preset", "best"]])
def test_uniform_with_suggested_ratios_is_refused_before_anything_is_loaded(run, tmp_path, flags):
    code, _, err = run("prune", "no/such-model", "--uniform", *flags, "--out", tmp_path / "out")
    assert code == 2
    assert "leave --uniform out" in err
