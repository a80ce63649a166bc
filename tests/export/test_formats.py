import pytest

from numprune.errors import InputError, NumpruneError
from numprune.export import check_export, export, formats_for
from numprune.export.formats import Format


@pytest.fixture
def shouting(monkeypatch):
    """A format of one text file, with an option, which refuses models without a name."""
    monkeypatch.setattr("numprune.export.formats.FORMATS", {})

    def write(model, target, *, case, progress, cancel):
        target.write_text(model.name.upper() if case == "upper" else model.name)
        return [f"{case} case"]

    import numprune.export.formats as formats

    formats.register(
        "shout",
        Format(
            about="its name",
            suffix=".txt",
            refusal=lambda model: None if model.name else "has no name",
            write=write,
            snippet=lambda model, path: f"cat {path}",
            options={"case": ("upper", "lower")},
        ),
    )
    return formats


class Named:
    def __init__(self, name):
        self.name = name

    def check_together(self):
        """It lies in one place."""


def test_writes_with_the_default_and_with_a_given_option(shouting, tmp_path):
    out = export(Named("ada"), tmp_path / "a.txt", format="shout")
    assert (out.path.read_text(), out.bytes, out.notes, out.snippet) == (
        "ADA",
        3,
        ["upper case"],
        f"cat {tmp_path / 'a.txt'}",
    )
    export(Named("ada"), tmp_path / "a.txt", format="shout", options={"case": "lower"})
    assert [file.read_text() for file in tmp_path.iterdir()] == ["ada"]


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("", {"format": "shout"}, "has no name"),
        ("ada", {"format": "whisper"}, "'whisper' is not known; use shout"),
        ("ada", {"format": "shout", "options": {"pitch": "high"}}, "no option 'pitch'; it takes case"),
        ("ada", {"format": "shout", "options": {"case": "title"}}, "case is 'title'; 'shout' takes upper, lower"),
    ],
)
def test_refuses_before_anything_is_written(shouting, tmp_path, name, arguments, says):
    with pytest.raises(InputError, match=says):
        export(Named(name), tmp_path / "a.txt", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_file_needs_its_suffix_and_no_folder_in_its_place(shouting, tmp_path):
    with pytest.raises(InputError, match=r"does not end in \.txt"):
        export(Named("ada"), tmp_path / "a.bin", format="shout")
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        export(Named("ada"), tmp_path / "b.txt", format="shout")


def test_a_full_disk_leaves_nothing(shouting, tmp_path):
    def full(model, target, **options):
        target.write_text("half")
        raise OSError(28, "No space left on device")

    shouting.register("full", Format("", ".txt", lambda model: None, full, lambda model, path: ""))
    with pytest.raises(NumpruneError, match="No space left on device; nothing was left there"):
        export(Named("ada"), tmp_path / "a.txt", format="full")
    assert not list(tmp_path.iterdir())


def test_says_which_formats_can_carry_a_model(shouting):
    assert formats_for(Named("")) == {"shout": "has no name"}
    assert check_export(Named("ada"), "shout") == {"case": "upper"}
