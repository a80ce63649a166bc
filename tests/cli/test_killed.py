"""Commands that are killed at random moments: what lies at the output is whole or not there."""

import json
import random
import signal

import pytest

import numprune

pytestmark = pytest.mark.alone  # the moments are shares of the time a run takes

STORY = "the cat and the dog sat on a mat and then the hen ran to the barn. " * 40
CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
MOMENTS = {signal.SIGKILL: 10, signal.SIGTERM: 3, signal.SIGINT: 3}
TEXT = ["--calibration", "a.txt", "--samples", "8", "--sequence-length", "32", "--device", "cpu"]
COMMANDS = {
    "prune": ["prune", "tiny", *TEXT, "--out", "{out}"],
    "export": ["export", "tiny", "--format", "transformers", "--out", "{out}"],
    "sweep": [
        *["sweep", "tiny", "--calibration", "a.txt", "--samples", "4", "--sequence-length", "16", "--data", "a.txt"],
        *["--methods", "paper,magnitude", "--ratios", "0.2,0.4", "--seeds", "0", "--repetitions", "0"],
        *["--device", "cpu", "--out", "{out}"],
    ],
    "score": ["score", "tiny", *TEXT, "--method", "fisher,newton", "--out", "{out}"],
    "eval": ["eval", "tiny", "--data", "a.txt", "--sequence-length", "16", "--device", "cpu", "--json"],
    "page": ["page", "tiny", "{out}"],
}
OUTPUTS = {"sweep": "{out}.csv", "score": "{out}.safetensors", "page": "exports/{out}"}


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    place = tmp_path_factory.mktemp("killed")
    (place / "a.txt").write_text(STORY)
    (place / "tiny").symlink_to(tiny)
    return place


def command(name, out):
    given = out if name == "page" else OUTPUTS.get(name, "{out}").format(out=out)
    return [part.format(out=given) for part in COMMANDS[name]]


def whole(place, name, out, ended):
    """Whether an output is there; it must then be complete. That of `eval` is what it says."""
    target = place / OUTPUTS.get(name, "{out}").format(out=out)
    if name == "eval":
        return bool(ended.out) and json.loads(ended.out)["perplexity"] > 0
    if not target.exists():
        return False
    if name == "sweep":
        header, *rows = target.read_text().splitlines()
        assert all(row.count(",") == header.count(",") for row in rows)
    elif name == "score":
        assert list(numprune.read_score_file(target).tables) == ["fisher", "newton"]
    else:
        assert json.loads((target / "config.json").read_text())
        assert numprune.load(target, device="cpu").parameters
    return True


def left(place, out):
    """What is half-written, here or in the page's folder for exports."""
    return [path.name for path in place.rglob(f".{out}*")]


@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_is_whole_or_not_there(forking, place, name):
    chance = random.Random(0)
    [straight] = forking.run(command(name, f"{name}-straight"), cwd=str(place))
    assert straight.code == 0, straight.err
    assert whole(place, name, f"{name}-straight", straight)
    hit, seconds = 0, straight.seconds
    for number, how in enumerate(how for how, moments in MOMENTS.items() for _ in range(moments)):
        out = f"{name}-{number}"
        [ended] = forking.run(command(name, out), cwd=str(place), kill=how, after=seconds * chance.uniform(0.1, 1.0))
        if ended.code == 0:
            # The first run may have been slower than the others, so that every moment would lie behind their ends.
            [again] = forking.run(command(name, f"{name}-again-{number}"), cwd=str(place))
            seconds = min(seconds, again.seconds)
        # Before the command itself begins, and behind its end, Python ends as it does.
        assert ended.code in (0, CODES[how], -how), ended.err
        assert whole(place, name, out, ended) or ended.code != 0
        hit += ended.code != 0
        if ended.code == CODES[how] and how != signal.SIGKILL:
            assert ended.err.strip().endswith("Stopped; nothing half-written was left.")
        if ended.code != -how:
            assert left(place, out) == []
        elif left(place, out):
            # Nobody could clear that away, as with SIGTERM while the page saves; it is never taken for a result, and
            # the next run makes room.
            [again] = forking.run(command(name, out), cwd=str(place))
            assert again.code == 0, again.err
            assert whole(place, name, out, again)
            assert left(place, out) == []
    assert hit > 8, "hardly any was hit while it ran"


def test_two_runs_into_one_folder_leave_one_of_them_whole(forking, place):
    runs = [[*command("prune", "shared"), "--ratio", ratio] for ratio in ("0.2", "0.5")]
    for _ in range(3):
        ended = forking.run(*runs, cwd=str(place))
        assert [each.code for each in ended] == [0, 0], ended
        assert whole(place, "prune", "shared", None)
        recipe = numprune.Recipe.read(place / "shared/recipe.json")
        report = json.loads((place / "shared/report.json").read_text())
        assert report["ratio_reached"] == pytest.approx(recipe.ratio, abs=0.02)
        assert numprune.load(place / "shared", device="cpu").parameters == report["parameters_after"]
        assert left(place, "shared") == []
