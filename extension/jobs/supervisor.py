"""Starts what waits, one job for each device, and sees to what was asked of what runs.

The trainers are no part of this process: when it ends they go on, and the next supervisor finds them by their run
folders. Several supervisors, in several hosts, may look after one runs folder: the trainer's own process decides
under the folder's lock whether it takes a job (see `extension.jobs.child`).
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from extension.jobs.child import NOT_MINE
from extension.jobs.environment import ROOT, Environment
from extension.jobs.files import locked, read_json, write_json
from extension.jobs.lease import Leases, job_of
from extension.jobs.less_memory import kills_by_the_system, ran_out, reduce
from extension.jobs.processes import kill_tree, new_group
from extension.jobs.reasons import log_tail
from extension.jobs.run_files import Attempt, Ticket, busy_devices, ended_record, living_process, run_folders, waiting
from extension.jobs.store import Store
from trainers.errors import InputError
from trainers.events import is_waiting, send_command

SECONDS_BETWEEN_LOOKS = 1.0
_log = logging.getLogger(__name__)


class _Started:
    """A process that this supervisor started."""

    def __init__(self, run: Path, device: str, environment: Environment, attempt: str) -> None:
        self.run, self.device, self.attempt = run, device, attempt
        self.submitted = read_json(run / "submitted.json")
        self.kills_before = kills_by_the_system()
        with open(run / "log.txt", "ab") as log:
            self.log_from = log.tell()
            self.process = subprocess.Popen(
                environment.child(run, self.attempt),
                cwd=ROOT,
                env=environment.process_variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                close_fds=True,
                **new_group(),  # type: ignore[call-overload]
            )

    @property
    def is_there(self) -> bool:
        """Whether the folder is still that of the run that it was started on; another may have got the name."""
        return self.run.is_dir() and read_json(self.run / "submitted.json") == self.submitted

    @property
    def has_claimed(self) -> bool:
        attempt = Attempt.read(self.run)
        return attempt is not None and attempt.key == self.attempt


class Supervisor:
    """Looks after one runs folder.

    Attributes:
        leases: what trainings have of the host's model; None where no host is concerned.
        after_look: called after each look in the thread; what a host does with runs that are done.
    """

    def __init__(self, store: Store, environment: Environment) -> None:
        self.store, self.environment = store, environment
        self.leases: Leases | None = None
        self._started: list[_Started] = []
        self._looking = threading.Lock()
        self._wake, self._end = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self.after_look: Callable[[], None] = lambda: None

    # --- the thread

    def start(self) -> None:
        """Looks after the folder from now on, in a thread of its own."""
        if self._thread is None or not self._thread.is_alive():
            self._end.clear()
            self._thread = threading.Thread(target=self._keep_looking, name="athanor-jobs", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends the thread; trainers go on."""
        self._end.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    def _keep_looking(self) -> None:
        while not self._end.is_set():
            try:
                self.look()
                self.after_look()
            except Exception:  # the thread must outlive a full disk or a folder that is away for a while
                _log.exception("Athanor could not look after its queue")
            self._wake.wait(SECONDS_BETWEEN_LOOKS)
            self._wake.clear()

    # --- one look

    def look(self) -> None:
        """Notes what ended, repeats unheard requests to stop, starts what can be started."""
        with self._looking:
            self._note_endings()
            self._repeat_stops()
            self._start_waiting()

    def _note_endings(self) -> None:
        for started in list(self._started):
            code = started.process.poll()
            if code is None:
                continue
            self._started.remove(started)
            if self.leases is not None:
                self.leases.end(started.run)
            if code != NOT_MINE or started.has_claimed:
                self._note_ending(started, code)
                self._go_on_with_less(started, code)

    def _note_ending(self, started: _Started, code: int) -> None:
        with locked(self.store.runs):
            if not started.is_there:
                return  # moved to the trash meanwhile
            record = started.run / "ended.json"
            if started.has_claimed:
                # It writes its exit status itself, unless it was killed.
                if (read_json(record) or {}).get("attempt") != started.attempt:
                    write_json(record, ended_record(started.attempt, code))
            elif Ticket.read(started.run) is not None:
                lines = log_tail(started.run / "log.txt", started.log_from)
                why = f"The trainer could not be started (exit status {code}). {lines[-1] if lines else ''}".strip()
                self._give_up(started.run, why)

    def _go_on_with_less(self, started: _Started, code: int) -> None:
        """A run whose memory did not suffice takes the next smaller plan and its turn again, before the others."""
        run = started.run
        if not started.has_claimed or not ran_out(run, code, started.log_from, started.kills_before):
            return
        if reduce(run):
            with suppress(InputError):  # somebody was quicker, or it was deleted
                self.store.again(run, started.device)
                self.store.move(run, "first")

    def _give_up(self, run: Path, why: str) -> None:
        """Takes a job that cannot be started out of the queue, so that the others have their turn."""
        write_json(run / "ended.json", ended_record("", None, why))
        (run / "ticket.json").unlink(missing_ok=True)

    def _repeat_stops(self) -> None:
        """A trainer that is still being loaded throws away commands meant for an earlier one: say it again."""
        for run in run_folders(self.store.runs):
            asked = read_json(run / "asked.json")
            if asked and not is_waiting(run, "stop") and living_process(run):
                attempt = Attempt.read(run)
                if attempt and attempt.key == asked.get("attempt"):
                    send_command(run, "stop")

    def _start_waiting(self) -> None:
        queue = waiting(self.store.runs)
        if not queue or self.environment.problem:
            return
        busy = busy_devices(self.store.runs) | {started.device for started in self._started}
        for ticket, run in queue:
            if ticket.device in busy:
                continue
            busy.add(ticket.device)
            attempt = uuid.uuid4().hex
            try:
                if self.leases is not None:
                    self.leases.begin(run, attempt, ticket.device, job_of(run))
                self._started.append(_Started(run, ticket.device, self.environment, attempt))
            except OSError as error:
                if self.leases is not None:
                    self.leases.end(run)
                with locked(self.store.runs), suppress(FileNotFoundError):
                    self._give_up(run, f"The trainer could not be started ({error.strerror or error}).")

    # --- what is asked of a run

    def ask_to_stop(self, run: Path) -> bool:
        """Asks the trainer to finish its step, save and end; False where none is at work."""
        if living_process(run) is None:
            return False
        attempt = Attempt.read(run)
        if attempt is not None:
            write_json(run / "asked.json", {"what": "stop", "attempt": attempt.key, "time": time.time()})
        send_command(run, "stop")
        return True

    def kill(self, run: Path) -> bool:
        """Ends the trainer with all it started, at once; False where none is at work."""
        process = living_process(run)
        if process is None:
            return False
        attempt = Attempt.read(run)
        if attempt is not None:
            write_json(run / "asked.json", {"what": "stop_now", "attempt": attempt.key, "time": time.time()})
        killed = kill_tree(process)
        self.wake()
        return killed
