"""What a machine can do to a command: every fault is one sentence and an exit code, and nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from forked import ROOT, STAGES, program

import numprune

STORY = "the cat and the dog sat on a mat and then the hen ran to the barn. " * 40
FAILED, BAD_INPUT, CANNOT_LOAD = 4, 2, 3
TEXT = ["--calibration", "a.txt", "--samples", "8", "--sequence-length", "32", "--device", "cpu"]
PRUNE = ["prune", "tiny", *TEXT, "--out", "out"]


@pytest.fixture
def place(tiny, tmp_path):
    (tmp_path / "a.txt").write_text(STORY)
    (tmp_path / "tiny").symlink_to(tiny)
    return tmp_path


def sentence(ended, code):
    """The one sentence of a refusal."""
    assert ended.code == code, (ended.out, ended.err)
    assert ended.out == ""
    told = [line for line in ended.err.strip().splitlines() if not line.startswith("Note: ")]
    assert len(told) == 1, ended.err
    assert told[0].startswith("numprune: ")
    assert told[0].endswith(".")
    assert "should not happen" not in told[0]
    assert len(told[0]) < 700
    return told[0]


def only(place, *names):
    """That nothing else lies there than the model, the text and these."""
    assert sorted(path.name for path in place.iterdir()) == sorted(["a.txt", "tiny", *names])


# Memory.


@pytest.mark.parametrize("what", ["device", "host"])
@pytest.mark.parametrize("stage", STAGES)
def test_memory_that_ends_is_one_sentence(forking, place, stage, what):
    text = ["--calibration", "a.txt", "--samples", "4", "--sequence-length", "128", "--preset", "paper"]
    command = ["prune", "tiny-stories", *text, "--out", "out"]
    if stage == "generation":
        command = ["generate", "tiny-stories", "--prompt", "Once", "--max-new-tokens", "200"]
    [ended] = forking.run(command, cwd=str(place), fault=[stage, what])
    assert "Out of memory" in sentence(ended, FAILED)
    only(place)


# Places that take no files.


def test_an_output_that_takes_no_files_is_refused_at_once(forking, place):
    (place / "locked").mkdir(mode=0o555)
    for command in (PRUNE, ["score", "tiny", *TEXT, "--out", "s.safetensors"]):
        [ended] = forking.run([*command[:-1], f"locked/{command[-1]}"], cwd=str(place), rights="as others")
        assert "locked" in sentence(ended, FAILED)
    assert list((place / "locked").iterdir()) == []
    (place / "old").mkdir()
    (place / "old").chmod(0o000)
    [ended] = forking.run([*PRUNE[:-1], "old"], cwd=str(place), rights="as others")
    assert "old" in sentence(ended, BAD_INPUT)
    (place / "old").rmdir()
    only(place, "locked")


@pytest.fixture
def disk(place):
    """A disk that a few thousand bytes fill."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    (place / "disk").mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=12k", "none", place / "disk"]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    yield place / "disk"
    subprocess.run(["umount", place / "disk"], check=True)


@pytest.mark.parametrize(
    "command",
    [
        PRUNE[:-1],
        ["score", "tiny", *TEXT, "--out"],
        ["export", "tiny", "--format", "transformers", "--out"],
        ["export", "tiny", "--format", "gguf", "--out"],
        [
            *["sweep", "tiny", *TEXT, "--data", "a.txt", "--methods", "paper,magnitude,flap,wanda_sp,random"],
            *["--ratios", ",".join(f"0.{digits}" for digits in range(11, 19)), "--repetitions", "0", "--out"],
        ],
    ],
    ids=["prune", "score", "export", "gguf", "sweep"],
)
def test_a_disk_that_fills_is_one_sentence_and_leaves_nothing_half_written(forking, place, disk, command):
    target = {"score": "out.safetensors", "sweep": "out.csv"}.get(command[0], "out")
    if "gguf" in command:
        target = "out.gguf"
    elif command[0] == "score":
        (disk / "others").write_bytes(b"0" * 12288)
    others = list(disk.iterdir())
    [ended] = forking.run([*command, f"disk/{target}"], cwd=str(place))
    if command[0] == "sweep":
        # Its file is whole after every cell, so that those that were measured are kept.
        assert ended.code == FAILED, ended.err
        rows = (disk / target).read_text().splitlines()
        assert len(rows) > 1
        assert all(row.count(",") == rows[0].count(",") for row in rows)
    else:
        assert "disk" in sentence(ended, FAILED)
        assert list(disk.iterdir()) == others
    subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
    [again] = forking.run([*command, f"disk/{target}"], cwd=str(place))
    assert again.code == 0, again.err
    assert not list(disk.glob(".*"))


def test_a_cache_on_a_full_disk_costs_nothing(forking, place, disk):
    (disk / "full").write_bytes(b"0" * 12288)
    command = [*PRUNE, "--calibration", "self"]
    [ended] = forking.run(command, cwd=str(place), environment={"NUMPRUNE_CACHE": "disk/cache"})
    assert ended.code == 0, ended.err
    assert numprune.load(place / "out", device="cpu").recipe
    assert [path for path in disk.rglob("*") if path.is_file()] == [disk / "full"]


def test_a_chat_template_that_never_ends_is_never_run(forking, place, tiny):
    """It comes with the model, travels with what is made of it, and nothing here renders it."""
    endless = "{% for a in range(999999999) %}{% for b in range(999999999) %}{{ a }}{% endfor %}{% endfor %}"
    shutil.copytree(tiny, place / "looping")
    (place / "looping/chat_template.jinja").write_text(endless)
    for command in (
        ["prune", "looping", *TEXT, "--out", "out"],
        ["generate", "out", "--prompt", "the cat", "--max-new-tokens", "4"],
        ["export", "out", "--format", "transformers", "--out", "exported"],
        ["export", "out", "--format", "gguf", "--out", "out.gguf"],
    ):
        [ended] = forking.run(command, cwd=str(place))
        assert ended.code == 0, ended.err
    assert (place / "exported/chat_template.jinja").read_text() == endless


@pytest.mark.parametrize("where", ["cache", "home"])
def test_a_cache_or_a_home_that_takes_no_files_costs_nothing(forking, place, where):
    (place / "locked").mkdir(mode=0o555)
    given = {"NUMPRUNE_CACHE": str(place / "locked/cache")} if where == "cache" else {"HOME": str(place / "locked")}
    unset = ["NUMPRUNE_CACHE", "XDG_CACHE_HOME"] if where == "home" else []
    command = [*PRUNE, "--calibration", "self"]
    [ended] = forking.run(command, cwd=str(place), environment=given, unset=unset, rights="as others")
    assert ended.code == 0, ended.err
    assert numprune.load(place / "out", device="cpu").recipe
    assert list((place / "locked").iterdir()) == []


@pytest.mark.parametrize(
    "odd",
    [
        {"HOME": None, "XDG_CACHE_HOME": None, "NUMPRUNE_CACHE": None, "LC_ALL": "C", "USER": None},
        {"LC_ALL": "tr_TR.UTF-8", "TZ": "Pacific/Chatham", "HOME": "/nowhere", "NUMPRUNE_CACHE": None},
    ],
    ids=["no home, C", "Turkish, Chatham, a home that is not there"],
)
def test_a_clock_a_language_and_a_home_of_any_kind(place, odd, monkeypatch):
    """From the start, as a program of its own: they are read when Python starts."""
    if "LC_ALL" in odd and odd["LC_ALL"] != "C":
        folder = place / "locales"
        folder.mkdir()
        made = (
            subprocess.run(
                ["localedef", "-i", "tr_TR", "-f", "UTF-8", str(folder / "tr_TR.UTF-8")],
                capture_output=True,
                check=False,
            )
            if any(os.access(f"{each}/localedef", os.X_OK) for each in os.environ["PATH"].split(":"))
            else None
        )
        if made is None or made.returncode > 1 or not any(folder.iterdir()):
            pytest.skip("this machine can make no Turkish locale")
        odd = {**odd, "LOCPATH": str(folder)}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **odd}
    (place / "dişi ğ.txt").write_text(STORY, encoding="utf-8")
    command = [*PRUNE, "--calibration", "dişi ğ.txt", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "numprune", *command],
        cwd=place,
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recipe"]["calibration"]["data"] == "dişi ğ.txt"
    assert numprune.Recipe.read(place / "out/recipe.json").calibration.data == "dişi ğ.txt"


# Files of our own that were damaged.


def kept_samples(place):
    [file] = (place / "cache").glob("self-*.safetensors")
    return file


KEPT = {
    # what is written first, the file it leaves, what reads it, and what a damage of it may cost
    "samples": (["score", "tiny", "--samples", "4", "--sequence-length", "16", "--json"], kept_samples, None, {0}),
    "scores": (
        ["score", "tiny", *TEXT, "--method", "fisher", "--out", "s.safetensors"],
        lambda place: place / "s.safetensors",
        ["serve", "--scores", "s.safetensors", "--port", "1"],
        {BAD_INPUT},
    ),
    "recipe": (
        PRUNE,
        lambda place: place / "out/recipe.json",
        ["prune", "tiny", "--recipe", "out/recipe.json", "--out", "again"],
        {BAD_INPUT},
    ),
    "sweep": (
        [
            *["sweep", "tiny", "--calibration", "a.txt", "--samples", "4", "--sequence-length", "16"],
            *["--data", "a.txt", "--methods", "magnitude", "--ratios", "0.2", "--seeds", "0", "--repetitions", "0"],
            *["--device", "cpu", "--out", "s.csv"],
        ],
        lambda place: place / "s.csv",
        None,
        {0, BAD_INPUT},
    ),
}


def flipped(file):
    data = bytearray(file.read_bytes())
    data[-9] ^= 0x80
    file.write_bytes(data)


def folder_instead(file):
    file.unlink()
    file.mkdir()


DAMAGES = {
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "cut in half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "a bit flipped": flipped,
    "another kind": lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n" * 9),
    "a folder": folder_instead,
}


@pytest.fixture(scope="module")
def straight(forking, tiny, tmp_path_factory):
    """What each is before anything is damaged: the folder and what was said."""
    made = {}

    def make(kind):
        if kind not in made:
            place = tmp_path_factory.mktemp("kept")
            (place / "a.txt").write_text(STORY)
            (place / "tiny").symlink_to(tiny)
            [ended] = forking.run(KEPT[kind][0], cwd=str(place), environment={"NUMPRUNE_CACHE": str(place / "cache")})
            assert ended.code == 0, ended.err
            made[kind] = place, ended.out
        return made[kind]

    return make


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KEPT)
def test_a_damaged_file_of_ours_is_refused_or_made_again(forking, straight, tmp_path, kind, damage):
    first, file, reader, codes = KEPT[kind]
    before, said = straight(kind)
    place = tmp_path / "place"
    subprocess.run(["cp", "-a", str(before), str(place)], check=True)
    DAMAGES[damage](file(place))
    [ended] = forking.run(reader or first, cwd=str(place), environment={"NUMPRUNE_CACHE": str(place / "cache")})
    assert ended.code in codes, ended.err
    if ended.code != 0:
        assert file(place).name in sentence(ended, ended.code) or kind == "recipe"
    elif kind == "samples":
        # Drawn again, they are the same.
        assert json.loads(ended.out) | {"seconds": 0} == json.loads(said) | {"seconds": 0}
    elif kind == "sweep":
        assert file(place).read_text().count("\n") == 3
    assert not (place / "again").exists()


# A hub that is not as it should be.


ANSWERS = ["hangs", "401", "403", "404", "429", "500", "503", "half"]


class Hub(BaseHTTPRequestHandler):
    """Answers as the last part of the owner's name says."""

    over = threading.Event()
    files = {"config.json": b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}' + b" " * 100}

    def do_GET(self):
        how = next((each for each in ANSWERS if f"/{each}/" in self.path), "404")
        if how == "hangs":
            self.over.wait(100)
            return
        if how.isdigit():
            self.answer(int(how), b'{"error": "no"}', {"Retry-After": "1"})
        elif self.path.startswith("/api"):
            files = [{"type": "file", "path": name, "size": len(body), "oid": "1"} for name, body in self.files.items()]
            repository = {"id": f"{how}/model", "sha": "0" * 40, "siblings": []}
            self.answer(200, json.dumps(files if "/tree/" in self.path else repository).encode())
        else:
            body = self.files["config.json"]
            about = {"ETag": '"' + "1" * 40 + '"', "X-Repo-Commit": "0" * 40}
            self.answer(200, body, about, sent=len(body) // 2)

    do_HEAD = do_GET

    def answer(self, code, body, headers=None, sent=None):
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:sent])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub(cache_of_the_run, tmp_path_factory):
    """The program that forks, with a hub of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    given = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path_factory.mktemp("hub")),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "NO_PROXY": "127.0.0.1",
    }
    with program(**given) as running:
        yield running
    Hub.over.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("how", ANSWERS)
def test_a_hub_that_fails_is_one_sentence_in_bounded_time(hub, place, how):
    began = time.monotonic()
    [ended] = hub.run(["eval", f"{how}/model", "--data", "a.txt"], cwd=str(place))
    assert f"{how}/model" in sentence(ended, CANNOT_LOAD)
    assert time.monotonic() - began < 60
    only(place)
