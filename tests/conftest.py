"""Fixtures that several test files share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """`tiny_base("sd1", "ldm")` -> path of a tiny random model, made once per test session; never write to it."""
    from tiny_models import make_tiny

    made: dict[tuple[str, str], Path] = {}
    folder = tmp_path_factory.mktemp("tiny")

    def get(family: str, layout: str = "ldm") -> Path:
        if (family, layout) not in made:
            ending = ".safetensors" if layout == "ldm" else ""
            made[family, layout] = make_tiny(family, folder / f"{family}-{layout}{ending}", layout)
        return made[family, layout]

    return get


@pytest.fixture(scope="session")
def loaded_base(tiny_base):
    """`loaded_base("sd1")` -> a loaded tiny model shared by tests that do not change it."""
    from trainers.bases.loader import Base, load_base

    loaded: dict[str, Base] = {}

    def get(family: str) -> Base:
        if family not in loaded:
            loaded[family] = load_base(tiny_base(family))
        return loaded[family]

    return get


@pytest.fixture
def jobs(tmp_path):
    """A queue with the fake trainer; whatever still runs is killed at the end."""
    from jobs_helpers import fake_jobs, kill_all

    made = fake_jobs(tmp_path / "runs")
    yield made
    kill_all(made)
