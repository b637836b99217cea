"""The queue with the real trainer on a tiny random model: looked at before, killed in the middle, resumed, done."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from jobs_helpers import ROOT, TESTS, look_until, until
from training_helpers import events_of, header_of, job_values, make_pictures, write_job

from extension.jobs.environment import Environment
from extension.jobs.manager import Jobs
from extension.live import LiveFiles
from trainers import cli
from trainers.errors import InputError


@pytest.fixture
def jobs(tmp_path):
    environment = Environment(Path(sys.executable), variables={"OMP_NUM_THREADS": "1", "ATHANOR_TEST": "1"})
    made = Jobs(tmp_path / "runs", environment)
    yield made
    for view in made.all():
        made.supervisor.kill(made.runs / view.id)


@pytest.mark.skipif(os.name == "nt", reason="kills with a signal")
def test_a_real_job_is_surveyed_killed_resumed_and_done(jobs, tiny_base, tmp_path):
    data = make_pictures(tmp_path / "data", 3)
    values = job_values(tiny_base("sd1"), data, name="ball", steps=30, state_every=5, sample_prompts=["a ball"],
                        sample_steps=1)  # fmt: skip
    found = jobs.survey(values)
    (folder,) = found.facts["folders"]
    assert (folder["pictures"], folder["captioned"], folder["skipped"]) == (3, 3, [])
    assert found.facts["steps"] == 30 and found.facts["memory"]["peak_bytes"] > 0 and not found.seconds_from

    jobs.submit(values)
    look_until(jobs, "ball", "training", seconds=240)
    live = LiveFiles(lambda: jobs)
    first = live("ball")
    assert first.parent == jobs.runs / "ball" / "live"
    assert header_of(first)["__metadata__"]["ss_steps"] == str(int(first.stem.rpartition("-")[2]))
    assert live("another") is None
    until(lambda: jobs.one("ball").step >= 11, 60)
    jobs.supervisor.kill(jobs.runs / "ball")
    (jobs.runs / "ball" / "asked.json").unlink()  # as if somebody else had killed it
    look_until(jobs, "ball", "interrupted")
    assert live("ball") is None
    jobs.resume("ball")
    done = look_until(jobs, "ball", "done", seconds=240)
    assert [step for step, *_ in done.losses] == list(range(1, 31)) and done.resumed_from >= 10
    assert [sample["step"] for sample in done.samples] == [0, 30]
    result = jobs.file("ball", done.outputs[-1]["file"])
    assert header_of(result)["__metadata__"]["ss_steps"] == "30"
    again = jobs.survey({**values, "steps": 300})
    assert again.seconds and again.seconds_from == "ball"


@pytest.mark.skipif(sys.platform != "linux", reason="the system's own limit on memory")
def test_memory_that_really_runs_out_is_followed_by_a_smaller_plan(tmp_path):
    """torch's allocator is refused memory by the system in the third step; the queue does the rest by itself."""
    # What was freed goes back to the system at once, so that the limit means what it says.
    lean = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536")
    variables = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "ATHANOR_TEST_ROOM": "200", **lean}
    jobs = Jobs(tmp_path / "runs", Environment(Path(sys.executable), "limited_trainer", (ROOT, TESTS), variables))
    values = job_values(
        ROOT / "assets" / "base" / "athanor-base.safetensors", make_pictures(tmp_path / "data", 4), name="ball",
        repeats=8, batch_size=32, steps=3, state_every=1, bucket_max=64, bucket_min=64, verdict=False,
        override_checks=["amount", "quality", "buckets", "sameness", "dose", "rate", "learning", "captions", "trigger"],
    )  # fmt: skip
    jobs.submit(values)

    def done() -> bool:
        jobs.supervisor.look()
        view = jobs.one("ball")
        at_work = view.state in ("queued", "preparing", "training", "failed") and jobs.supervisor._started
        assert view.state != "failed" or at_work, (view.problems, view.log[-10:])
        return view.state == "done"

    until(done, 240)
    view = jobs.one("ball")
    events = events_of(jobs.runs / "ball")
    (failed,) = [event for event in events if event["event"] == "failed"]
    assert "can't allocate memory" in failed["why"] and failed["advice"].startswith("The memory did not suffice.")
    assert "The memory did not suffice: gradient checkpointing was turned on, continued from step 2." in view.notes
    assert [step for step, *_ in view.losses] == [1, 2, 3] and view.problems == []
    assert (jobs.runs / "ball" / "ball.safetensors").is_file()


def test_a_survey_says_every_problem(jobs, tmp_path):
    with pytest.raises(InputError, match="rnak"):
        jobs.survey({"rnak": 1})
    values = job_values(tmp_path / "no.safetensors", tmp_path, name="x")
    with pytest.raises(InputError, match=r"no\.safetensors"):
        jobs.survey(values)


def test_check_as_json(tiny_base, tmp_path, capsys):
    data = make_pictures(tmp_path / "data", 2)
    (data / "broken.png").write_bytes(b"no picture")
    job = write_job(tmp_path / "job.yaml", job_values(tiny_base("sd1"), data, steps=None, epochs=3, batch_size=2))
    assert cli.main(["check", str(job), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["family"] == "sd1" and said["steps"] == 3 and not said["steps_are_exact"]
    assert [skipped["file"] for skipped in said["folders"][0]["skipped"]] == ["broken.png"]
    assert said["memory"]["fits"] in (True, False)
