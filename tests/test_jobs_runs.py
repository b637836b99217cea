"""What can be asked of a run, how endings are told, and runs that are found again."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from jobs_helpers import attempts, fake_jobs, look_until, until, values

from extension.jobs import processes, reasons
from extension.jobs.manager import Jobs
from extension.jobs.processes import Identity
from extension.jobs.run_files import Attempt, living_process
from extension.jobs.view import Summary, thinned
from trainers.engine.lock import RunLock, process_start
from trainers.errors import InputError

LONG = "pause=0.03"


def test_stop_saves_and_resume_goes_on(jobs):
    jobs.submit(values(steps=60, comment=LONG))
    look_until(jobs, "ball", "training")
    until(lambda: jobs.one("ball").step >= 2)
    jobs.stop("ball")
    stopped = look_until(jobs, "ball", "stopped")
    assert stopped.problems == [] and stopped.outputs and "resume" in stopped.actions
    (jobs.runs / "ball" / "job.yaml").write_text((jobs.runs / "ball" / "job.yaml").read_text().replace("0.03", "0"))
    jobs.resume("ball")
    done = look_until(jobs, "ball", "done")
    assert [step for step, *_ in done.losses] == list(range(1, 61))
    assert attempts(jobs, "ball")[1].endswith(f"from {stopped.step}")


def test_a_stop_is_heard_although_the_trainer_was_still_loading(jobs):
    jobs.submit(values(steps=300, comment="load=0.5;pause=0.02"))
    look_until(jobs, "ball", "preparing")
    jobs.stop("ball")
    assert jobs.one("ball").state == "stopping"
    assert look_until(jobs, "ball", "stopped").step < 100


def test_stop_now_ends_the_whole_tree(jobs):
    jobs.submit(values(steps=500, comment=f"{LONG};at=2;do=child"))
    look_until(jobs, "ball", "training")
    helper_file = jobs.runs / "ball" / "helper.pid"
    helper = Identity.of(int(until(lambda: helper_file.exists() and helper_file.read_text())))
    jobs.stop_now("ball")
    stopped = look_until(jobs, "ball", "stopped")
    until(lambda: not helper.is_alive)
    assert stopped.problems == [] and any("last saved state" in note for note in stopped.notes)


def test_save_and_sample_now(jobs):
    jobs.submit(values(steps=500, comment=LONG, sample_prompts=["a ball"]))
    look_until(jobs, "ball", "training")
    jobs.command("ball", "sample")
    jobs.command("ball", "save")
    until(lambda: jobs.one("ball").samples and jobs.one("ball").outputs)
    jobs.stop_now("ball")
    look_until(jobs, "ball", "stopped")
    with pytest.raises(InputError, match="while it trains"):
        jobs.command("ball", "save")


@pytest.mark.skipif(os.name == "nt", reason="signals are of POSIX")
def test_a_killed_trainer_is_interrupted_says_why_and_is_resumed(jobs):
    jobs.submit(values(steps=6, comment="at=3;do=kill"))
    view = look_until(jobs, "ball", "interrupted")
    until(lambda: jobs.supervisor.look() or "SIGKILL" in " ".join(jobs.one("ball").problems))
    view = jobs.one("ball")
    assert "memory runs out" in " ".join(view.problems) and "resume" in view.actions
    jobs.resume("ball")
    done = look_until(jobs, "ball", "done")
    assert [step for step, *_ in done.losses] == [1, 2, 3, 4, 5, 6] and done.problems == []


def test_out_of_memory_is_explained(jobs):
    jobs.submit(values(comment="at=2;do=oom", gradient_checkpointing="on"))  # nothing smaller is left
    view = look_until(jobs, "ball", "interrupted")
    until(lambda: jobs.supervisor.look() or jobs.one("ball").problems)
    view = jobs.one("ball")
    assert view.problems[0].startswith("The graphics card's memory did not suffice.")
    assert "Tried to allocate" in view.log[-1]


def test_a_crash_and_a_rejection_say_what_was_printed(jobs):
    jobs.submit(values("cold", comment="at=2;do=crash"))
    jobs.submit(values("empty", comment="do=reject"))
    rejected = look_until(jobs, "empty", "failed")
    assert rejected.problems == ["data: the folder is empty."]
    crashed = jobs.one("cold")
    assert crashed.state == "interrupted" and "exit status 1" in crashed.problems[0]
    assert crashed.log[-1] == "RuntimeError: the furnace is cold"


def test_a_program_that_cannot_start_fails_and_lets_the_next_one_through(tmp_path):
    broken = fake_jobs(tmp_path / "runs")
    broken.environment = broken.supervisor.environment = replace(broken.environment, python=Path("/bin/false"))
    broken.submit(values("one"))
    view = look_until(broken, "one", "failed")
    assert "could not be started" in view.problems[0] and view.place is None
    missing = Jobs(tmp_path / "other", replace(broken.environment, python=tmp_path / "none"))
    missing.submit(values("waits"))
    missing.supervisor.look()
    assert missing.one("waits").state == "queued" and "install.py" in missing.one("waits").problems[0]


def test_a_running_trainer_is_found_again_by_another_host(jobs):
    jobs.submit(values(steps=40, comment=LONG))
    look_until(jobs, "ball", "training")
    other = fake_jobs(jobs.runs)
    assert other.one("ball").state == "training" and other.is_at_work("ball")
    with pytest.raises(InputError, match="stop it first"):
        other.delete("ball")
    other.submit(values("next", steps=1))
    other.supervisor.look()
    assert other.one("next").state == "queued", "its device is in use by the other host's trainer"
    other.stop("ball")
    look_until(other, "next", "done")
    assert other.one("ball").state == "stopped"


def test_a_process_number_that_is_used_again_is_not_the_trainer(jobs):
    jobs.submit(values(steps=1))
    look_until(jobs, "ball", "done")
    run = jobs.runs / "ball"
    record = json.loads((run / "process.json").read_text())
    (run / "process.json").write_text(json.dumps({**record, "pid": os.getpid()}))
    (run / "ended.json").unlink(missing_ok=True)
    assert living_process(run) is None and not Attempt.read(run).process.is_alive
    assert not processes.kill_tree(Attempt.read(run).process)


def test_a_trainer_from_a_command_line_is_seen(jobs):
    run = jobs.runs / "by hand"
    run.mkdir(parents=True)
    (run / "job.yaml").write_text("method: lora\nname: by hand\n")
    (run / "run.lock").write_text(f"{os.getpid()}\n")
    assert jobs.one("by hand").state == "preparing"
    os.utime(run / "run.lock", (1, 1))  # written long before the process of this number began
    assert jobs.one("by hand").state == "stopped"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a lock tells only the number")
def test_a_clock_that_is_set_and_a_number_that_is_used_again_change_nothing(jobs):
    run = jobs.runs / "by hand"
    run.mkdir(parents=True)
    (run / "job.yaml").write_text("method: lora\nname: by hand\n")
    lock = run / "run.lock"
    with RunLock(run):
        os.utime(lock, (1, 1))  # the clock was set forward since
        assert jobs.one("by hand").state == "preparing"
        os.utime(lock, (2**33, 2**33))
        assert jobs.one("by hand").state == "preparing"
    lock.write_text(f"{os.getpid()}\n{process_start(os.getpid()).replace('/', '/1')}\n")  # another one had the number
    os.utime(lock, (2**33, 2**33))
    assert jobs.one("by hand").state == "stopped" and living_process(run) is None
    lock.write_text("what is this?\n")
    assert living_process(run) is None


def test_a_run_whose_folder_is_taken_away_ends_and_the_queue_goes_on(jobs, tmp_path):
    jobs.submit(values("gone", steps=500, comment=LONG))
    look_until(jobs, "gone", "training")
    jobs.submit(values("next", steps=2))
    os.rename(jobs.runs / "gone", tmp_path / "elsewhere")
    look_until(jobs, "next", "done")
    assert [view.id for view in jobs.all()] == ["next"] and not (jobs.runs / "gone").exists()


def test_a_run_with_impossible_files_hides_no_other(jobs):
    jobs.submit(values("fine", steps=1))
    look_until(jobs, "fine", "done")
    for name, file, text in (
        ("steps", "job.yaml", "method: lora\nname: [1]\nsteps: many\n"), ("list", "job.yaml", "- 1\n- 2\n"),
        ("event", "events.jsonl", '{"event": "step", "step": "x"}\n'), ("time", "submitted.json", '{"time": "x"}'),
        ("ticket", "ticket.json", '{"position": "first", "device": 7}'), ("process", "process.json", '{"pid": "1"}'),
        ("ended", "ended.json", '{"code": "no", "time": {}}'), ("lock", "run.lock", "1e9999 x"),
    ):  # fmt: skip
        (jobs.runs / name).mkdir()
        (jobs.runs / name / "job.yaml").write_text("method: lora\nname: x\nsteps: 5\n")
        (jobs.runs / name / file).write_text(text)
    views = {view.id: view for view in jobs.all()}
    assert views["fine"].state == "done" and len(views) >= 8
    assert "mend its job.yaml" in views["steps"].problems[0] and views["steps"].actions == ("delete",)
    json.dumps([view.as_dict() for view in views.values()])
    assert views["ticket"].place == 1
    jobs.stop("ticket")
    jobs.submit(values("next", steps=1))
    jobs.move("next", "first")
    look_until(jobs, "next", "done")
    for name in views:
        jobs.delete(name)
    assert [view.id for view in jobs.all()] == ["next"]


def test_a_new_run_of_the_same_name_is_not_taken_for_the_one_that_was_deleted(jobs):
    jobs.submit(values(steps=500, comment=LONG))
    look_until(jobs, "ball", "training")
    jobs.supervisor.kill(jobs.runs / "ball")
    until(lambda: living_process(jobs.runs / "ball") is None)
    jobs.delete("ball")
    assert jobs.submit(values(steps=3)).id == "ball"
    assert look_until(jobs, "ball", "done", "failed").problems == []


def test_a_long_list_of_runs_reads_no_logs_and_copies_no_series(jobs, monkeypatch):
    for name in ("one", "two"):
        jobs.submit(values(name, steps=3))
        look_until(jobs, name, "done")
    monkeypatch.setattr(reasons, "log_tail", lambda *given: pytest.fail("a log was read"))
    listed = [view.as_dict(brief=True) for view in jobs.all()]
    assert [each["id"] for each in listed] == ["two", "one"] and not {"losses", "log", "plan"} & listed[0].keys()
    monkeypatch.undo()
    (jobs.runs / "one" / "log.txt").write_text("done\n")
    view = jobs.one("one")
    assert view.log == ["done"] and view.as_dict()["samples"] is view.samples


def test_deleted_runs_lie_in_the_trash_and_come_back(jobs):
    jobs.submit(values(steps=1))
    look_until(jobs, "ball", "done")
    jobs.delete("ball")
    assert jobs.all() == [] and (jobs.runs / ".trash" / "ball" / "ball.safetensors").exists()
    assert jobs.restore("ball").state == "done"


def test_again_with_changes_is_a_new_run(jobs):
    jobs.submit(values(rank=4))
    again = jobs.again("ball", {"rank": 8})
    assert again.id == "ball-2" and jobs.raw_job("ball-2")["rank"] == 8 and jobs.raw_job("ball")["rank"] == 4


@pytest.mark.parametrize("name", ["..", ".", "", ".trash", "../runs/ball", "ball/../ball", "/", "a\0b", ".lock", "C:x"])
def test_hostile_ids_are_no_runs(jobs, name):
    jobs.submit(values())
    with pytest.raises(InputError, match="There is no run"):
        jobs.one(name)


def test_a_link_out_of_the_runs_is_no_run_and_no_file(jobs, tmp_path):
    jobs.submit(values())
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "request.yaml").write_text("name: x\n")
    os.symlink(tmp_path / "outside", jobs.runs / "linked", target_is_directory=True)
    os.symlink(tmp_path / "outside" / "request.yaml", jobs.runs / "ball" / "link.yaml")
    with pytest.raises(InputError):
        jobs.one("linked")
    for path in ("../../outside/request.yaml", "link.yaml", "", ".", "a\0b", "none.png"):
        with pytest.raises(InputError, match="no such file"):
            jobs.file("ball", path)


# --- reading


def test_a_torn_last_line_is_ignored_until_it_is_whole(jobs):
    jobs.submit(values())
    jobs.stop("ball")
    events = jobs.runs / "ball" / "events.jsonl"
    events.write_text('{"event": "start", "steps": 9}\n{"event": "step", "step": 1, "st')
    assert (jobs.one("ball").step, jobs.one("ball").steps) == (0, 9)
    with events.open("a") as file:
        file.write('eps": 9, "loss": 0.5, "loss_average": 0.5}\n[1]\nnonsense\n{"event": "of tomorrow"}\n')
    assert (jobs.one("ball").step, jobs.one("ball").losses) == (1, [(1, 0.5, 0.5)])


def test_steps_that_are_done_again_replace_the_old_ones():
    told = Summary()
    told.take({"event": "start", "steps": 9, "resumed_from": None})
    for step in (1, 2, 3, 4):
        told.take({"event": "step", "step": step, "steps": 9, "loss": step, "loss_average": 1.0})
    told.take({"event": "start", "steps": 9, "resumed_from": 2})
    told.take({"event": "step", "step": 3, "steps": 9, "loss": 7, "loss_average": 1.0})
    assert [each[:2] for each in told.losses] == [(1, 1), (2, 2), (3, 7)] and told.generation == 1


def test_long_series_are_thinned_and_keep_their_end():
    series = [(step, 0.0, 0.0) for step in range(1, 10_000)]
    kept = thinned(series)
    assert len(kept) <= 1002 and kept[0][0] == 1 and kept[-1][0] == 9999


def test_reasons():
    assert "computer's memory" in reasons.interrupted(1, "", ["DefaultCPUAllocator: can't allocate memory"])[0]
    assert "SIGSEGV" in reasons.interrupted(-11, "", ["x"])[0]
    assert "access violation" in reasons.interrupted(0xC0000005, "", [])[0]
    assert "resumed" in reasons.interrupted(None, "", [])[0]
    assert sys.platform == "win32" or Identity.of(2**22 + 5) is None


def test_the_time_that_is_left_is_an_estimate_until_ten_steps_of_this_attempt_were_timed():
    told = Summary()
    for step in range(1, 11):
        assert not told.eta_measured
        told.take({"event": "step", "step": step, "steps": 20, "seconds": 1.0, "eta": 20.0 - step})
    assert told.eta_measured
    told.take({"event": "launched"})
    assert not told.eta_measured


def test_what_the_webui_draws_by_itself_is_not_offered_while_it_trains(jobs):
    jobs.submit(values(method="hypernetwork", steps=60, comment=LONG))
    look_until(jobs, "ball", "training")
    assert "live" in jobs.one("ball").actions
    jobs.watcher.without_live = frozenset({"hypernetwork"})
    assert "live" not in jobs.one("ball").actions
    with pytest.raises(InputError, match="only when its file is finished"):
        jobs.command("ball", "snapshot")
