"""What methods beside LoRA write, in the WebUI alone, without this extension: pictures as in the embedded host.

A whole model as a checkpoint and as its difference from the base, an extracted LoRA, an embedding in both layouts and a
hypernetwork are trained for a few steps at rates that show, put into the WebUI's folders and drawn with.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from a1111_fixtures import BASE as A1111_BASE
from a1111_fixtures import FLAGS as A1111_FLAGS
from embedded_helpers import array, draw
from patcher_fixtures import BASE as PATCHER_BASE
from patcher_fixtures import FLAGS as PATCHER_FLAGS
from patcher_fixtures import make_checkpoint
from server import PROMPT, Server
from training_helpers import job_values, make_pictures

from extension.hosts.embedded.engine import Studio
from extension.hosts.embedded.places import Places
from trainers import running, spec
from trainers.formats.safetensors_io import read_header
from trainers.options import fields_for

NAME = "athanortaught"
UNET, WORD = f"{NAME}-unet", "athanorzog"
"""A model whose text encoder stayed as it was, and an embedding."""
ALIKE = 2
"""Largest difference, in 255ths, of pictures that two programs draw from the same weights."""

DREAMBOOTH = {"method": "dreambooth", "trained_layers": "attention", "learning_rate": 1e-3, "text_encoder_lr": 1e-3}
SMALL = {  # for a model of the published widths, within the memory that is there
    "optimizer": "adafactor", "fused_backward": True, "weights_dtype": "bf16", "max_grad_norm": 0, "precision": "bf16",
    "train_text_encoder": False, "steps": 1,
}  # fmt: skip


class Taught:
    """Trains on the base that the WebUI has, and puts the result where the WebUI looks."""

    def __init__(self, webui: Path, base: Path, work: Path, small: bool) -> None:
        self.webui, self.base, self.work, self.small = webui, base, work, small
        self.pictures = make_pictures(work / "pictures", 3, caption=f"a {WORD} on a table")
        self.placed: list[Path] = []

    def train(self, name: str, folder: str, **options) -> Path:
        """The placed file."""
        values = job_values(self.base, self.pictures, steps=3, name=name, save_dtype="fp16", verdict=False, **options)
        small = SMALL if self.small and options["method"] == "dreambooth" else {}
        known = {option.name for option in fields_for(options["method"])}
        job = spec.parse({key: value for key, value in {**values, **small}.items() if key in known | {"method", "run"}})
        run = self.work / f"{options['method']}-{name}"
        assert running.start(job, run) == 0
        results = [path for path in run.glob(f"{name}.*") if path.suffix in (".safetensors", ".pt")]
        self.placed += [self.put(path, folder) for path in results]
        return run / results[0].name

    def put(self, path: Path, folder: str) -> Path:
        target = self.webui / folder / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        return target


@pytest.fixture(scope="module")
def taught(webui, which_webui, host_python, tmp_path_factory):
    """Every file, in its place before the WebUI starts."""
    models = webui / "models" / "Stable-diffusion"
    base = (
        models / A1111_BASE
        if which_webui == "a1111"
        else make_checkpoint(webui, host_python, which_webui, PATCHER_BASE)
    )
    made = Taught(webui, base, tmp_path_factory.mktemp("taught"), small=which_webui != "a1111")
    try:
        made.train(NAME, "models/Stable-diffusion", **DREAMBOOTH)
        made.train(UNET, "models/Stable-diffusion", train_text_encoder=False, **DREAMBOOTH)
        made.train(f"{NAME}-difference", "models/Lora", output="difference", train_text_encoder=False, **DREAMBOOTH)
        made.train(f"{NAME}-lora", "models/Lora", output="lora", extracted_rank=4, **DREAMBOOTH)
        if which_webui == "a1111":
            for name in (NAME, UNET):
                made.placed.append(Path(shutil.copy(base.with_suffix(".yaml"), models / f"{name}.yaml")))
            for name, also_pt in ((WORD, False), (f"{WORD}pt", True)):
                made.train(name, "embeddings", method="textual_inversion", vectors=2, also_pt=also_pt, norm_limit=0,
                           learning_rate=0.3)  # fmt: skip
            unwanted = webui / "embeddings" / f"{WORD}pt.safetensors"
            unwanted.unlink()
            made.placed.remove(unwanted)
            made.train(NAME, "models/hypernetworks", method="hypernetwork", learning_rate=0.02, activation="relu",
                       layer_structure=["1", "2", "1"])  # fmt: skip
        yield made
    finally:
        for path in made.placed:
            path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def host(webui, which_webui, host_python, taught, tmp_path_factory):
    """The WebUI alone."""
    flags = (*A1111_FLAGS,) if which_webui == "a1111" else (*PATCHER_FLAGS, "--nowebui", "--ckpt", str(taught.base))
    log = tmp_path_factory.mktemp("host") / "alone.log"
    server = Server(host_python, webui, log, (*flags, "--disable-extra-extensions"))
    try:
        server.wait()
        server.post("/sdapi/v1/options", {"sd_model_checkpoint": taught.base.name})
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def embedded(taught, tmp_path_factory):
    """`embedded(prompt, model)`: what the embedded host draws from the same files."""
    data = Places(tmp_path_factory.mktemp("embedded"))
    for folder in ("adapters", "embeddings", "hypernetworks"):
        getattr(data, folder).mkdir(parents=True, exist_ok=True)
    for path in taught.placed:
        kind = {"Lora": data.adapters, "embeddings": data.embeddings, "hypernetworks": data.hypernetworks}
        if path.parent.name in kind:
            shutil.copy(path, kind[path.parent.name])
    studios: dict[Path, Studio] = {}

    def picture(prompt: str = PROMPT, model: Path | None = None):
        model = model or taught.base
        studio = studios.setdefault(model, Studio(model, data, device="cpu"))
        drawn = draw(studio, prompt, negative_prompt="blurry", sampler_name="Euler", steps=4, cfg_scale=5.0, seed=5,
                     width=64, height=64)  # fmt: skip
        assert not drawn.reports
        return array(drawn.pictures[0].image)

    return picture


def apart(drawn, picture) -> int:
    return int(abs(drawn.pictures[0].astype(int) - picture).max())


def model_of(taught, name: str = NAME) -> Path:
    return taught.webui / "models" / "Stable-diffusion" / f"{name}.safetensors"


def drawn_with(host, taught, name: str = NAME):
    """A picture of a taught model."""
    try:
        return host.draw(settings={"sd_model_checkpoint": f"{name}.safetensors"})
    finally:
        host.post("/sdapi/v1/options", {"sd_model_checkpoint": taught.base.name})


def test_the_checkpoint_has_the_originals_tensors(taught):
    """Key for key and shape for shape, the autoencoder too, but for what no program reads."""
    one, other = (read_header(path).tensors for path in (taught.base, model_of(taught)))
    shapes = [{name: tuple(tensor.shape) for name, tensor in side.items()} for side in (one, other)]
    extra = {name for name in shapes[1] if name not in shapes[0]}
    assert {name for name in shapes[0] if shapes[1].get(name) != shapes[0][name]} == set()
    assert extra <= {"cond_stage_model.transformer.text_model.embeddings.position_ids"}


def test_the_checkpoint_draws_as_in_the_embedded_host(host, taught, embedded):
    base, trained = host.draw(), drawn_with(host, taught)
    assert trained.away_from(base) > 10 and host.draw().away_from(base) == 0
    assert apart(base, embedded()) <= ALIKE and apart(trained, embedded(model=model_of(taught))) <= ALIKE


def test_the_difference_on_the_base_is_the_checkpoint(host, taught, embedded):
    text = f"{PROMPT} <lora:{NAME}-difference:1>"
    added = host.draw(text)
    assert added.away_from(drawn_with(host, taught, UNET)) <= ALIKE
    assert apart(added, embedded(text)) <= ALIKE


def test_the_extracted_lora_draws_as_in_the_embedded_host(host, taught, embedded):
    text = f"{PROMPT} <lora:{NAME}-lora:1>"
    extracted = host.draw(text)
    assert extracted.away_from(host.draw()) > 10 and apart(extracted, embedded(text)) <= ALIKE


@pytest.mark.parametrize("name", [WORD, f"{WORD}pt"])
def test_embeddings_draw_as_in_the_embedded_host(host, which_webui, embedded, name):
    if which_webui != "a1111":
        pytest.skip("the embeddings are for the embedded base")
    text = f"a {name} on a blue background"
    named = host.draw(text)
    assert f"{name}: " in named.infotext and named.away_from(host.draw("a on a blue background")) > 2
    assert apart(named, embedded(text)) <= ALIKE


def test_the_hypernetwork_draws_as_in_the_embedded_host(host, which_webui, embedded):
    if which_webui != "a1111":
        pytest.skip("this WebUI has dropped hypernetworks")
    text = f"{PROMPT} <hypernet:{NAME}:0.7>"
    drawn = host.draw(text)
    assert drawn.away_from(host.draw()) > 10 and apart(drawn, embedded(text)) <= ALIKE
