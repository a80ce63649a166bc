"""Commands as processes of their own: each is forked from a program that has imported what they need already.

A process that starts from nothing takes seconds before it does anything, and a fault is worth trying often.
"""

import contextlib
import functools
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
STAGES = {
    "calibration": ("numprune.calibration.run", "_run"),
    "scoring": ("numprune.scoring.run", "module_scores"),
    "fitting": ("numprune.pruning", "_fitted"),
    "generation": ("numprune.generation.text", "sample_tokens"),
    "writing": ("numprune.models.model", "write_module"),
}
"""Where each begins to compute, or to write."""


@dataclass
class Ended:
    """How a process ended; `code` is minus the signal where one ended it."""

    code: int
    out: str
    err: str
    seconds: float


class Program:
    """The program that forks."""

    def __init__(self, **environment):
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._hear() == "ready"

    def run(self, *commands, kill=None, after=0.0, **order):
        """Run these commands at the same time; returns how each ended.

        Args:
            kill: a signal to send each, `after` seconds.
            order: what else `_child` knows: cwd, environment, fault, dies (a method, how often and, of several
                processes, in which), rights, and together: a free port by which the commands join.
        """
        with tempfile.TemporaryDirectory() as folder:
            self._say({"commands": [list(map(str, each)) for each in commands], "told": folder, **order})
            began = time.monotonic()
            pids = self._hear()
            if kill is not None:
                time.sleep(after)
                for pid in pids:
                    os.kill(pid, kill)
            self._say({})
            codes = self._hear()
            took = time.monotonic() - began
            told = [
                [Path(folder, f"{number}.{stream}").read_text() for stream in ("out", "err")]
                for number in range(len(codes))
            ]
        return [Ended(code, *texts, took) for code, texts in zip(codes, told, strict=True)]

    def _say(self, order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def _hear(self):
        return json.loads(self.process.stdout.readline())


@contextlib.contextmanager
def program(**environment):
    """A program that forks, in the environment of the tests but for what is given."""
    running = Program(**environment)
    try:
        yield running
    finally:
        running.process.stdin.close()
        running.process.wait(60)
        running.process.stdout.close()


# In the program itself.


def _serve():
    from numprune.cli import main

    # What commands wait for longest; the rest they import themselves.
    for name in (
        "transformers.models.llama.modeling_llama",
        "numprune.pruning",
        "numprune.evaluation",
        "numprune.ui.app",
        "numprune.layerwise",
    ):
        importlib.import_module(name)
    for name in ("load", "prune", "calibrate", "score", "perplexity", "export", "sweep", "generate"):
        getattr(importlib.import_module("numprune"), name)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        children = [os.fork() or _child(main, order, number) for number in range(len(order["commands"]))]
        print(json.dumps(children), flush=True)
        sys.stdin.readline()
        ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(ended), flush=True)


def _child(main, order, number):
    """Run one command and end, whatever happens."""
    code = 1
    try:
        folder = Path(order["told"])
        for name, stream in ((f"{number}.out", 1), (f"{number}.err", 2)):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
            os.dup2(file, stream)
        if order.get("rights") == "as others":
            _without_power()
        os.environ.update(order.get("environment", {}))
        if order.get("together"):
            ranks = {"RANK": number, "WORLD_SIZE": len(order["commands"]), "MASTER_PORT": order["together"]}
            os.environ.update({name: str(value) for name, value in ranks.items()}, MASTER_ADDR="127.0.0.1")
        for name in order.get("unset", ()):
            os.environ.pop(name, None)
        time.tzset()
        os.chdir(order["cwd"])
        if order.get("fault"):
            _faulty(*order["fault"])
        if order.get("dies"):
            _dying(number, *order["dies"])
        command = order["commands"][number]
        code = OWN[command[0]](*command[1:]) if command[0] in OWN else main(command)
        sys.stdout.flush()
        sys.stderr.flush()
    except KeyboardInterrupt:  # outside of the command's own handling, where Python would end like this
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _without_power():
    """Let a superuser, too, write only what the permissions say."""
    import ctypes

    override, search = 1 << 1, 1 << 2
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for effective_or_permitted in (0, 1):
        sets[effective_or_permitted] &= ~(override | search)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def _faulty(where, what):
    """Let the memory end where a stage begins to compute."""
    module, name = STAGES[where]
    module = importlib.import_module(module)
    before, hoard = getattr(module, name), []

    @functools.wraps(before)
    def after(*given, **named):
        import torch

        if what == "device":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used, used))
        # What was freed before is still to be had, and may be all that is needed; the little that is left is for the
        # sentence.
        for size in (1 << 24, 1 << 21, 1 << 18) if where in ("scoring", "fitting", "writing") else ():
            with contextlib.suppress(RuntimeError):
                while True:
                    hoard.append(torch.empty(size, dtype=torch.uint8))
        return before(*given, **named)

    setattr(module, name, after)


def _dying(number, method, count, which=None):
    """Let a run that goes layer by layer, or one of its processes, be killed when it has called a method of its state
    so many times."""
    from numprune.layerwise.state import State

    if which not in (None, number):
        return
    before, seen = getattr(State, method), []

    @functools.wraps(before)
    def after(*given, **named):
        done = before(*given, **named)
        seen.append(1)
        if len(seen) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(State, method, after)


def _save_on_the_page(model, name):
    """Prune on a workbench and export into the folder for exports, as the page does."""
    from numprune import load
    from numprune.export import export
    from numprune.plan.recipe import CalibrationRecipe
    from numprune.ui.serving import Policy
    from numprune.ui.session import LoadRequest
    from numprune.ui.workbench import Workbench

    policy = Policy(exports=Path("exports"))
    policy.exports.mkdir(exist_ok=True)
    bench = Workbench(load(model, device="cpu"), policy=policy)
    request = LoadRequest(model, "cpu", calibration=CalibrationRecipe("a.txt", 4, 16))
    session = bench.fresh(bench.load(request, "tab", scorers=["newton"]))
    pruned = bench.pruned("tab", bench.prune(session, "tab"))
    export(pruned, policy.export_target(name), format="transformers")
    return 0


def _prune_layerwise(recipe, model, out):
    """Prune layer by layer, whatever memory there is."""
    import numprune

    with numprune.join_ranks():
        opened = numprune.load(model, device="cpu", dtype="checkpoint")
        numprune.prune_layerwise(opened, numprune.Recipe.read(recipe), out)
    return 0


def _score_layerwise(model, names, out):
    """Score layer by layer, whatever memory there is, on 48 x 256 tokens of a.txt."""
    import numprune

    with numprune.join_ranks() as ranks:
        opened = numprune.load(model, device="cpu", dtype="checkpoint")
        source = numprune.CalibrationRecipe("a.txt", 48, 256)
        tables, used, _ = numprune.score_layerwise(opened, names.split(","), source, f"{out}.layers")
        if ranks.first:
            numprune.write_scores(out, list(tables.values()), used, numprune.outline_of(opened))
    return 0


OWN = {"page": _save_on_the_page, "prune_layerwise": _prune_layerwise, "score_layerwise": _score_layerwise}
"""What can be run beside the command line's own commands."""

if __name__ == "__main__":
    _serve()
