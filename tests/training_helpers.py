"""Small jobs for the tests that train: a tiny random base, a few drawn pictures, a few steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from trainers.events import read_events

ROOT = Path(__file__).resolve().parent.parent


def make_pictures(folder: Path, count: int = 4, side: int = 64, caption: str = "a ball, red, number {n}") -> Path:
    """`count` pictures with captions; no two are alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = Image.new("RGB", (side, side), (40 * number % 255, 120, 200))
        ImageDraw.Draw(picture).ellipse((8 + number, 8, side - 12, side - 8 - number), fill=(220, 90, 20))
        picture.save(folder / f"picture {number}.png")
        (folder / f"picture {number}.txt").write_text(caption.format(n=number), encoding="utf-8")
    return folder


def job_values(base: Path, data: Path, **changes: Any) -> dict[str, Any]:
    """A job of a few quick steps with a fixed session, so that two runs of it can be compared byte for byte."""
    values: dict[str, Any] = {
        "method": "lora",
        "name": "测试 ball",
        "base": str(base),
        "data": str(data),
        "resolution": 64,
        "steps": 4,
        "rank": 4,
        "device": "cpu",
        "threads": 1,
        "override_checks": ["amount"],
        "run": {"session_id": 1234, "started_at": 1700000000.0},
    }
    return {**values, **changes}


def write_job(path: Path, values: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "trainers", *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    """One thread each (test machines are small), and no hub."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **offline, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", **more}


def run_trainer(*words: str | Path, timeout: float = 300, **more: str) -> subprocess.CompletedProcess[str]:
    """`python -m trainers …` as a person runs it."""
    return subprocess.run(
        command(*words), capture_output=True, text=True, encoding="utf-8", timeout=timeout, env=environment(**more)
    )


def events_of(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    events, _ = read_events(run / "events.jsonl")
    return [event for event in events if kind is None or event["event"] == kind]


def header_of(path: Path) -> dict[str, Any]:
    """The raw JSON header of a safetensors file."""
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def broken_off_at(step: int, train: Callable[[], Any], monkeypatch) -> None:
    """Calls `train`, in this process, and interrupts it when it begins the step of this index."""
    from trainers.engine import loop as loops

    real = loops.micro_step

    def die(session, index):
        if index == step:
            raise KeyboardInterrupt
        return real(session, index)

    monkeypatch.setattr(loops, "micro_step", die)
    try:
        train()
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("the run was not interrupted")
    monkeypatch.undo()


def killed_and_resumed(train, monkeypatch, *kind: str, **options: Any) -> tuple[Path, Path]:
    """The run folders of a run of four steps, and of the same killed in its fourth step and resumed."""
    from trainers import running

    options = {"steps": 4, "state_every": 2, **options}
    code, whole = train(*kind, **options)
    assert code == 0
    broken_off_at(3, lambda: train(*kind, folder="broken", **options), monkeypatch)
    broken = whole.parent / "broken"
    assert running.resume(broken) == 0
    return whole, broken
