"""What a finished run says of itself: the best of its files, and the sheet of pictures with the recipe in it."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from training_helpers import events_of, job_values, make_pictures

from extension.jobs.manager import Jobs
from trainers import running, spec
from trainers.data.dataset import split_validation
from trainers.engine import best, verdict
from trainers.engine.best import Saved, choose
from trainers.engine.verdict import layout_for, spread
from trainers.errors import InputError
from trainers.formats.recipe_png import read_recipe, shareable
from trainers.methods import lora, lycoris_kinds


def test_the_best_is_the_lowest_loss_that_keeps_what_the_model_knew():
    early, middle, late = Saved(10, "a", 0.3, 1.01), Saved(20, "b", 0.2, 1.04), Saved(30, "c", 0.1, 1.06)
    assert (choose([early, middle]).best, choose([early, middle]).reason) == (middle, "lowest")
    assert (choose([early, middle, late]).best, choose([early, middle, late]).reason) == (middle, "kept")
    forgetting = [Saved(10, "a", 0.3, 1.3), Saved(20, "b", 0.2, 1.4)]
    assert (choose(forgetting).best.step, choose(forgetting).reason) == (10, "forgets")
    unmeasured = choose([Saved(10, "a"), Saved(20, "b")])
    assert (unmeasured.best.step, unmeasured.reason) == (20, "last") and "not measurable" in unmeasured.sentence()


def test_the_sheet_grows_with_the_time_there_is():
    assert layout_for(4, 6, True, 0.0, 1.0).pictures == 4
    assert layout_for(4, 6, True, 1000.0, 1.0).pictures == 4 * (1 + 5 * 3)
    one = layout_for(4, 6, False, 1000.0, 1.0)
    assert one.weights == (1.0,) and one.files == 5
    assert layout_for(4, 6, True, 30.0, 1.0).pictures <= 30
    files = [Saved(step, str(step)) for step in range(10)]
    assert [each.step for each in spread(files, 4, files[5])] == [0, 3, 5, 9]
    assert spread(files, 1, files[5]) == [files[5]]


@pytest.mark.parametrize(("count", "held_out"), [(11, 0), (12, 2), (25, 2), (60, 6), (200, 8)])
def test_a_tenth_is_held_out_from_twelve_pictures_on(count, held_out):
    class Picture:
        is_regularisation = False

        def __init__(self, number):
            self.sha256 = f"{number:064x}"

    job = spec.parse({"name": "x", "base": "b", "data": "d", "steps": 1, "find_best": True})
    trained, aside = split_validation([Picture(number) for number in range(count)], job)
    assert (len(trained), len(aside)) == (count - held_out, held_out)


@pytest.fixture(scope="module")
def judged(tiny_base, tmp_path_factory):
    """The run folder of a short run over twelve pictures, saved twice on the way."""
    folder = tmp_path_factory.mktemp("judged")
    values = job_values(
        tiny_base("sd1"), make_pictures(folder / "data", 12, caption="secret caption {n}"), verdict=True,
        find_best=True, save_every=2, steps=6, trigger="zkw ball", sample_steps=2, author="Somebody", rslora=True,
        learning_rate=0.01,
    )  # fmt: skip
    assert running.start(spec.parse(values), folder / "run") == 0
    return folder / "run"


def test_a_run_ends_with_its_best_file_and_a_sheet(judged):
    (said,), (drawn,) = events_of(judged, "best"), events_of(judged, "verdict")
    losses = {event["step"]: event["loss"] for event in events_of(judged, "validation")}
    assert set(losses) == {0, 2, 4, 6}
    assert said["step"] == min((2, 4, 6), key=losses.get) and said["reason"] == "lowest"
    assert 0.9 < said["prior"] < 1.05 and all(event["prior_base_loss"] > 0 for event in events_of(judged, "validation"))
    assert (judged / said["path"]).is_file() and drawn["step"] == said["step"]
    with Image.open(judged / drawn["path"]) as sheet:
        assert sheet.width > 3 * 128 and sheet.height > len(drawn["prompts"]) * 128
    kinds = [event["event"] for event in events_of(judged)]
    assert kinds[-1] == "done" and kinds.index("best") < kinds.index("verdict")


def test_the_sheet_carries_the_recipe_and_nothing_else(judged, tmp_path):
    data = (judged / "verdict" / "sheet.png").read_bytes()
    for private in (str(judged.parent), "secret caption", "Somebody", "safetensors/"):
        assert private.encode() not in data
    said = read_recipe(data)
    assert said["values"]["trigger"] == "zkw ball" and said["values"]["learning_rate"] == 0.01
    assert said["base"]["name"].endswith(".safetensors") and len(said["base"]["sha256"]) == 64
    again = spec.parse({**said["values"], "base": "b", "data": "d"})
    done = spec.parse(spec.read_yaml(judged / "job.yaml"))
    differing = {name for name in again if again[name] != done[name]}
    assert differing <= {
        "base",
        "data",
        "device",
        "threads",
        "precision",
        "base_dtype",
        "gradient_checkpointing",
        "author",
    }
    Image.open(judged / "verdict" / "sheet.png").save(tmp_path / "converted.png")
    with pytest.raises(InputError, match="holds no recipe"):
        read_recipe((tmp_path / "converted.png").read_bytes())


def test_a_recipe_from_elsewhere_brings_only_options(judged):
    from PIL.PngImagePlugin import PngInfo

    def png(content: str) -> bytes:
        from io import BytesIO

        chunk, out = PngInfo(), BytesIO()
        chunk.add_text("athanor", content)
        Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=chunk)
        return out.getvalue()

    hostile = {"method": "lora", "options": {"data": "/etc", "rank": "many", "alpha": 2, "<b>": 1, "cache_dir": "/"}}
    said = read_recipe(png(json.dumps(hostile)))
    at_default = spec.parse({"name": "x", "base": "b", "data": "d", "steps": 1})
    differing = {name for name, value in said["values"].items() if at_default.get(name) != value}
    assert differing == {"alpha", "name", "steps"} and said["values"]["alpha"] == 2.0
    assert not {"data", "rank", "cache_dir", "device", "publish"} & said["values"].keys()
    assert said["left_out"] == ["data", "rank", "<b>", "cache_dir"]
    for broken in ("[" * 100000, "[]", "{}", "null", '{"method": 1, "options": {}}'):
        with pytest.raises(InputError):
            read_recipe(png(broken))
    with pytest.raises(InputError, match="nor a PNG"):
        read_recipe(b"GIF89a")
    job = spec.parse({"name": "x", "base": "b", "data": "d", "steps": 1, "vae": "/a/vae.pt"})
    assert "vae.pt" not in shareable(job, "b", None)


def _without_rank(values):
    return {name: value for name, value in values.items() if name != "rank"}


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"method": "hypernetwork", "learning_rate": 0.01}, 3),
        ({"method": "dreambooth", "learning_rate": 1e-3, "save_dtype": "fp32", "trained_layers": "cross_attention"}, 1),
    ],
    ids=["hypernetwork", "dreambooth"],
)
def test_whole_models_and_hypernetworks_have_a_sheet_too(options, weights, tiny_base, tmp_path, monkeypatch):
    """Two files, each drawn with its own weights; the best one is told, and the queue's view shows the sheet."""
    drawn = []
    real = verdict.sampling.draw_one
    monkeypatch.setattr(verdict, "LEAST_SECONDS", 1000.0)
    monkeypatch.setattr(
        verdict.sampling, "draw_one", lambda *given, **more: drawn.append(real(*given, **more)) or drawn[-1]
    )
    values = job_values(
        tiny_base("sd1"), make_pictures(tmp_path / "data", 12), name="zog", trigger="zog", find_best=True, save_every=1,
        steps=2, validation_draws=1, sample_prompts=["zog"], sample_steps=2, **options,
    )  # fmt: skip
    run = tmp_path / "runs" / "run"
    assert running.start(spec.parse(_without_rank(values)), run) == 0
    (said,) = events_of(run, "verdict")
    assert (said["steps"], len(said["weights"])) == ([1, 2], weights)
    before, *after = [picture.tobytes() for picture in drawn[-(1 + 2 * weights) :]]
    assert len({before, *after}) == 1 + 2 * weights, "every file and strength is another picture"
    view = Jobs(tmp_path / "runs").one("run")
    assert view.verdict["path"] == "verdict/sheet.png" and view.best["reason"] in ("lowest", "kept", "forgets")
    assert view.best_file == said_best(run)


def said_best(run):
    return events_of(run, "best")[0]["path"]


@pytest.mark.parametrize("output", ["checkpoint", "diffusers", "lora", "difference"])
def test_a_whole_model_is_drawn_with_as_its_file_says(output, tiny_base, tmp_path):
    from trainers.bases.loader import load_base
    from trainers.engine.session import check_base
    from trainers.methods import dreambooth

    values = job_values(
        tiny_base("sd1"),
        tmp_path,
        method="dreambooth",
        output=output,
        extracted_rank=1024,
        save_dtype="fp32",
        trigger="x",
        blocks=["mid", "text"],
    )
    job, info = check_base(spec.parse(_without_rank(values)))
    trainable = dreambooth.setup(load_base(info.path, info=info), job)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in trainable.tensors().values():
            if tensor.ndim > 1:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.01)
    trained = {name: tensor.detach().clone() for name, tensor in trainable.tensors().items()}
    file = tmp_path / ("model" if output == "diffusers" else "model.safetensors")
    trainable.save(file, {"modelspec.architecture": "stable-diffusion-v1"})
    with torch.no_grad():
        for tensor in trainable.tensors().values():
            tensor.zero_()
    trainable.wear(file)
    for name, tensor in trainable.tensors().items():
        assert torch.allclose(tensor, trained[name], atol=1e-4), name


@pytest.mark.parametrize("kind", ["lora", "loha", "dora"])
def test_half_strength_is_half_the_change(tiny_base, tmp_path, kind):
    """Drawn at another strength as a prompt's weight draws: the same as the file's own scale changed by it."""
    from trainers.bases.loader import load_base
    from trainers.engine.session import check_base

    values = job_values(tiny_base("sd1"), tmp_path, kind=kind, train_text_encoder=False, trigger="x")
    job, info = check_base(spec.parse(values))
    base = load_base(info.path, info=info)
    base.unet.requires_grad_(False)
    trainable = lora.setup(base, job)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in trainable.tensors().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)
    layer = base.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    x = torch.randn(1, 3, layer.in_features, generator=generator)
    with torch.no_grad(), trainable.at_rest():
        full = layer(x)
        with trainable.without():
            plain = layer(x)
        with trainable.scaled(0.0):
            none = layer(x)
        with trainable.scaled(0.5):
            half = layer(x)
        assert torch.equal(layer(x), full)
    assert torch.allclose(none, plain, atol=1e-5) and not torch.allclose(full, plain, atol=1e-3)
    assert torch.allclose(half - plain, (full - plain) / 2, atol=1e-5)
    assert isinstance(trainable, lora.LoraTrainable if kind == "lora" else lycoris_kinds.KindTrainable)


def test_measured_files_are_read_from_the_events(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"")
    lines = [
        {"event": "validation", "step": 2, "loss": 0.5, "prior_loss": 0.2, "prior_base_loss": 0.1},
        {"event": "saved", "step": 2, "kind": "intermediate", "path": "a.safetensors"},
        {"event": "saved", "step": 2, "kind": "state", "path": "state/current"},
        {"event": "saved", "step": 4, "kind": "result", "path": "gone.safetensors"},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert best.best_of_run(tmp_path / "events.jsonl").files == (Saved(2, "a.safetensors", 0.5, 2.0),)
