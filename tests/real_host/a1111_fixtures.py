"""Fixtures for the tests against AUTOMATIC1111: files in its folders, and two servers to compare."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from older_methods import files_of_every_kind
from server import Server

from trainers.formats import safetensors_io

OURS = "athanor-test"
FLAGS = (
    "--nowebui",
    "--use-cpu",
    "all",
    "--no-half",
    "--precision",
    "full",
    "--skip-torch-cuda-test",
    "--no-download-sd-model",
)
BASE = "athanor-base.safetensors"


@pytest.fixture(scope="session")
def a1111_folders(webui, kind_of_webui):
    if kind_of_webui != "a1111":
        pytest.skip("the WebUI is not AUTOMATIC1111")
    found = {"lora": webui / "models" / "Lora" / OURS, "embedding": webui / "embeddings" / OURS}
    for folder in found.values():
        folder.mkdir(parents=True, exist_ok=True)
    yield found
    for folder in found.values():
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def state(webui, a1111_folders):
    return safetensors_io.load(webui / "models" / "Stable-diffusion" / BASE)[0]


@pytest.fixture(scope="session")
def adapters(webui, a1111_folders, state, given_files):
    """An adapter of every kind, and a file of each older method, there before the servers start."""
    with files_of_every_kind(webui, a1111_folders, state, given_files) as made:
        yield made


@pytest.fixture(scope="session")
def neighbours(webui):
    """Two other extensions, one loaded before and one after ours, that own packages called as ours are."""
    source = Path(__file__).parent / "neighbours"
    made = [webui / "extensions" / one.name for one in source.iterdir() if one.is_dir()]
    for folder in made:
        shutil.copytree(source / folder.name, folder, dirs_exist_ok=True)
    yield
    for folder in made:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def servers(webui, host_python, adapters, neighbours, tmp_path_factory):
    logs = tmp_path_factory.mktemp("hosts")
    made = [
        Server(host_python, webui, logs / "with.log", FLAGS),
        Server(host_python, webui, logs / "without.log", (*FLAGS, "--disable-extra-extensions")),
    ]
    try:
        for server in made:
            server.wait()
            server.post("/sdapi/v1/options", {"sd_model_checkpoint": BASE})
        yield made
    finally:
        for server in made:
            server.stop()


@pytest.fixture
def ours(servers):
    yield servers[0]
    # Whatever a test did, a picture without tags is the host's own afterwards.
    assert servers[0].draw().away_from(servers[1].drawn()) == 0


@pytest.fixture
def alone(servers):
    return servers[1]
