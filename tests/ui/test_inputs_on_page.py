"""The bad and odd inputs of the command line, through the form of the page: a toast of one sentence, or a model."""

import shutil
from dataclasses import fields

import gradio as gr
import pytest
from inputs import MODELS, NAMES, OK, PLACES, STORY, TEXTS, save_tiny, words, write_named, write_places

from numprune.loading import load
from numprune.plan.recipe import CalibrationRecipe
from numprune.ui.model_form import UPLOADED, ModelForm, asked_for
from numprune.ui.session import LoadRequest
from numprune.ui.shared import toasts
from numprune.ui.workbench import Workbench

FORM = ModelForm(*(field.name for field in fields(ModelForm)))
"""Its components stand for themselves by name."""
EMPTY = {"device": "cpu", "dtype": "auto", "upload": None, "text": "", "column": "", "seed": 0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "tiny"
    save_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def bench():
    """A workbench with a model open in a tab."""
    bench = Workbench(load("tiny-stories", device="cpu"))
    bench.enter("tab", bench.fresh(bench.load(LoadRequest("tiny-stories", calibration=SMALL), "tab")))
    return bench


SMALL = CalibrationRecipe("self", 4, 32)


def judged(bench, fine, says, **given):
    """Press *Open and score*; a refusal is a toast of one sentence, and what was open stays as it was."""
    before = bench.session("tab"), bench.used, bench.plan(bench.session("tab")).keep

    def press():
        with toasts():
            wanted = asked_for(FORM, {**EMPTY, "samples": 2, "length": 8, **given})
            return bench.load(wanted, "other", scorers=["magnitude"])

    if fine:
        loaded = press()
        assert loaded.scores.scorer == "magnitude"
        bench.release("other")
    else:
        with pytest.raises(gr.Error) as refused:
            press()
        assert refused.value.title == "That did not work"
        for word in says:
            assert word in refused.value.message
        assert refused.value.message.endswith(".")
        assert "\n" not in refused.value.message
    assert (bench.session("tab"), bench.used, bench.plan(bench.session("tab")).keep) == before


@pytest.mark.parametrize(
    ("name", "content", "flags", "code", "says"), TEXTS, ids=[f"{row[0]} {row[3]}" for row in TEXTS]
)
def test_uploaded_text(bench, tiny, tmp_path, monkeypatch, name, content, flags, code, says):
    monkeypatch.setenv("NUMPRUNE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / name
    path.write_bytes(content)
    given = {"data": UPLOADED, "upload": str(path), "column": dict([flags]).get("--text-column", "") if flags else ""}
    judged(bench, code == OK, [says.replace("{path}", str(path))], model=str(tiny), **given)


@pytest.mark.parametrize(("name", "code", "says"), NAMES, ids=[repr(row[0][:40]) for row in NAMES])
def test_calibration_by_name(bench, tiny, tmp_path, name, code, says):
    write_named(tmp_path)
    data = name.replace("{folder}", str(tmp_path))
    if not data:
        says = "There is no calibration text; choose a source."
    judged(bench, code == OK, words(says, tmp_path), model=str(tiny), data=data)


@pytest.mark.parametrize(("edit", "what", "code", "says"), MODELS, ids=[row[1] for row in MODELS])
def test_checkpoint(bench, tiny, tmp_path, edit, what, code, says):
    folder = shutil.copytree(tiny, tmp_path / "model")
    edit(folder)
    (tmp_path / "a.txt").write_text(STORY)
    judged(bench, code == OK, words(says, folder), model=str(folder), data=str(tmp_path / "a.txt"))


@pytest.mark.parametrize(("name", "says"), PLACES, ids=[repr(row[0][:40]) for row in PLACES])
def test_model_by_name(bench, tmp_path, name, says):
    write_places(tmp_path)
    judged(bench, False, [says], model=name.replace("{folder}", str(tmp_path)), data=str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"samples": 2.5}, "Samples is 2.5; give a whole number."),
        ({"samples": -1}, "samples is -1; give at least 1."),
        ({"length": 1}, "sequence_length is 1; give at least 2."),
        ({"length": 1e400}, "Length is inf; give a whole number."),
        ({"seed": None}, "Seed is None; give a whole number."),
        ({"seed": float("nan")}, "Seed is nan; give a whole number."),
        ({"data": None}, "There is no calibration text; choose a source."),
        ({"data": UPLOADED}, "There is no uploaded file; drop one into the box first"),
        ({"data": "pasted text", "text": " \n"}, "There is no calibration text; paste some"),
        ({"device": "tpu"}, "tpu"),
        ({"dtype": "int3"}, "int3"),
    ],
)
def test_numbers_and_choices(bench, tiny, tmp_path, given, says):
    (tmp_path / "a.txt").write_text(STORY)
    judged(bench, False, [says], **{"model": str(tiny), "data": str(tmp_path / "a.txt"), **given})
