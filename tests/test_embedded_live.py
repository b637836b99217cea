"""Drawing with what is being trained, in the embedded host: words, hypernetworks, and a word beside a LoRA."""

from __future__ import annotations

import pytest
import torch
from embedded_helpers import EMBEDDED_BASE, apart, draw, make_studio, one
from training_helpers import job_values, make_pictures

from extension.jobs.manager import Jobs
from extension.live import LiveFiles, live_tag
from trainers import running, spec
from trainers.engine import loop as loops
from trainers.events import send_command
from trainers.options import fields_for

CHECKS = ["amount", "quality", "buckets", "sameness", "dose", "rate", "learning", "captions", "trigger"]


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    torch.set_num_threads(1)
    return make_studio(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("method", "tag"),
    [
        ("textual_inversion", "<ti:zkwx:1:live=1>"),
        ("hypernetwork", "<hypernet:zkwx:0.8:live=1>"),
        ("pivotal", "zkw <lora:zkwx:0:live=1>"),  # the LoRA itself is drawn with in tests/test_jobs_real.py
    ],
)
def test_drawn_while_it_trains(studio, tmp_path, monkeypatch, method, tag):
    """The trainer runs in this process, so the host draws at known steps: each picture is of a later snapshot."""
    run, drawn, real = tmp_path / "runs" / "zkwx", {}, loops.micro_step
    jobs = Jobs(tmp_path / "runs")
    studio.library.live = LiveFiles(lambda: jobs, patience=0)
    plain = one(studio, f"a red star {tag.partition('<')[0]}")

    def step(session, index):
        if index in (2, 6):
            send_command(run, "snapshot")
        if index in (4, 8):
            drawn[index] = draw(studio, f"a red star {tag}")
        return real(session, index)

    monkeypatch.setattr(loops, "micro_step", step)
    values = job_values(
        EMBEDDED_BASE, make_pictures(tmp_path / "data", 4), method=method, name="zkwx", steps=9, learning_rate=0.05,
        override_checks=CHECKS, bucket_min=64, bucket_max=64, verdict=False,
    )  # fmt: skip
    values |= {"trigger": "zkw", "embedding_lr": 0.05} if method == "pivotal" else {}
    known = {option.name for option in fields_for(method)} | {"method", "run"}
    assert running.start(spec.parse({name: value for name, value in values.items() if name in known}), run) == 0
    early, late = drawn[4], drawn[8]
    assert early.reports == [] and late.reports == []
    assert apart(early.pictures[0].image, plain) > 0, "what is trained does not act"
    assert apart(late.pictures[0].image, early.pictures[0].image) > 0, "the later picture is of the same snapshot"
    assert live_tag("zkwx", method).split(":")[0] == tag[tag.index("<") :].split(":")[0]
    after = draw(studio, f"a red star {tag}")
    assert "no run of this name is in progress" in after.reports[0]
    assert apart(one(studio, f"a red star {tag.partition('<')[0]}"), plain) == 0


def test_a_kind_that_cannot_be_drawn_with_says_so(studio, tmp_path):
    studio.library.live = LiveFiles(lambda: Jobs(tmp_path / "runs"))
    (said,) = draw(studio, "a red star <lora:zog:1:live=1>").reports[:1]
    assert "no run of this name is in progress" in said
    ignored = draw(studio, "a red star <aesthetic:zog:1:live=1>").reports
    assert any('"live" does nothing for aesthetic tags' in line for line in ignored)
