import json
import threading
import zipfile
from types import SimpleNamespace
from weakref import WeakKeyDictionary

import gradio as gr
import pytest
from servers import parts_of

from numprune.errors import Cancelled, InputError, check_cancelled
from numprune.export import formats
from numprune.export.formats import Format
from numprune.loading import load
from numprune.ui import engine, making
from numprune.ui.app import compose
from numprune.ui.comparison import DENSE
from numprune.ui.downloads import Downloads
from numprune.ui.jobs import Jobs
from numprune.ui.serving import Policy
from numprune.ui.session_report import session_report
from numprune.ui.shared import Shared, file_name
from numprune.ui.tabs import export
from numprune.ui.tabs.export import default_name, packed, refusals
from numprune.ui.workbench import Workbench


@pytest.fixture
def fakes(monkeypatch):
    """A format of a folder, one of a file with an option, and one that takes dense models only."""
    monkeypatch.setattr(formats, "FORMATS", {})
    monkeypatch.setattr(export, "_reasons", WeakKeyDictionary())
    for module in ("numprune.export", "numprune.ui.tabs.export"):
        monkeypatch.setattr(f"{module}.FORMATS", formats.FORMATS)

    def write_folder(model, target, *, progress, cancel):
        check_cancelled(cancel)
        (target / "weights").write_bytes(b"w" * 1000)
        return ["A note."]

    def write_file(model, target, *, progress, cancel, case):
        target.write_text(model.name.upper() if case == "upper" else model.name)
        return []

    def only_dense(model):
        return None if model.report is None else "was pruned"

    formats.register(
        "box", Format("a folder", "", lambda model: None, write_folder, lambda model, path: f"open {path}")
    )
    formats.register(
        "shout",
        Format(
            "a file",
            ".txt",
            lambda model: None,
            write_file,
            lambda model, path: f"cat {path}",
            {"case": ("upper", "lower")},
        ),
    )
    formats.register("whole", Format("unpruned", "", only_dense, write_folder, lambda model, path: ""))


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return Downloads()


def test_a_folder_is_downloaded_as_an_archive_and_loads_from_where_it_unpacks_to(fakes, downloads, small):
    bench, request = small
    model = bench.load(request, "fixture").model
    file, done = packed(downloads, "tab", model, "mine 30%", "box", {})
    assert file.name == "mine-30.zip"
    assert (done.snippet, done.notes) == ("open mine-30", ["A note."])
    with zipfile.ZipFile(file) as archive:
        assert archive.read("mine-30/weights") == b"w" * 1000
        assert json.loads(archive.read("mine-30/numprune.json"))["export"] == "box"
        assert done.bytes == sum(entry.file_size for entry in archive.infolist())
    assert [path.name for path in file.parent.iterdir()] == ["mine-30.zip"]


def test_a_file_is_downloaded_as_it_is_with_its_options(fakes, downloads, small):
    bench, request = small
    model = bench.load(request, "fixture").model
    file, done = packed(downloads, "tab", model, "x.txt", "shout", {"case": "lower"})
    assert (file.name, file.read_text(), done.snippet) == ("x.txt", "tiny-stories", "cat x.txt")


def test_a_refusal_or_a_stop_leaves_nothing_and_a_refusal_leaves_the_earlier_export(fakes, downloads, pruned):
    bench, _, name = pruned
    model = bench.pruned("tests", name)
    earlier, _ = packed(downloads, "tab", model, "x", "shout", {})
    for format, options in (("whole", {}), ("magic", {}), ("shout", {"case": "title"})):
        with pytest.raises(InputError):
            packed(downloads, "tab", model, "y", format, options)
    assert earlier.is_file()
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        packed(downloads, "tab", model, "y", "box", {}, cancel=stop)
    assert list(earlier.parent.parent.iterdir()) == []


def test_names_suit_every_file_system(scored):
    bench, session = scored
    model = bench.dense(session).model
    assert default_name(model, DENSE) == "tiny-stories"
    assert default_name(model, "30% <b> (2)") == "tiny-stories-30-b-2"
    assert file_name("../../etc/passwd") == "etc-passwd"
    assert file_name("..") == "file"


def test_what_cannot_carry_a_model_is_told_with_the_reason(fakes, pruned):
    bench, session, name = pruned
    assert "Not as whole: tiny-stories was pruned." in refusals(bench.pruned("tests", name))
    assert refusals(bench.dense(session).model) == ""


def test_the_page_offers_every_format_with_its_options(fakes):
    with gr.Blocks():
        tab = export.build(stub(Workbench(load("tiny-stories", device="cpu"))))
    assert [value for _, value in tab.format.choices] == ["box", "shout", "whole"]
    assert tab.format.value == "box"
    case = tab.options["shout"]["case"]
    assert [value for _, value in case.choices] == ["upper", "lower"]
    assert tab.settings({tab.format: "shout", case: "lower"}) == {"case": "lower"}
    assert tab.settings({tab.format: "box"}) == {}
    assert not tab.here.visible
    assert [row.visible for row in tab.rows.values()] == [False, False, False]


def stub(bench):
    """What the tab is given, without a page around it."""
    return Shared(bench, Jobs(), Downloads(), gr.DownloadButton(), gr.Tabs(), making.build())


def test_the_newest_pruned_model_is_offered_first(fakes, view, pruned):
    _, _, name = pruned
    with gr.Blocks():
        tab = export.build(stub(view.workbench))
    updates = tab.offer(view)
    chosen = updates[tab.model]
    assert [value for _, value in chosen.choices] == [DENSE, name]
    assert chosen.value == name
    assert "Not as whole" in updates[tab.refused]


def test_one_button_downloads_or_writes_below_the_folder_for_exports(fakes, view, pruned, monkeypatch, tmp_path):
    bench, _, name = pruned
    monkeypatch.setattr(bench, "policy", Policy(exports=tmp_path / "exports"))
    blocks, shared = compose(bench)
    handler = next(fn.fn for fn in blocks.fns.values() if fn.name == "export_model")
    parts = parts_of(blocks)
    given = {
        parts["Model to export"]: name,
        parts["Format"]: "shout",
        parts["Export as"]: "mine",
        parts["Case"]: "lower",
    }
    tab = SimpleNamespace(session_hash="tests")
    here = handler({**given, parts["To"]: "here"}, tab)
    assert (tmp_path / "exports" / "mine.txt").read_text() == "tiny-stories"
    assert here[shared.download].value is None
    away = handler({**given, parts["To"]: "download"}, tab)
    assert away[shared.download].value["path"].endswith("mine.txt")
    with pytest.raises(gr.Error, match="is there already"):
        handler({**given, parts["To"]: "here"}, tab)


TOKEN = "hf_a-token-nobody-may-see"


@pytest.fixture
def pushing(monkeypatch, pruned):
    """Presses the button with other values than good ones; the page, and what was uploaded."""
    bench, _, name = pruned
    monkeypatch.setattr(bench, "policy", Policy(push=True))
    uploads = []

    def push(model, repo_id, **options):
        uploads.append({"model": model, "repo_id": repo_id, **options})
        return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr(engine, "push_to_hub", push)
    blocks, shared = compose(bench)
    parts = parts_of(blocks)
    given = {
        shared.making.text: "Once upon a time there was a dog. " * 9,
        parts["Model to export"]: name,
        parts["Format"]: "transformers",
        parts["Repository"]: " ada/small ",
        parts["np-token"]: f" {TOKEN} ",
        parts["Private"]: True,
        parts["Perplexity on the card, measured now"]: True,
    }
    handler = next(fn.fn for fn in blocks.fns.values() if fn.name == "upload")

    def press(changes):
        return handler(given | changes, SimpleNamespace(session_hash="tests"))

    return press, parts, uploads


def test_a_model_is_pushed_with_the_visitor_s_token_which_nothing_keeps(pushing, pruned):
    push, parts, uploads = pushing
    shown = push({})
    bench, session, name = pruned
    (done,) = uploads
    assert (done["repo_id"], done["token"], done["private"]) == ("ada/small", TOKEN, True)
    assert done["model"] is bench.pruned("tests", name)
    assert done["perplexity_before"].tokens == done["perplexity_after"].tokens
    assert "https://huggingface.co/ada/small" in str(shown.values())
    kept = session_report(bench.dense(session), bench.plan(session), bench.variants("tests"), bench.findings("tests"))
    assert TOKEN not in kept + repr(session) + repr(bench._tabs) + session.recipe.to_json() + str(shown)
    assert parts["np-token"].type == "password"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [("np-token", " ", "no token"), ("Repository", "../x y", "no name for a repository"), ("Format", "stock", "stock")],
)
def test_nothing_is_pushed_that_cannot_be(pushing, field, value, says):
    push, parts, uploads = pushing
    with pytest.raises(gr.Error, match=says) as refused:
        push({parts[field]: value})
    assert TOKEN not in str(refused.value)
    assert not uploads


def test_a_page_for_others_pushes_nothing(pushing, pruned, monkeypatch):
    push, _, uploads = pushing
    monkeypatch.setattr(pruned[0], "policy", Policy())
    with pytest.raises(gr.Error, match="download the model"):
        push({})
    assert not uploads
