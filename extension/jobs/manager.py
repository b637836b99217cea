"""All that the page, the routes and a host need of jobs, in one object."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from extension.jobs import reasons, view
from extension.jobs.environment import Environment
from extension.jobs.lease import Leases, Lender, memory_when
from extension.jobs.run_files import living_process
from extension.jobs.store import Store
from extension.jobs.supervisor import Supervisor
from extension.jobs.survey import Survey, memory_plan, survey
from extension.jobs.turns import Turns
from extension.jobs.view import RunView
from extension.jobs.watching import Watcher
from trainers import spec
from trainers.errors import InputError
from trainers.events import send_command
from trainers.spec import AUTO_DEVICE

_made: dict[Path, Jobs] = {}
_making = threading.Lock()


def jobs_for(runs: Path, environment: Environment | None = None, auto_device: str = "cpu") -> Jobs:
    """The one `Jobs` of this process for a runs folder; a page that is built again gets the same."""
    runs = Path(runs).resolve()
    with _making:
        if runs not in _made:
            _made[runs] = Jobs(runs, environment, auto_device)
        return _made[runs]


class Jobs:
    """The queue and the runs below one folder.

    Every method that takes a run's id raises `InputError` where there is no such run, or where what is asked cannot
    be done now; the sentence says why.
    """

    def __init__(self, runs: Path, environment: Environment | None = None, auto_device: str = "cpu") -> None:
        self.runs = Path(runs)
        wanted = environment or Environment()
        self.environment = replace(wanted, variables={**wanted.variables, AUTO_DEVICE: auto_device})
        self.store = Store(self.runs, auto_device)
        self.watcher = Watcher(self.runs)
        self.supervisor = Supervisor(self.store, self.environment)
        self.turns = Turns(self.runs)

    def borrow_from(self, lender: Lender) -> None:
        """Trainings share the device with this host's model from now on."""
        self.supervisor.leases = Leases(lender, lambda job: memory_plan(job, self.environment))

    def let_go(self, seconds: float = 120.0) -> None:
        """Asks the trainers that are attached to the host's model to save and stop, and waits until they have."""
        leases = self.supervisor.leases
        runs = leases.attached if leases is not None else []
        for run in runs:
            self.supervisor.ask_to_stop(run)
        until = time.monotonic() + seconds
        while any(living_process(run) for run in runs) and time.monotonic() < until:
            time.sleep(0.1)
        for run in runs:
            if living_process(run) is None:
                leases.end(run)

    def start(self) -> None:
        """Looks after the queue from now on."""
        self.supervisor.start()

    def close(self) -> None:
        """Looks after it no longer; trainers go on, and are found again."""
        self.supervisor.close()

    # --- looking

    def all(self) -> list[RunView]:
        """Every run: what works first, then what waits, then the newest."""
        return [self._with_waiting_reason(made) for made in self.watcher.all()]

    def one(self, run_id: str) -> RunView:
        return self._with_waiting_reason(self.watcher.one(self.store.find(run_id)))

    def _with_waiting_reason(self, made: RunView) -> RunView:
        if made.state == view.QUEUED and self.environment.problem:
            made.problems = [self.environment.problem]
        return made

    def log(self, run_id: str, lines: int = 200) -> list[str]:
        """The last lines that the trainers of a run printed."""
        return reasons.log_tail(self.store.find(run_id) / "log.txt", lines=lines)

    def raw_job(self, run_id: str) -> dict[str, Any]:
        """The options of a run, as a form takes them."""
        run = self.store.find(run_id)
        file = next((run / name for name in ("request.yaml", "job.yaml") if (run / name).exists()), None)
        if file is None:
            raise InputError(f"{run_id}: this run has no job file.")
        return {name: value for name, value in spec.read_yaml(file).items() if name != "run"}

    def file(self, run_id: str, path: str) -> Path:
        """A file inside a run, after every link is followed.

        Raises:
            InputError: it is not inside, or not there.
        """
        run = self.store.find(run_id).resolve()
        with contextlib.suppress(OSError, ValueError):  # no name that a file can have
            found = (run / path).resolve()
            if run in found.parents and found.is_file():
                return found
        raise InputError(f"{run_id}: this run has no such file.")

    def survey(self, values: Mapping[str, Any]) -> Survey:
        """What a job would train on, how long and with how much memory; takes some seconds."""
        device = self.store.device_of(str(values.get("device", "auto")))
        found = survey(values, self.environment, self.runs, device)
        leases = self.supervisor.leases
        if leases is not None:
            choice = leases.foresee(values, device, found.facts.get("memory", {}))
            found.facts["sharing"] = asdict(choice)
            found.facts["memory"] = memory_when(choice.mode, leases.lender.holding(), found.facts.get("memory", {}))
            _note_room(found.facts)
        return found

    # --- asking

    def submit(self, values: Mapping[str, Any], key: str = "") -> RunView:
        """Puts a job into the queue; see `Store.submit`."""
        run = self.store.submit(values, key)
        self.supervisor.wake()
        return self.one(run.name)

    def stop(self, run_id: str) -> None:
        """Saves and stops a run that works; takes one that waits out of the queue."""
        run = self.store.find(run_id)
        if not self.store.withdraw(run) and not self.supervisor.ask_to_stop(run):
            raise InputError(f"{run_id}: this run is not at work.")

    def stop_now(self, run_id: str) -> None:
        """Ends a run with everything it started; what was not saved yet is lost."""
        run = self.store.find(run_id)
        withdrawn = self.store.withdraw(run)
        if not self.supervisor.kill(run) and not withdrawn:
            raise InputError(f"{run_id}: this run is not at work.")

    def command(self, run_id: str, command: str) -> None:
        """Asks a run that trains to save its result so far ("save"), to draw its sample prompts ("sample"), or to write
        a snapshot that can be drawn with meanwhile ("snapshot")."""
        made = self.one(run_id)
        if command not in ("save", "sample", "snapshot"):
            raise InputError(f"command: {command[:60]!r} is not one of save, sample, snapshot.")
        if made.state != view.TRAINING:
            raise InputError(f"{run_id}: this run is {made.state}; it can be asked for this while it trains.")
        if command == "snapshot" and not made.has_live:
            raise InputError(f"{run_id}: a whole model cannot be drawn with while it trains.")
        if command == "snapshot" and "live" not in made.actions:
            raise InputError(f"{run_id}: this WebUI draws with a {made.method} only when its file is finished.")
        if command == "sample" and not self.raw_job(run_id).get("sample_prompts"):
            raise InputError(f"{run_id}: this run has no sample prompts to draw.")
        send_command(self.store.find(run_id), command)

    def resume(self, run_id: str) -> None:
        """Puts a run that ended before its last step back into the queue."""
        made = self.one(run_id)
        if made.state not in view.RESUMABLE:
            raise InputError(f"{run_id}: this run is {made.state}; there is nothing to go on with.")
        self.store.again(self.store.find(run_id), str(self.raw_job(run_id).get("device", "auto")))
        self.supervisor.wake()

    def again(self, run_id: str, changes: Mapping[str, Any] | None = None, key: str = "") -> RunView:
        """A new run with the options of an old one and some changed."""
        return self.submit({**self.raw_job(run_id), **(changes or {})}, key)

    def move(self, run_id: str, where: str) -> None:
        """Changes a waiting run's place: "up", "down", "first", "last"."""
        self.store.move(self.store.find(run_id), where)

    def delete(self, run_id: str) -> None:
        """Moves a run to the trash folder."""
        self.store.delete(self.store.find(run_id))

    def restore(self, run_id: str) -> RunView:
        """Brings a run back from the trash folder."""
        return self.one(self.store.restore(run_id).name)

    def is_at_work(self, run_id: str) -> bool:
        """Whether a process works on a run."""
        return living_process(self.store.find(run_id)) is not None


def _note_room(facts: dict[str, Any]) -> None:
    """The finding about the memory was made beside the host's model; it is no warning where there will be room."""
    for finding in facts.get("checks", []):
        if finding["id"] == "memory" and finding["severity"] != "ok" and facts["memory"].get("fits"):
            finding.update(severity="ok", text="The memory plan fits, shared in this way.", what_to_do="")
