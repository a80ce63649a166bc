"""Count what was tried and what held: faults, attempts, bad inputs, properties, and long runs.

    python benchmarks/reliability.py [--out benchmarks/reliability.md] [--load FILE.json]

Runs the tests of each kind through pytest, one process at a time, counts them, and does the long runs: prune-and-remove
cycles on the page's workbench and prune cycles in one process, with memory and open files at their start and end.
`--load` adds the figures that `benchmarks/load.py` printed. Exits with 1 where something did not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
KINDS: Mapping[str, Sequence[str]] = {
    "killed and stopped at random moments": ("tests/cli/test_killed.py",),
    "what a killed run left, runs into one place": ("tests/test_files.py",),
    "memory, full disks, places, languages, damaged files, a hub": ("tests/cli/test_faults.py",),
    "attempts through the raw HTTP API": ("tests/ui/test_attempts.py", "tests/ui/test_serving.py"),
    "hostile texts in a browser": ("tests/ui/test_browser_escaping.py",),
    "bad and odd inputs, command line": ("tests/cli/test_inputs.py",),
    "bad and odd inputs, page": ("tests/ui/test_inputs_on_page.py",),
    "images, endpoints, and numbers in boxes": (
        "tests/cli/test_cli_images.py",
        "tests/ui/test_api.py",
        "tests/ui/test_given_numbers.py",
    ),
    "properties (a hundred examples and more each)": (
        "tests/allocation/test_properties.py",
        "tests/ui/test_edit_properties.py",
    ),
}
"""What is tried, by the files that try it."""
KILLS = 16 * 6
"""Processes that the first kind kills: 16 moments of 6 commands."""
CYCLES, PAGE_CYCLES, WARM = 50, 200, 10
"""Cycles in one process and on the page's workbench, and those before the first count, in which caches fill."""
GROWTH = 64e6
"""Bytes that memory may be larger at the end: the allocator's own, which comes and goes."""


def counted(files: Sequence[str]) -> dict[str, Any]:
    """What pytest says of these files: tests tried, held and failed, and the skipped ones by reason."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        began = time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *files]
        subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        cases = list(ElementTree.parse(report).iter("testcase")) if report.is_file() else []
    failed = [
        f"{case.get('name')}" for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = Counter(str(each.get("message")) for case in cases for each in case.findall("skipped"))
    held = len(cases) - len(failed) - skipped.total()
    return {
        "tried": len(cases),
        "held": held,
        "failed": failed,
        "skipped": dict(skipped),
        "seconds": time.monotonic() - began,
    }


def cycles(step: Callable[[], Any], number: int) -> dict[str, Any]:
    """Memory in bytes and open files of this process before and after `number` calls of `step`."""
    process = psutil.Process()
    for _ in range(WARM):
        step()
    files, before, began = process.num_fds(), process.memory_info().rss, time.monotonic()
    for _ in range(number):
        step()
    after = process.memory_info().rss
    return {
        "cycles": number,
        "seconds": time.monotonic() - began,
        "before": before,
        "after": after,
        "files_before": files,
        "files_after": process.num_fds(),
        "held": after - before < GROWTH and process.num_fds() <= files,
    }


def on_the_page() -> dict[str, Any]:
    """Prune and remove on a workbench."""
    from numprune import load
    from numprune.plan.recipe import CalibrationRecipe
    from numprune.ui.session import LoadRequest
    from numprune.ui.workbench import Workbench

    bench = Workbench(load("tiny-stories", device="cpu"))
    request = LoadRequest("tiny-stories", "cpu", calibration=CalibrationRecipe("self", 4, 32))
    session = bench.fresh(bench.load(request, "tab", scorers=["newton"]))
    bench.enter("tab", session)
    return cycles(lambda: bench.remove("tab", bench.prune(session, "tab")), PAGE_CYCLES)


def in_one_process() -> dict[str, Any]:
    """Calibrate, score, allocate, prune and write a model."""
    import numprune

    model = numprune.load("tiny-stories", device="cpu")
    recipe = numprune.Recipe(ratio=0.3)
    with tempfile.TemporaryDirectory() as folder:

        def prune() -> None:
            stats = numprune.calibrate(model, "self", samples=4, sequence_length=32)
            plan = numprune.allocate(numprune.score(model, stats), recipe)
            numprune.prune(model, plan, stats).save(Path(folder) / "pruned")

        return cycles(prune, CYCLES)


RUNS = {"prune and remove on the page's workbench": on_the_page, "calibrate to save in one process": in_one_process}


def apart(run: str) -> dict[str, Any]:
    """A long run in a process of its own, where nothing else has filled the memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--run", run], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(counts: Mapping[str, Mapping[str, Any]], runs: Mapping[str, Mapping[str, Any]], load: Any) -> str:
    """All of it as Markdown."""
    lines = [
        "# What was tried and what held",
        "",
        "By `python benchmarks/reliability.py`, with one thread. A row counts tests; those that kill end"
        f" {KILLS} processes in all, and properties are tried on many examples each.",
        "",
        "| kind | tried | held | failed | skipped | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for kind, each in counts.items():
        skipped = sum(each["skipped"].values())
        lines.append(
            f"| {kind} | {each['tried']} | {each['held']} | {len(each['failed'])} | {skipped} | {each['seconds']:.0f} |"
        )
    tried, held, skipped = (
        sum(each["tried"] for each in counts.values()),
        sum(each["held"] for each in counts.values()),
        sum(sum(each["skipped"].values()) for each in counts.values()),
    )
    lines += [f"| all | {tried} | {held} | {tried - held - skipped} | {skipped} | |", ""]
    for kind, each in counts.items():
        lines += [f"- Skipped ({kind}): {count} x {reason}." for reason, count in each["skipped"].items()]
        lines += [f"- Failed ({kind}): {name}." for name in each["failed"]]
    lines += [
        "",
        f"Long runs, counted behind {WARM} cycles in which caches fill:",
        "",
        "| run | cycles | seconds | memory, MB | open files | held |",
        "|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        memory = f"{run['before'] / 1e6:.0f} to {run['after'] / 1e6:.0f}"
        files = f"{run['files_before']} to {run['files_after']}"
        held = "yes" if run["held"] else "no"
        lines.append(f"| {name} | {run['cycles']} | {run['seconds']:.0f} | {memory} | {files} | {held} |")
    if load is not None:
        lines += [
            "",
            f"Load, by `python benchmarks/load.py --tabs {load['tabs']} --browsers {load['browsers']} --seconds"
            f" {load['seconds']:.0f}`:"
            f" {load['requests']} requests, {len(load['failures'])} failures, {len(load['seen_of_others'])} times"
            f" something of another tab was seen, {load['foreign_models_refused']} models of other tabs asked for and"
            f" refused; a ratio change took {load['ratio_p50']} s (median) and {load['ratio_p95']} s (95th of 100) of"
            f" {load['ratio_changes']}; the longest place in the queue was {load['longest_place_in_queue']}; memory"
            f" {load['memory_before'] / 1e6:.0f} MB a minute after one tab of each kind,"
            f" {load['memory_peak'] / 1e6:.0f} MB at most,"
            f" {load['memory_after'] / 1e6:.0f} MB a minute after the last tab"
            f" ({'held' if load['held'] else 'not held: it may grow by a tenth and 200 MB'}).",
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/reliability.md", help="where the table goes")
    parser.add_argument("--load", type=Path, metavar="FILE.json", help="what benchmarks/load.py printed")
    parser.add_argument("--run", choices=RUNS, help="one long run alone, as JSON")
    args = parser.parse_args()
    if args.run:
        print(json.dumps(RUNS[args.run]()))
        return 0
    load = json.loads(args.load.read_text()) if args.load else None
    counts = {kind: counted(files) for kind, files in KINDS.items()}
    runs = {name: apart(name) for name in RUNS}
    args.out.write_text(table(counts, runs, load))
    broken = any(each["failed"] or not each["tried"] for each in counts.values())
    return int(broken or not all(run["held"] for run in runs.values()) or (load is not None and not load["held"]))


if __name__ == "__main__":
    sys.exit(main())
