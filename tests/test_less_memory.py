"""A run whose memory did not suffice goes on by itself with less."""

from __future__ import annotations

import errno
import json

import pytest
from jobs_helpers import until, values

from extension.jobs import less_memory
from extension.jobs.lease import ATTACH, HAND_OVER, RECORD, SIDE_BY_SIDE
from extension.jobs.view import Summary
from trainers import errors, spec
from trainers.events import EventLog, read_events


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


def test_memory_that_spills_is_followed_by_a_smaller_plan_too(jobs):
    view, job = _ended(jobs, comment="at=4;do=spill")
    assert view.state == "done" and job.gradient_checkpointing == "on"
    told = "The memory spilled into the computer's own: gradient checkpointing was turned on, continued from step 3."
    assert told in view.notes
    events, _ = read_events(jobs.runs / "ball" / "events.jsonl")
    assert [event["check"] for event in events if event["event"] == "reduced"] == [less_memory.SPILLS]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"check": "memory", "why": "in other words"},
            "The memory spilled into the computer's own: less, began again.",
        ),
        ({"check": "", "why": "spilled, not"}, "The memory did not suffice: less, began again."),
        # as it was written before the event said which check had stopped the run
        (
            {"why": "the memory spilled into the computer's own"},
            "The memory spilled into the computer's own: less, began again.",
        ),
        ({"why": "the memory did not suffice"}, "The memory did not suffice: less, began again."),
    ],
)
def test_what_a_run_says_of_less_memory_is_read_from_a_field_and_from_older_runs_words(fields, told):
    summary = Summary()
    summary.take({"event": "reduced", "what": "less", "step": 0, **fields})
    assert summary.notes == [told]


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


@pytest.mark.parametrize(
    "said",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to",
        "numpy.core._exceptions._ArrayMemoryError: Unable to allocate 7.45 GiB for an array with shape (1,)",
        "RuntimeError: std::bad_alloc", "MemoryError: bad allocation", "MemoryError: ",
        "RuntimeError: MPS backend out of memory (MPS allocated: 8.00 GB)",
        "RuntimeError: level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        "OSError: [WinError 1455] The paging file is too small for this operation to complete.",
        "RuntimeError: unable to mmap 4265146304 bytes from file <m.safetensors>: Cannot allocate memory (12)",
    ],
)  # fmt: skip
def test_every_way_in_which_memory_is_said_to_be_short_is_known(said):
    assert errors.tells_of_memory(said)
    assert not errors.tells_of_memory("RuntimeError: mat1 and mat2 shapes cannot be multiplied")


def test_memory_behind_another_exception_is_seen():
    try:
        try:
            raise MemoryError
        except MemoryError as error:
            raise errors.InputError("m.safetensors: this state cannot be read.") from error
    except errors.InputError as error:
        assert errors.is_out_of_memory(error) and not errors.is_out_of_memory(errors.InputError("x"))
    assert errors.is_out_of_memory(OSError(errno.ENOMEM, "")) and not errors.is_out_of_memory(None)


def test_a_run_that_could_not_attach_has_the_webui_make_room(tmp_path):
    (tmp_path / "job.yaml").write_text(spec.to_yaml(spec.parse(values(device="cuda"))))
    (tmp_path / RECORD).write_text(json.dumps({"mode": ATTACH}))
    events = EventLog(tmp_path / "events.jsonl")
    events.emit("launched")
    events.emit("start", steps=5)
    assert less_memory.reduce(tmp_path) == "the WebUI makes room"
    events.emit("launched")
    events.emit("attached", kind="cuda")
    events.emit("start", steps=5)
    assert less_memory.reduce(tmp_path) == "gradient checkpointing was turned on"


def test_a_run_that_was_never_accepted_is_not_reduced(tmp_path):
    assert less_memory.reduce(tmp_path) == ""
    (tmp_path / RECORD).write_text(json.dumps({"mode": SIDE_BY_SIDE}))
    (tmp_path / "job.yaml").write_text("rnak: 1")
    assert less_memory.reduce(tmp_path) == ""
