"""Real runs of the trainer for the other benchmarks: each a process of its own, several side by side.

A run is watched through its events.jsonl alone, as the page watches it. Where steps are to be timed, runs take turns:
they make themselves ready side by side, but only one at a time takes its steps, the others being suspended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trainers.events import read_events  # noqa: E402
from trainers.options import CHECKS, fields_for  # noqa: E402

LOOK_EVERY = 0.02
PREPARING, WAITING, STEPPING, ENDING, ENDED = range(5)


@dataclass
class Run:
    """One process to be watched.

    Attributes:
        name: what it is called in the results.
        words: the command.
        folder: where its events.jsonl appears.
        facts: what the caller wants to find again with the result.
        same_job: its folder, where there is one already, is that of the same job.
        enough: asked after new events whether it may be ended.
    """

    name: str
    words: list[str]
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    state: int = PREPARING
    started: float = 0.0
    ended: float = 0.0
    status: int | None = None
    peak_rss: int = 0
    same_job: bool = False
    enough: Callable[[Run], bool] | None = None
    _process: subprocess.Popen | None = field(default=None, repr=False)
    _read: int = 0

    def kinds(self, kind: str) -> list[dict[str, Any]]:
        """Its events of one kind, in order."""
        return [event for event in self.events if event["event"] == kind]

    def last(self, kind: str) -> dict[str, Any]:
        """Its last event of one kind; {} where there is none."""
        return (self.kinds(kind) or [{}])[-1]

    @property
    def problem(self) -> str:
        """Why there is no result; empty when it ended well."""
        if self.status == 0:
            return ""
        if self.status is None:
            return "was not finished in time"
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return self.last("failed").get("why") or (lines[-1] if lines else f"exit status {self.status}")

    @property
    def log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")

    # --- the process

    def recall(self) -> bool:
        """Takes the events of an earlier time, where the same job ended well in a folder that was kept."""
        new, read = read_events(self.folder / "events.jsonl", 0) if self.same_job and self.folder.exists() else ([], 0)
        self.events, self._read = new, read
        if not self.kinds("done") and not (self.enough and self.enough(self)):
            self.events, self._read = [], 0
            return False
        self.status, self.state = 0, ENDED
        return True

    def begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # of an earlier time, where the folder for all is kept
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.time()
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(self.words, cwd=ROOT, env=environment(), stdout=log, stderr=log)

    def look(self) -> None:
        """Reads what is new and notices the end."""
        status = self._process.poll()
        new, self._read = read_events(self.folder / "events.jsonl", self._read)
        self.events += new
        kinds = {event["event"] for event in new}
        if "start" in kinds and self.state == PREPARING:
            self.state = WAITING
        if any(event["event"] == "saved" and event["kind"] == "result" for event in new) or "done" in kinds:
            self.state = max(self.state, ENDING)
        if status is not None:
            self.status, self.state, self.ended = status, ENDED, time.time()
        elif new and self.enough and self.enough(self):
            self.kill()
            self.status, self.state, self.ended = 0, ENDED, time.time()
        else:
            self.peak_rss = max(self.peak_rss, _resident(self._process.pid))

    def suspend(self, yes: bool) -> None:
        import psutil

        try:
            process = psutil.Process(self._process.pid)
            process.suspend() if yes else process.resume()
        except psutil.Error:
            pass  # it has just ended

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit status; None (and its end) when it took longer."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _resident(pid: int) -> int:
    import psutil

    try:
        info = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return getattr(info, "peak_wset", info.rss)


def environment() -> dict[str, str]:
    """A child's environment: our packages first, nothing is fetched, one thread where several run side by side."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(paths)}


def trainer_run(name: str, method: str, options: Mapping[str, Any], folder: Path, /, **facts: Any) -> Run:
    """A run of `python -m trainers run`, with its job file beside its folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    job = folder.with_name(folder.name + ".job.yaml")
    options = {**options, "override_checks": list(CHECKS)}  # what is measured is no advice
    known = {option.name for option in fields_for(method)}
    options |= {name: False for name in ("verdict", "find_best") if name in known and name not in options}
    values = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    text = json.dumps({"method": method, **values})  # JSON is YAML too
    same = job.exists() and job.read_text(encoding="utf-8") == text
    job.write_text(text, encoding="utf-8")
    words = [sys.executable, "-m", "trainers", "run", str(job), "--run", str(folder)]
    return Run(name, words, folder, facts, same_job=same)


def run_all(
    runs: Sequence[Run], at_once: int = 1, take_turns: bool = False, seconds: float | None = None
) -> Iterator[Run]:
    """Starts the runs in order, `at_once` side by side, and gives each one back when it has ended.

    After `seconds` nothing new is started and what still runs is killed; those runs come back with status None.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended too
    waiting, going = list(runs), []
    until = time.time() + seconds if seconds else float("inf")
    try:
        while (waiting or going) and time.time() < until:
            while waiting and len(going) < at_once:
                going.append(waiting.pop(0))
                going[-1].begin()
            for run in going:
                run.look()
            if take_turns:
                _give_turns(going)
            for run in [run for run in going if run.state == ENDED]:
                going.remove(run)
                yield run
            time.sleep(LOOK_EVERY)
    finally:
        for run in going:
            run.kill()
    yield from [*going, *waiting]


def _give_turns(going: list[Run]) -> None:
    """At most one run is between its start and its result; others that are ready wait."""
    stepping = any(run.state == STEPPING for run in going)
    for run in going:
        if run.state == WAITING and not stepping:
            run.state, stepping = STEPPING, True
            run.suspend(False)
        elif run.state == WAITING:
            run.suspend(True)


def write_json(path: Path | None, content: Any) -> None:
    """The results so far, whole or not at all: what stops a benchmark later does not lose them."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, path)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table."""
    if not rows:
        return "(no results)"
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *[[_text(row.get(name)) for name in names] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "–" if value is None else str(value)


def device_name(device: str = "auto") -> str:
    """The device that runs were made on, in words; asked in a process of its own, so that this one holds no memory."""
    code = (
        "import sys, torch; from trainers.engine.precision import device_for; d = device_for(sys.argv[1]); "
        "print(torch.cuda.get_device_name(d) if d.type == 'cuda' else f'{d.type}, {torch.get_num_threads()} threads')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, device], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"
