import threading
import zipfile

import pytest

from numprune.errors import Cancelled, NumpruneError
from numprune.ui.downloads import Downloads, zip_folder


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return Downloads()


def test_a_tab_s_files_go_with_it_and_no_others(downloads):
    mine, more, theirs = downloads.folder("a"), downloads.folder("a"), downloads.folder("b")
    (mine / "table.csv").write_text("1")
    downloads.free("a")
    assert not mine.exists()
    assert not more.exists()
    assert theirs.is_dir()
    downloads.free("a")


def test_files_lie_where_gradio_serves_them_from_without_a_copy(downloads, tmp_path):
    assert (tmp_path / "gradio") in downloads.folder("a").parents


def test_an_export_makes_room_for_the_next_one_of_its_tab(downloads):
    first, table, other = downloads.folder("a", "export"), downloads.folder("a"), downloads.folder("b", "export")
    second = downloads.folder("a", "export")
    assert not first.exists()
    assert table.is_dir()
    assert other.is_dir()
    downloads.drop("a", second)
    assert not second.exists()


@pytest.fixture
def folder(tmp_path):
    """A folder with a folder in it."""
    made = tmp_path / "small"
    (made / "inside").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "inside" / "weights").write_bytes(bytes(range(256)) * 50)
    return made


def test_an_archive_holds_the_folder_and_takes_its_place(folder, tmp_path):
    steps = []
    zip_folder(folder, tmp_path / "small.zip", progress=lambda done, total, what: steps.append((done, total)))
    assert not folder.exists()
    with zipfile.ZipFile(tmp_path / "small.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["small/config.json", "small/inside/weights"]
        assert archive.read("small/inside/weights") == bytes(range(256)) * 50
    assert steps[-1] == (12802, 12802)


def test_a_stop_or_a_full_disk_leaves_no_archive(folder, tmp_path, monkeypatch):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        zip_folder(folder, tmp_path / "small.zip", cancel=stop)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "open", full)
    with pytest.raises(NumpruneError, match="No space left on device"):
        zip_folder(folder, tmp_path / "small.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
