"""The parser of all commands, and what becomes of errors."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout

import numprune
from numprune.cli import bench, evaluate, export, generate, prune, reproduce, score, serve, sweep
from numprune.cli.console import Console
from numprune.errors import InputError, LoadError, NumpruneError, memory_ran_out

COMMANDS = (score, prune, evaluate, sweep, reproduce, generate, export, bench, serve)

OK, BAD_INPUT, CANNOT_LOAD, FAILED, STOPPED, TERMINATED = 0, 2, 3, 4, 130, 143

EPILOG = f"""\
exit codes:
  {OK:<4} done
  {BAD_INPUT:<4} wrong usage, or an input (file, text, recipe, number) that cannot be used
  {CANNOT_LOAD:<4} the model cannot be loaded
  {FAILED:<4} the computation or the writing failed
  {STOPPED:<4} stopped by Ctrl-C
  {TERMINATED:<4} stopped by SIGTERM

example:
  numprune prune tiny-stories --ratio 0.3 --out smaller
  numprune eval tiny-stories smaller
"""


@contextmanager
def _stoppable(asked: list[int]) -> Iterator[None]:
    """Let SIGTERM be to Python what Ctrl-C is: everything half written is cleared away on the way out.

    Signals are noted in `asked` too: compiled code that is interrupted may make another error of it.
    """

    def stop(number: int, _: object) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    # Only the main thread may ask for signals. Ctrl-C stays ignored where whoever started this wants it so.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signals = [signal.SIGTERM, *([signal.SIGINT] if interrupts else [])]
    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed its message or the help
        return int(stop.code or OK)
    console = Console(json=getattr(args, "json", False), quiet=args.quiet)
    asked: list[int] = []
    try:
        # Whatever libraries print, JSON stays alone on stdout.
        with (
            _stoppable(asked),
            warnings.catch_warnings(),
            redirect_stdout(sys.stderr) if console.json else nullcontext(),
        ):
            if not args.debug:
                warnings.simplefilter("ignore")
            with _among_others(args, console):
                args.run(args, console)
        return OK
    except KeyboardInterrupt:
        return _stopped(console, asked)
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        if asked:
            return _stopped(console, asked)
        code, sentence = _explain(error)
        console.error(f"numprune: {sentence}")
        return code


@contextmanager
def _among_others(args: argparse.Namespace, console: Console) -> Iterator[None]:
    """Join the other processes that torchrun has started, if it has, of which the first one writes and tells. What
    fails is told by the process in which it did so first: the others fail for want of it."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    from numprune.ranks import join_ranks, started_by_others

    if started_by_others():
        console.processes = int(os.environ["WORLD_SIZE"])
        console.writes = os.environ["RANK"] == "0"
        if not args.shared:
            console.alone("This command works")
    with join_ranks() as ranks:
        try:
            yield
        except BaseException:
            console.writes = ranks.first_to_fail()
            raise


def _stopped(console: Console, asked: Sequence[int]) -> int:
    console.error("Stopped; nothing half-written was left.")
    return TERMINATED if signal.SIGTERM in asked else STOPPED


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="numprune",
        description=(numprune.__doc__ or "").splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"numprune {numprune.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and one sentence."""
    if isinstance(error, InputError):
        return BAD_INPUT, str(error)
    if isinstance(error, LoadError):
        return CANNOT_LOAD, str(error)
    if isinstance(error, NumpruneError):
        return FAILED, str(error)
    first = (str(error).strip() or "no message").splitlines()[0]
    if memory_ran_out(error):
        return FAILED, f"Out of memory ({first}); use fewer samples, a shorter sequence length or another device."
    return FAILED, f"{type(error).__name__}: {first}; this should not happen, repeat with --debug for the traceback."
