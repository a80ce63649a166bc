"""Drive a running dashboard as many browser tabs at once, and say what held.

    python benchmarks/load.py [--tabs 20] [--browsers 2] [--seconds 600] [--port 7871]

Starts `python app.py` and opens tabs as a browser does, over the page's own queue: each visits, then tunes its ratio,
prunes, and compares texts, until the time is over, and closes. So many of them are tabs of a real browser (Chromium, by
playwright), which move their ratio and press the buttons. Prints JSON: requests, failures, the time of a ratio
change in seconds (median and the 95th of 100), the longest place in the queue, what a tab saw that was another's, and
the server's memory in bytes a minute after one tab of each kind, at most, and a minute after the last tab. Exits with 1
where something failed, was another's, or memory grew by more than a tenth and 200 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
CALIBRATION = {"samples": 8, "sequence_length": 64}
GROWTH, SHARE = 200e6, 1.1
"""By how much memory may have grown, in bytes, and in times of what it was: what libraries keep for the next time."""
SETTLED = 60
"""Seconds after the last tab's end."""


@dataclass
class Told:
    """What all tabs together saw."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    ratio_seconds: list[float] = field(default_factory=list)
    deepest: int = 0
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Tab:
    """One browser tab: its own session, kept alive by its heartbeat."""

    def __init__(self, address: str, config: dict[str, Any], number: int, told: Told) -> None:
        self.address, self.number, self.told = address, number, told
        self.session = uuid.uuid4().hex[:12]
        self.edits = 0
        calls = config["dependencies"]
        channel = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "np-channel")
        self.ids = {call["api_name"]: call["id"] for call in calls if call.get("api_name")}
        self.ids["visit"] = next(c["id"] for c in calls if [0, "load"] in map(list, c["targets"]) and c["inputs"])
        self.ids["edit"] = next(c["id"] for c in calls if [channel, "edit"] in map(list, c["targets"]))
        self.heart = urllib.request.urlopen(f"{address}/gradio_api/heartbeat/{self.session}", timeout=900)

    def close(self) -> None:
        """As a browser does: the heartbeat ends."""
        self.heart.close()

    def ask(self, name: str, *data: Any) -> Any:
        """What a handler answers through the queue.

        Raises:
            RuntimeError: it answered with an error.
        """
        given = {"data": list(data), "fn_index": self.ids[name], "session_hash": self.session, "event_data": None}
        request = urllib.request.Request(
            f"{self.address}/gradio_api/queue/join",
            json.dumps(given).encode(),
            {"Content-Type": "application/json"},
        )
        with self.told.lock:
            self.told.requests += 1
        event = json.load(urllib.request.urlopen(request, timeout=60))["event_id"]
        place = f"{self.address}/gradio_api/queue/data?session_hash={self.session}"
        with urllib.request.urlopen(place, timeout=900) as stream:
            for line in stream:
                if not line.startswith(b"data:"):
                    continue
                message = json.loads(line[5:])
                if message.get("event_id") not in (event, None):
                    continue
                if message["msg"] == "estimation":
                    with self.told.lock:
                        self.told.deepest = max(self.told.deepest, message.get("rank") or 0)
                if message["msg"] == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(f"{name}: {message['output'].get('error')}")
                    return message["output"]["data"]
                if message["msg"] == "unexpected_error":
                    raise RuntimeError(f"{name}: {message.get('message')}")
        raise RuntimeError(f"{name}: the answer broke off")

    def ratio(self, ratio: float) -> None:
        """Move the slider; the plan that comes back must be this tab's."""
        self.edits += 1
        began = time.monotonic()
        answer = self.ask("edit", json.dumps([{"n": self.edits, "kind": "ratio", "ratio": ratio}]))
        with self.told.lock:
            self.told.ratio_seconds.append(time.monotonic() - began)
        text = json.dumps(answer)
        if f'"tab": "{self.session}"' not in text or (f"{ratio:.4f}" not in text and str(ratio) not in text):
            self.other(f"the plan of a ratio of {ratio}")

    def other(self, what: str) -> None:
        with self.told.lock:
            self.told.others.append(f"tab {self.number}: {what}")

    def live(self, until: float) -> None:
        """Visit, then tune, prune and compare until the time is over, once at least."""
        chance = random.Random(self.number)
        try:
            self.ask("visit", None)
            facts = self.ask("load", "tiny-stories", "self", *CALIBRATION.values(), 0, "newton")[0]
            turn = 0
            while not turn or time.monotonic() < until:
                turn += 1
                # Ratios that no other tab has.
                ratio = round(0.05 + 0.4 * chance.random(), 2) + self.number / 10_000
                for _ in range(5):
                    self.ratio(ratio)
                    ratio = round(ratio + 0.01, 4)
                    time.sleep(chance.uniform(0.1, 0.5))
                name = f"tab {self.number} turn {turn}"
                done = self.ask("prune", facts["recipe"] | {"ratio": ratio}, name)[0]
                if done["name"] != name:
                    self.other(f"a model called {done['name']} where {name} was made")
                if turn % 4 == 1:
                    both = self.ask("compare", facts["recipe"], name, "Once upon a time", 8, self.number)[0]
                    if both["pruned"]["parameters"] != done["report"]["parameters_after"]:
                        self.other(f"{both['pruned']['parameters']} parameters of {name}")
                foreign = f"tab {self.number + 1} turn 1"
                try:
                    self.ask("export", facts["recipe"], foreign, "transformers", {})
                    self.other(f"the model {foreign}")
                except RuntimeError:
                    with self.told.lock:
                        self.told.refused += 1
        except Exception as error:
            with self.told.lock:
                self.told.failures.append(f"tab {self.number}: {error}")
        finally:
            self.close()


LISTEN = "document.addEventListener('np-plan', (event) => { window.plan = event.detail; });"
MOVE = "ratio => document.dispatchEvent(new CustomEvent('np-edit', { detail: { kind: 'ratio', ratio } }))"
PATIENCE = 900_000
"""Milliseconds until a browser's tab counts as failed: behind all the others its place in the queue takes a while."""


def browse(address: str, number: int, told: Told, until: float) -> None:
    """A tab of a real browser: move the ratio, prune, and see that plan and result are this tab's; once at least."""
    from playwright.sync_api import sync_playwright

    chance, seen = random.Random(number), None
    try:
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            page.set_default_timeout(PATIENCE)
            page.add_init_script(LISTEN)
            page.goto(address)
            page.wait_for_function("window.plan")
            page.get_by_text("More", exact=True).click()
            turn = 0
            while not turn or time.monotonic() < until:
                turn += 1
                for _ in range(5):
                    ratio = round(0.05 + 0.4 * chance.random(), 2) + number / 10_000
                    began = time.monotonic()
                    page.evaluate(MOVE, ratio)
                    page.wait_for_function("ratio => window.plan.ratio === ratio", arg=ratio)
                    with told.lock:
                        told.requests += 1
                        told.ratio_seconds.append(time.monotonic() - began)
                    tab = page.evaluate("window.plan.tab")
                    if seen not in (None, tab):
                        with told.lock:
                            told.others.append(f"browser {number}: the plan of tab {tab}")
                    seen = tab
                    time.sleep(chance.uniform(0.1, 0.5))
                name = f"browser {number} turn {turn}"
                page.get_by_label("Name of the result").fill(name)
                page.click("#np-prune")
                page.locator("#np-result article").nth(1).get_by_text(name).first.wait_for()
                page.wait_for_selector("#np-stop[disabled], #np-stop:disabled")
                with told.lock:
                    told.requests += 1
            browser.close()
    except Exception as error:
        with told.lock:
            told.failures.append(f"browser {number}: {error}")


def memory(server: subprocess.Popen[bytes]) -> int:
    """Resident bytes of the server."""
    return psutil.Process(server.pid).memory_info().rss


def drive(tabs: int, browsers: int, seconds: float, port: int) -> dict[str, Any]:
    """Start a server, open `tabs` tabs for `seconds`, `browsers` of them in a real browser, and say what was seen;
    `held` is whether all of it may be."""
    told, address, peak = Told(), f"http://127.0.0.1:{port}", 0
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMPRUNE_CACHE": folder, "HF_HUB_OFFLINE": "1"}
        server = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            config = _config(address)
            # One turn of each kind first: what is loaded once, for all, is not what tabs leave behind.
            Tab(address, config, 0, told).live(time.monotonic())
            if browsers:
                browse(address, 0, told, time.monotonic())
            time.sleep(SETTLED)
            before, told.requests = memory(server), 0
            told.ratio_seconds.clear()
            until = time.monotonic() + seconds
            running = [
                threading.Thread(target=Tab(address, config, number, told).live, args=(until,))
                for number in range(1, tabs - browsers + 1)
            ]
            running += [
                threading.Thread(target=browse, args=(address, number, told, until))
                for number in range(tabs - browsers + 1, tabs + 1)
            ]
            for thread in running:
                thread.start()
            while any(thread.is_alive() for thread in running):
                peak = max(peak, memory(server))
                time.sleep(0.5)
            time.sleep(SETTLED)
            after = memory(server)
        finally:
            server.terminate()
            server.wait(60)
    times = sorted(told.ratio_seconds)
    return {
        "tabs": tabs,
        "browsers": browsers,
        "seconds": seconds,
        "requests": told.requests,
        "failures": told.failures,
        "seen_of_others": told.others,
        "foreign_models_refused": told.refused,
        "ratio_changes": len(times),
        "ratio_p50": round(statistics.median(times), 3) if times else None,
        "ratio_p95": round(times[int(0.95 * (len(times) - 1))], 3) if times else None,
        "longest_place_in_queue": told.deepest,
        "memory_before": before,
        "memory_peak": peak,
        "memory_after": after,
        "held": not told.failures and not told.others and after < before * SHARE + GROWTH,
    }


def _config(address: str) -> dict[str, Any]:
    for _ in range(240):
        try:
            return json.load(urllib.request.urlopen(f"{address}/config", timeout=5))
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"The server at {address} did not start within two minutes; look why by python app.py.")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tabs", type=int, default=20, help="at once (20)")
    parser.add_argument("--browsers", type=int, default=2, help="of them tabs of a real browser (2)")
    parser.add_argument("--seconds", type=float, default=600, help="each works (600)")
    parser.add_argument("--port", type=int, default=7871, help="of the server that is started (7871)")
    args = parser.parse_args()
    seen = drive(args.tabs, args.browsers, args.seconds, args.port)
    print(json.dumps(seen, indent=2))
    return 0 if seen["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
