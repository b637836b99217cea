"""What changed in a job's pictures and captions between queueing, starting and resuming is said."""

from __future__ import annotations

import os

from training_helpers import broken_off_at, events_of, job_values, make_pictures

from extension.jobs.store import Store
from trainers import running, snapshot, spec


def test_changes_are_found_by_content(tmp_path):
    data = make_pictures(tmp_path / "balls 球", 4)
    before = snapshot.take(data)
    assert len(before) == 8 and snapshot.changes(before, snapshot.take(data, before)) == []
    os.utime(data / "picture 0.png", (1, 1))  # touched, but the same
    (data / "picture 1.txt").write_text("another text")
    (data / "picture 2.png").unlink()
    (data / ".athanor-cache").mkdir()
    (data / ".athanor-cache" / "a.json").write_text("{}")
    for number in range(4):
        (data / f"new {number}.png").write_bytes(b"x")
    assert snapshot.changes(before, snapshot.take(data, before)) == [
        "4 pictures added (new 0.png, new 1.png, new 2.png and 1 more)",
        "1 picture removed (picture 2.png)",
        "1 caption file changed (picture 1.txt)",
    ]
    assert snapshot.read(tmp_path) == {}
    (tmp_path / snapshot.FILE).write_text('{"folders": [1]}')
    assert snapshot.read(tmp_path) == {}


def test_files_that_did_not_change_are_not_read_again(tmp_path, monkeypatch):
    data = make_pictures(tmp_path / "balls", 2)
    before = snapshot.take(data)
    monkeypatch.setattr(snapshot.hashlib, "sha256", lambda: 1 / 0)
    assert snapshot.take(data, before) == before


def test_a_run_says_what_changed_since_it_was_queued_and_since_it_was_stopped(tiny_base, tmp_path, monkeypatch):
    data = make_pictures(tmp_path / "balls", 5)
    values = job_values(tiny_base("sd1"), data, steps=3, state_every=1)
    run = Store(tmp_path / "runs").submit(values)
    (data / "picture 1.txt").write_text("a ball in the rain")
    job = spec.parse(spec.read_yaml(run / "request.yaml"))
    broken_off_at(1, lambda: running.start(job, run), monkeypatch)
    told = [event["text"] for event in events_of(run, "note")]
    assert "data: since the job was queued, 1 caption file changed (picture 1.txt)." in told
    assert [event["event"] for event in events_of(run)].index("note") < [
        event["event"] for event in events_of(run)
    ].index("start")
    (data / "picture 0.png").write_bytes((data / "picture 2.png").read_bytes())
    assert running.resume(run) == 0
    told = [event["text"] for event in events_of(run, "note")]
    assert told[-1] == "data: since the run was last worked on, 1 picture changed (picture 0.png)."
