"""Fixtures for the tests against Forge and reForge: a random model of SD1.5's shapes, and two servers to compare."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from older_methods import files_of_every_kind
from server import PROMPT, Drawn, Server

from trainers.formats import safetensors_io

OURS = "athanor-test"
FLAGS = (
    *("--always-cpu", "--all-in-fp32", "--skip-torch-cuda-test", "--skip-python-version-check"),
    *("--skip-version-check", "--no-hashing", "--no-download-sd-model", "--server-name", "127.0.0.1"),
)
BASE = "athanor-random-sd15.safetensors"
# What Forge's and reForge's loaders read: neither OFT and BOFT nor (IA)3, nor norm layers of text encoders.
THEIRS = ("lora", "locon", "tucker", "loha", "lokr", "lokr_full", "dora", "glora", "full", "full_bias")
SMALL = {"steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="session")
def patcher_folders(webui, which_webui):
    """Our folders in Forge or reForge."""
    if which_webui == "a1111":
        pytest.skip("the WebUI is neither Forge nor reForge")
    found = {"lora": webui / "models" / "Lora" / OURS, "embedding": webui / "embeddings" / OURS}
    for folder in found.values():
        folder.mkdir(parents=True, exist_ok=True)
    yield found
    for folder in found.values():
        shutil.rmtree(folder)


def make_checkpoint(webui: Path, host_python: str, which_webui: str, name: str) -> Path:
    """A random checkpoint, made by Forge's own networks unless it is there."""
    path = webui / "models" / "Stable-diffusion" / name
    if not path.exists():
        if which_webui != "forge":
            pytest.skip(f"needs {path}, which tests/real_host/forge_checkpoint.py makes in Forge's folder")
        script = Path(__file__).with_name("forge_checkpoint.py")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run([host_python, str(script), str(path)], cwd=webui, env=environment, check=True)
    return path


@pytest.fixture(scope="session")
def patcher_state(webui, patcher_folders, host_python, which_webui):
    """The tensors of the random SD1; its file stays for the next run."""
    return safetensors_io.load(make_checkpoint(webui, host_python, which_webui, BASE))[0]


@pytest.fixture(scope="session")
def patcher_adapters(webui, patcher_folders, patcher_state, given_files):
    """An adapter of every kind, and a file of each older method, there before the servers start."""
    with files_of_every_kind(webui, patcher_folders, patcher_state, given_files) as made:
        yield made


class Drawing:
    """One server, with small pictures; a picture that was drawn before is not drawn again."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._drawn: dict[str, Drawn] = {}

    def __call__(self, prompt: str = PROMPT, negative: str = "blurry", fresh: bool = False, **more) -> Drawn:
        key = repr((prompt, negative, sorted(more.items())))
        if fresh or key not in self._drawn:
            self._drawn[key] = self.server.draw(prompt, negative, **{**SMALL, **more})
        return self._drawn[key]

    @contextlib.contextmanager
    def forgotten(self) -> Iterator[None]:
        """Pictures from before are drawn again in here, and pictures from in here afterwards."""
        kept, self._drawn = self._drawn, {}
        try:
            yield
        finally:
            self._drawn = kept


@pytest.fixture(scope="session")
def patcher_servers(webui, host_python, patcher_adapters, neighbours, tmp_path_factory):
    """The WebUI with its extensions, and with its own only."""
    logs = tmp_path_factory.mktemp("hosts")
    flags = (*FLAGS, "--nowebui", "--ckpt", str(webui / "models" / "Stable-diffusion" / BASE))
    made = [
        Server(host_python, webui, logs / "with.log", flags),
        Server(host_python, webui, logs / "without.log", (*flags, "--disable-extra-extensions")),
    ]
    try:
        yield [Drawing(server.wait()) for server in made]
    finally:
        for server in made:
            server.stop()
