from argparse import Namespace
from pathlib import Path

import pytest

from numprune.cli.serve import _exports
from numprune.errors import InputError
from numprune.plan.recipe import CalibrationRecipe
from numprune.ui.serving import Policy
from numprune.ui.session import LoadRequest


@pytest.fixture
def policy(tmp_path):
    """A policy whose folder for exports lies beside a secret, with links out of it and within it."""
    root = tmp_path / "exports"
    (root / "there").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "file.gguf").symlink_to(tmp_path / "new.gguf")
    (root / "loop").symlink_to(root / "loop")
    (root / "within").symlink_to(root / "there")
    return Policy(exports=root)


def test_exports_go_below_their_folder(policy):
    assert policy.export_target("small") == policy.exports / "small"
    assert policy.export_target("mine/a/../small.gguf") == policy.exports / "mine" / "small.gguf"
    assert policy.export_target("within/small") == policy.exports / "there" / "small"
    assert policy.export_target(str(policy.exports / "absolute")) == policy.exports / "absolute"


@pytest.mark.parametrize(
    "name",
    [
        "../small",
        "a/../../small",
        "/etc/small",
        "/tmp",
        "out/small",
        "file.gguf",
        "loop/small",
        "there/../..",
        "..",
        ".",
        "",
        "a\0b",
        "x" * 5000,
        "../exports-of-others/small",
    ],
)
def test_a_path_outside_the_folder_is_refused_and_nothing_is_made(policy, name):
    before = sorted(policy.exports.parent.rglob("*"))
    with pytest.raises(InputError):
        policy.export_target(name)
    assert sorted(policy.exports.parent.rglob("*")) == before


def test_what_is_there_is_not_overwritten(policy):
    with pytest.raises(InputError, match="'there' is there already"):
        policy.export_target("there")


def test_without_a_folder_models_are_only_downloaded():
    with pytest.raises(InputError, match="download the model instead"):
        Policy().export_target("small")


def arguments(**given):
    local = {"export_dir": None, "host": "127.0.0.1", "root_path": "", "share": False, "allow_models": None}
    return Namespace(**local | given)


def test_only_a_page_for_this_machine_writes_to_it_unless_told_where():
    assert _exports(arguments()) == Path("exports")
    for served in ({"host": "0.0.0.0"}, {"root_path": "/prune"}, {"share": True}, {"allow_models": "tiny-stories"}):
        assert _exports(arguments(**served)) is None
        assert _exports(arguments(**served, export_dir="/srv/models")) == Path("/srv/models")


@pytest.mark.parametrize("data", ["self", "c4", "c4,self", "{own}/mine.txt", "{own}/a.txt=2,self"])
def test_datasets_uploads_and_own_samples_may_be_read(tmp_path, data):
    request = LoadRequest("tiny", calibration=CalibrationRecipe(data.format(own=tmp_path / "own")))
    Policy(models=["tiny"]).check(request, str(tmp_path / "own"))


@pytest.mark.parametrize(
    "data",
    [
        "/etc/passwd",
        "c4,/etc/passwd",
        "{own}/../secret.txt",
        "{own}-of-others/a.txt",
        "{own}/a.txt,{own}/../b.txt",
        "{own}/*.txt",
        "{own}/[a-z]?.txt",
        "{own}",
        "ada/books:en:train:text",
        "x",
    ],
)
def test_files_of_the_server_may_not_be_read(tmp_path, data):
    request = LoadRequest("tiny", calibration=CalibrationRecipe(data.format(own=tmp_path / "own")))
    with pytest.raises(InputError, match="Files of the server may not be read here"):
        Policy(models=["tiny"]).check(request, str(tmp_path / "own"))
