"""A run whose memory did not suffice goes on by itself with less."""

from __future__ import annotations

import json

import pytest
from jobs_helpers import fake_jobs, until, values

from extension.jobs import less_memory
from extension.jobs.lease import HAND_OVER, RECORD, SIDE_BY_SIDE
from trainers import spec
from trainers.events import read_events


@pytest.fixture
def jobs(tmp_path):
    made = fake_jobs(tmp_path / "runs")
    yield made
    for view in made.all():
        made.supervisor.kill(made.runs / view.id)


def _ended(jobs, **changes):
    jobs.submit(values(steps=6, **changes))

    def is_over() -> bool:
        jobs.supervisor.look()
        at_work = any(started.run.name == "ball" for started in jobs.supervisor._started)
        return not at_work and jobs.one("ball").state in ("done", "failed", "interrupted")

    until(is_over, 60)
    return jobs.one("ball"), spec.parse(spec.read_yaml(jobs.runs / "ball" / "job.yaml"))


def test_it_goes_on_from_its_last_state_with_the_next_smaller_plan(jobs):
    jobs.submit(values("later", steps=2, comment="pause=0.2"))
    jobs.store.move(jobs.runs / "later", "last")
    view, job = _ended(jobs, batch_size=4, gradient_accumulation=3, comment="at=4;do=oom;times=2")
    assert view.state == "done" and view.problems == []
    assert job.gradient_checkpointing == "on" and (job.batch_size, job.gradient_accumulation) == (2, 6)
    assert [note for note in view.notes if "memory" in note] == [
        "The memory did not suffice: gradient checkpointing was turned on, continued from step 3.",
        "The memory did not suffice: batches of 4 became 2 times 2, added up, continued from step 3.",
    ]
    assert [step for step, *_ in view.losses] == [1, 2, 3, 4, 5, 6]


def test_it_gives_up_where_nothing_smaller_is_left(jobs):
    view, job = _ended(jobs, batch_size=3, comment="at=2;do=oom;times=9")
    assert view.state != "done" and view.problems[0].startswith("The graphics card's memory did not suffice.")
    assert (job.batch_size, job.gradient_accumulation) == (1, 3)
    kinds = [event["event"] for event in read_events(jobs.runs / "ball" / "events.jsonl")[0]]
    assert kinds.count("reduced") == 2 and kinds.count("launched") == 3


def test_other_ends_are_left_alone(jobs, monkeypatch):
    view, job = _ended(jobs, comment="at=2;do=crash")
    assert view.state == "interrupted" and job.gradient_checkpointing == "auto"
    run = jobs.runs / "ball"
    monkeypatch.setattr(less_memory, "kills_by_the_system", lambda: 3)
    assert less_memory.ran_out(run, -9, 0, 2) and not less_memory.ran_out(run, -9, 0, 3)
    (run / "asked.json").write_text('{"what": "stop_now"}')
    assert not less_memory.ran_out(run, -9, 0, 2)


def test_the_ladder():
    def steps(mode="", trains=True, **changes):
        job, done = spec.parse(values(device="cuda", steps=None, epochs=2, **changes)), []
        while found := less_memory.smaller_job(job, mode, trains, 40):
            job, mode = found[0], ""
            done.append(found[1])
        return job, done

    job, done = steps(SIDE_BY_SIDE, batch_size=6)
    assert done == [
        "the WebUI makes room", "gradient checkpointing was turned on", "batches of 6 became 2 times 3, added up",
        "batches of 3 became 3 times 1, added up", "the base is kept in 8 bits",
    ]  # fmt: skip
    assert job.gpu_sharing == HAND_OVER and (job.steps, job.epochs) == (40, None)
    assert job.batch_size * job.gradient_accumulation == 6
    _, done = steps(trains=False, vae_batch_size=4)
    assert done[0] == "pictures are encoded one by one"
    whole = {"method": "dreambooth", "fused_backward": True, "max_grad_norm": 0, "batch_size": 4}
    assert steps(**whole)[1] == ["gradient checkpointing was turned on"]


def test_a_run_that_was_never_accepted_is_not_reduced(tmp_path):
    assert less_memory.reduce(tmp_path) == ""
    (tmp_path / RECORD).write_text(json.dumps({"mode": SIDE_BY_SIDE}))
    (tmp_path / "job.yaml").write_text("rnak: 1")
    assert less_memory.reduce(tmp_path) == ""
