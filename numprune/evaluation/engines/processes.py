"""Engines in processes of their own: what is asked of one, and what becomes of one that fails."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

import psutil

from numprune.errors import CancelEvent, check_cancelled

WORKER = Path(__file__).with_name("worker.py")
"""The program that runs one model in one engine; says itself how to talk to it."""

VLLM = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
"""What vLLM is told by its environment: to run in the process that asks, to log errors only and to ask nobody."""

PATIENCE = 0.2
"""Seconds between two looks at whether to stop."""


class Refused(Exception):
    """An engine does not do what was asked; the message says why, without a full stop."""


def vllm_environment(**settings: str) -> dict[str, str]:
    """The variables of a process in an environment with vLLM, which must not find the packages of this one."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | VLLM | settings


def own_environment(**settings: str) -> dict[str, str]:
    """The variables of a process in this environment, which finds this very numprune."""
    package = Path(__file__).parents[3]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    # The folder of the program is no place to import from.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", **settings}


class Worker:
    """A process that holds one model in one engine, from the first question to the end of the `with` block.

    Attributes:
        facts: what it answered when it had opened the model, see `worker`.
    """

    def __init__(
        self,
        asked: dict[str, Any],
        environment: dict[str, str],
        *,
        python: str = sys.executable,
        cancel: CancelEvent | None = None,
    ) -> None:
        """Start it and wait until the model is open.

        Raises:
            Refused: the engine does not open the model.
            Cancelled: `cancel` was set.
        """
        self._cancel = cancel
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._process = subprocess.Popen(
            [python, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
            encoding="utf8",
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self.facts = self.ask(asked)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and those it started; what they held is free afterwards."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            pipe.close()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to one question.

        Raises:
            Refused: it was refused, or the process ended.
            Cancelled: `cancel` was set.
        """
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended, of which more below
            pass
        while True:
            check_cancelled(self._cancel)
            try:
                line = self._lines.get(timeout=PATIENCE)
                break
            except queue.Empty:
                continue
        if not line:
            raise Refused(self._end())
        answer = json.loads(line)
        if "refused" in answer:
            raise Refused(answer["refused"])
        return answer

    def _listen(self) -> None:
        """Pass on every line, and an empty one when the process has ended."""
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _end(self) -> str:
        """Why the process ended."""
        code = self._process.wait()
        if code < 0:
            return f"its process was killed by signal {-code}, as happens where memory runs out"
        self._errors.seek(0)
        said = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return shorten(said[-1], 240, placeholder=" ...") if said else f"its process ended with code {code}"
