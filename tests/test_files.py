import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from numprune import InputError, NumpruneError, files
from numprune.files import MARKER, atomic_file, atomic_folder, check_output, to_json, write_text


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(target, *files, error=None):
    """Write some files, each holding its own name, and fail if asked to."""
    with atomic_folder(target) as partial:
        for file in files:
            (partial / file).write_text(file)
        if error is not None:
            raise error


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "model"
    with atomic_folder(target) as partial:
        (partial / "a.txt").write_text("a")
        assert not target.exists()
        assert partial.parent == target.parent
    assert (target / "a.txt").read_text() == "a"
    assert names(target.parent) == ["model"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), InputError("no.")])
def test_an_error_midway_leaves_nothing_and_is_passed_on(tmp_path, error):
    with pytest.raises(type(error)):
        write(tmp_path / "model", "a.txt", error=error)
    assert names(tmp_path) == []


def test_a_full_disk_midway_is_one_sentence_and_leaves_nothing(tmp_path):
    with pytest.raises(NumpruneError, match="No space left on device; nothing was left there") as caught:
        write(tmp_path / "model", "a.txt", error=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert str(tmp_path / "model") in str(caught.value)
    assert names(tmp_path) == []


def test_a_failed_rename_leaves_the_old_folder(tmp_path, monkeypatch):
    target = tmp_path / "model"
    write(target, MARKER)
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, to: no_space() if self.suffix == ".partial" else rename(self, to))
    with pytest.raises(NumpruneError, match="No space left"):
        write(target, "new")
    assert names(tmp_path) == ["model"]
    assert names(target) == [MARKER]


def test_an_earlier_output_is_replaced_whole(tmp_path):
    target = tmp_path / "model"
    for name in ("first", "second"):
        write(target, MARKER, name)
    assert names(target) == [MARKER, "second"]
    assert names(tmp_path) == ["model"]


def test_an_empty_folder_is_used(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    write(target, "a")
    assert names(target) == ["a"]


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_others_wrote_is_never_replaced(tmp_path, what):
    target = tmp_path / "precious"
    mine = target / "thesis.txt" if what == "folder" else target
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("years of work")
    with pytest.raises(InputError, match="precious exists and was not written by numprune; choose another"):
        check_output(target)
    with pytest.raises(InputError, match="precious exists and was not written by numprune; choose another"):
        write(target, error=AssertionError("the block must not run"))
    assert mine.read_text() == "years of work"
    assert names(tmp_path) == ["precious"]


def test_a_target_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NumpruneError, match=r"Cannot write beside .*; choose another output folder"):
        write(tmp_path / "file" / "model", error=AssertionError("the block must not run"))


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "recipe.json"
    write_text(path, "naïve ½\n")
    assert path.read_text(encoding="utf-8") == "naïve ½\n"
    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(NumpruneError, match=r"Cannot write .*recipe.json: No space left on device; free some space"):
        write_text(path, "second")
    assert names(path.parent) == ["recipe.json"]
    assert path.read_text(encoding="utf-8") == "naïve ½\n"


def test_text_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NumpruneError, match="choose another place"):
        write_text(tmp_path / "file" / "recipe.json", "text")


def test_json_refuses_what_is_not_json():
    assert json.loads(to_json({"a": [1, 0.5, None]})) == {"a": [1, 0.5, None]}
    assert to_json({}).endswith("\n")
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            to_json({"a": value})


def test_what_is_written_may_be_read_by_whom_the_umask_lets(tmp_path):
    """Temporary files, and those of safetensors, are made for their owner alone."""
    umask = files._UMASK
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "inner").mkdir()
        save_file({"a": torch.zeros(1)}, folder / "inner" / "a.safetensors")
    with atomic_file(tmp_path / "file.safetensors") as file:
        save_file({"a": torch.zeros(1)}, file)
    write_text(tmp_path / "text", "a")
    for path in tmp_path.rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert path.stat().st_mode & 0o777 == wanted, path


def left_by_a_killed_run(target, *, writing, finished=False):
    """What a process leaves that is killed while it writes `target`, or while it puts it in its place."""
    code = f"""
import os, signal
from pathlib import Path
from numprune import files
end = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if {writing!r} == "text":
    Path.replace = end
    files.write_text({str(target)!r}, "half")
with files.atomic_folder({str(target)!r}) as folder:
    (folder / "half").write_text("half")
    if not {finished}:
        end()
    rename = Path.rename
    Path.rename = lambda path, to: end() if path.suffix == ".partial" else rename(path, to)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(files.__file__).parents[1], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("writing", ["folder", "text"])
def test_what_a_killed_run_left_is_cleared_away_by_the_next_one(tmp_path, writing):
    target = tmp_path / "a [b]*"
    left_by_a_killed_run(target, writing=writing)
    assert len(names(tmp_path)) == 1
    others = [".a [b]*.c.abcdefgh.partial", ".a.abcdefgh.partial", ".a [b]*.notes"]
    for name in others:
        (tmp_path / name).mkdir()
    write_text(target, "whole") if writing == "text" else write(target, "a.txt")
    assert names(tmp_path) == sorted([target.name, *others])


def test_an_earlier_output_that_a_killed_run_was_replacing_is_back(tmp_path):
    target = tmp_path / "model"
    write(target, MARKER, "first")
    left_by_a_killed_run(target, writing="folder", finished=True)
    assert not target.exists()
    files.clear_away(target)
    assert names(tmp_path) == ["model"]
    assert names(target) == ["first", MARKER]


def test_what_a_living_run_writes_is_not_cleared_away(tmp_path):
    target = tmp_path / "model"
    with atomic_folder(target) as mine:
        (mine / MARKER).write_text("mine")
        write(target, MARKER, "theirs")
        files.clear_away(target)
        assert mine.is_dir()
    # Who ends last is there, whole.
    assert names(tmp_path) == ["model"]
    assert (target / MARKER).read_text() == "mine"
    assert names(target) == [MARKER]


def test_runs_that_end_at_the_same_moment_replace_each_other_whole(tmp_path):
    target = tmp_path / "model"

    def often(number):
        for _ in range(40):
            write(target, MARKER, *(f"{number}-{each}" for each in range(3)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(often, range(4)))
    assert names(tmp_path) == ["model"]
    assert len({name.split("-")[0] for name in names(target) if name != MARKER}) == 1
    assert len(names(target)) == 4
