"""The queue on disk: order, two hosts at once, nothing lost and nothing doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from jobs_helpers import TESTS, attempts, fake_jobs, look_until, until, values

from extension.jobs.environment import ROOT
from extension.jobs.files import locked
from extension.jobs.run_files import Ticket
from trainers.errors import InputError


def test_a_job_is_trained_and_its_run_tells_of_it(jobs):
    made = jobs.submit(values(trigger="sks", steps=5))
    assert (made.state, made.place, made.id) == ("queued", 1, "ball")
    done = look_until(jobs, "ball", "done")
    assert (done.step, done.steps, done.progress) == (5, 5, 1.0)
    assert [step for step, *_ in done.losses] == [1, 2, 3, 4, 5]
    assert [output["file"] for output in done.outputs] == ["ball.safetensors"]
    assert done.problems == [] and "resume" not in done.actions and "again" in done.actions
    assert len(attempts(jobs, "ball")) == 1


def test_one_job_runs_on_a_device_and_the_others_wait_in_their_order(jobs):
    for name in ("one", "two", "three"):
        jobs.submit(values(name, steps=200, comment="pause=0.01"))
    look_until(jobs, "one", "training")
    assert [(view.id, view.state) for view in jobs.all()] == [
        ("one", "training"), ("two", "queued"), ("three", "queued"),
    ]  # fmt: skip
    jobs.move("three", "first")
    assert [view.id for view in jobs.all()] == ["one", "three", "two"]
    jobs.stop("one")
    look_until(jobs, "three", "training")
    assert jobs.one("one").state == "stopped" and jobs.one("two").state == "queued"
    jobs.stop_now("three")


def test_places_in_the_queue_can_be_changed(jobs):
    for name in "abcd":
        jobs.submit(values(name))
    moves = ["d up abdc", "a down badc", "b last adcb", "c first cadb", "c up cadb"]
    for run, where, wanted in map(str.split, moves):
        jobs.move(run, where)
        assert "".join(view.id for view in jobs.all()) == wanted
    jobs.stop("a")
    assert [(view.id, view.place) for view in jobs.all() if view.place] == [("c", 1), ("d", 2), ("b", 3)]
    assert jobs.one("a").state == "stopped"
    with pytest.raises(InputError, match="does not wait"):
        jobs.move("a", "up")
    with pytest.raises(InputError, match="one of up, down"):
        jobs.move("b", "sideways")


def test_a_request_that_arrives_twice_is_one_run(jobs):
    first = jobs.submit(values(), key="k1")
    assert jobs.submit(values(), key="k1").id == first.id
    assert jobs.submit(values(), key="k2").id == "ball-2"


def test_what_the_schema_rejects_makes_no_run(jobs):
    with pytest.raises(InputError, match="rnak"):
        jobs.submit(values(rnak=4))
    assert jobs.all() == [] and list(jobs.runs.parent.rglob("*.yaml")) == []


@pytest.mark.parametrize("name", ["../../etc", "a/b\\c", "CON", "...", "球 ball", "x" * 300, "-rf"])
def test_any_name_gives_a_folder_inside_the_runs(jobs, name):
    made = jobs.submit(values(comment="x") | {"name": "n"})
    jobs.delete(made.id)
    from extension.jobs.store import run_id_for

    run_id = run_id_for(name)
    assert run_id and not run_id.startswith((".", "-")) and len(run_id) <= 64
    assert (jobs.runs / run_id).resolve().parent == jobs.runs.resolve()


def test_threads_of_two_hosts_lose_and_double_nothing(tmp_path):
    hosts = [fake_jobs(tmp_path / "runs") for _ in range(2)]
    threads = [
        threading.Thread(target=lambda host=host, n=n: host.submit(values("same", steps=1), key=f"k{n % 6}"))
        for n, host in enumerate(hosts * 6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = [view.id for view in hosts[0].all()]
    assert len(runs) == 6
    positions = [Ticket.read(tmp_path / "runs" / run).position for run in runs]
    assert len(set(positions)) == 6


def test_two_hosts_that_look_at_once_start_a_job_once(tmp_path):
    hosts = [fake_jobs(tmp_path / "runs") for _ in range(2)]
    hosts[0].submit(values(steps=3))
    hosts[0].supervisor.look()
    hosts[1].supervisor.look()
    until(lambda: [host.supervisor.look() for host in hosts] and hosts[0].one("ball").state == "done")
    until(lambda: [host.supervisor.look() for host in hosts] and not any(host.supervisor._started for host in hosts))
    assert len(attempts(hosts[0], "ball")) == 1
    assert hosts[1].one("ball").problems == []


def test_a_job_taken_out_while_its_trainer_loads_is_not_trained(jobs):
    jobs.submit(values())
    with locked(jobs.runs):  # the child cannot take the ticket yet
        threading.Thread(target=jobs.supervisor._start_waiting).start()
        until(lambda: jobs.supervisor._started)
        (jobs.runs / "ball" / "ticket.json").unlink()
    until(lambda: jobs.supervisor.look() or not jobs.supervisor._started)
    assert attempts(jobs, "ball") == [] and jobs.one("ball").state == "stopped"


HOST = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from jobs_helpers import fake_jobs
import time
jobs = fake_jobs(Path({runs!r}))
jobs.start()
print("up", flush=True)
time.sleep(60)
"""


def _host(runs) -> subprocess.Popen:
    code = HOST.format(tests=str(TESTS), root=str(ROOT), runs=str(runs))
    host = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert host.stdout.readline() == "up\n"
    return host


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is of POSIX")
@pytest.mark.parametrize("delay", [0.0, 0.08, 0.2, 0.5])
def test_a_host_killed_at_any_instant_loses_and_doubles_nothing(jobs, delay):
    jobs.submit(values("one", steps=12, comment="pause=0.02"))
    jobs.submit(values("two", steps=2))
    host = _host(jobs.runs)
    time.sleep(delay)
    host.send_signal(signal.SIGKILL)
    host.wait()
    look_until(jobs, "two", "done")
    assert jobs.one("one").state == "done"
    assert [len(attempts(jobs, run)) for run in ("one", "two")] == [1, 1]
