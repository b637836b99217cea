"""The embedded host's API, through the client that people use for A1111's, and with hostile requests."""

from __future__ import annotations

import base64
import json

import pytest
from embedded_helpers import apart, make_studio, one, served, write_embedding, write_lora
from PIL import Image

pytest.importorskip("fastapi")
webuiapi = pytest.importorskip("webuiapi")
requests = pytest.importorskip("requests")

from extension.hosts.embedded.server import make_app  # noqa: E402

QUICK = {"steps": 2, "width": 64, "height": 64, "cfg_scale": 5, "seed": 7}


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    studio = make_studio(tmp_path_factory.mktemp("data"))
    write_lora(studio.places.adapters / "noisy.safetensors", studio)
    write_embedding(studio.places.embeddings / "blot.safetensors")
    write_embedding(studio.places.embeddings / "wide.safetensors", width=768)
    studio.rescan()
    return studio


@pytest.fixture(scope="module")
def port(studio):
    with served(make_app(studio, page=False)) as port:
        yield port


@pytest.fixture(scope="module")
def api(port):
    return webuiapi.WebUIApi(port=port, sampler="Euler", steps=2)


def test_the_client_draws_the_same_picture_as_the_host(api, studio):
    result = api.txt2img(prompt="a red circle", negative_prompt="blue", **QUICK)
    assert result.info["seed"] == 7 and result.info["infotexts"][0].startswith("a red circle\nNegative prompt: blue\n")
    assert result.parameters["prompt"] == "a red circle"
    assert result.image.info["parameters"] == result.info["infotexts"][0]
    own = one(studio, "a red circle", negative_prompt="blue", steps=2)
    assert result.image.size == (64, 64) and apart(result.image, own) == 0


def test_batches_seeds_and_tags(api):
    result = api.txt2img(prompt="a red circle <lora:noisy:0.5> <lora:nosy>", batch_size=2, n_iter=2, **QUICK)
    assert result.info["all_seeds"] == [7, 8, 9, 10] and len(result.images) == 4
    assert "Lora hashes: " in result.info["infotexts"][3]
    assert len(result.info["comments"]) == 1 and 'did you mean "noisy"' in result.info["comments"][0]


def test_img2img_with_a_mask_keeps_what_is_outside(api):
    start = Image.new("RGB", (64, 64), (200, 30, 30))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    result = api.img2img(
        images=[start], mask_image=mask, mask_blur=0, prompt="a blue square", denoising_strength=1.0, **QUICK
    )
    kept, drawn = result.image.crop((32, 0, 64, 64)), result.image.crop((0, 0, 32, 64))
    assert apart(kept, start.crop((32, 0, 64, 64))) == 0
    assert apart(drawn, start.crop((0, 0, 32, 64))) > 40


def test_lists_and_options_have_the_shapes_that_clients_read(api, studio):
    assert "Euler a" in api.util_get_sampler_names()
    assert "karras" in [name.lower() for name in api.util_get_scheduler_names()]
    assert api.util_get_model_names() == [studio.model.title]
    assert api.util_get_current_model() == studio.model.title
    lora = api.get_loras()[0]
    assert (lora["name"], lora["alias"]) == ("noisy", "noisy") and lora["path"].endswith("noisy.safetensors")
    found = api.get_embeddings()
    assert found["loaded"]["blot"]["vectors"] == 2 and found["loaded"]["blot"]["shape"] == 64
    assert list(found["skipped"]) == ["wide"]
    assert [one["name"] for one in api.get_upscalers()] == ["None", "Lanczos", "Nearest"]
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_progress()["progress"] == 0 and api.get_progress()["state"]["job_count"] == 0
    assert api.get_cmd_flags()["lora_dir"] == str(studio.places.adapters)
    api.set_options({**api.get_options(), "CLIP_stop_at_last_layers": 2})
    assert api.get_options()["CLIP_stop_at_last_layers"] == 2
    api.set_options({"CLIP_stop_at_last_layers": 1})
    api.util_set_model(studio.model.title)
    api.refresh_checkpoints()
    api.interrupt()
    assert requests.post(f"{api.baseurl}/refresh-loras", timeout=60).status_code == 200
    assert requests.post(f"{api.baseurl}/skip", timeout=60).status_code == 200


def test_png_info_reads_back_what_was_written(api):
    result = api.txt2img(prompt="a (red:1.2), circle", **QUICK)
    read = api.png_info(result.image)
    assert read.info == result.info["infotexts"][0]
    assert read.parameters["Prompt"] == "a (red:1.2), circle" and read.parameters["Seed"] == "7"


def test_an_infotext_stands_for_settings_that_are_not_given(port, api):
    text = api.txt2img(prompt="a red circle", **QUICK).info["infotexts"][0]
    answer = requests.post(f"http://127.0.0.1:{port}/sdapi/v1/txt2img", json={"infotext": text, "seed": 9}, timeout=60)
    info = json.loads(answer.json()["info"])
    assert (info["prompt"], info["seed"], info["steps"], info["width"]) == ("a red circle", 9, 2, 64)


HOSTILE = [
    ({"steps": 10**9}, "steps"),
    ({"steps": "many"}, "steps"),
    ({"cfg_scale": 1e99}, "cfg_scale"),
    ({"width": 65}, "multiple of 8"),
    ({"height": 100_000}, "between 8 and 8192"),
    ({"seed": 1.5}, "1.5 is not a whole number"),
    ({"width": 8192, "height": 8192}, "too large"),
    ({"seed": 2**70}, "seed"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": "x" * 100_001}, "characters"),
    ({"sampler_name": "Eulr"}, 'Did you mean "Euler"?'),
    ({"scheduler": "Karas"}, 'Did you mean "Karras"?'),
    ({"sampler_name": ["Euler"]}, "sampler_name"),
    ({"script_name": "x/y/z plot"}, "not found"),
    ({"alwayson_scripts": {"controlnet": {}}}, "not found"),
    ({"override_settings": {"sd_model_checkpoint": "../../etc/passwd"}}, "not found"),
    ({"enable_hr": True, "hr_upscaler": "ESRGAN"}, "hr_upscaler"),
    ({"batch_size": 10**6}, "batch_size"),
]


@pytest.mark.parametrize(("fields", "word"), HOSTILE, ids=[str(word)[:20] for _, word in HOSTILE])
def test_what_will_not_do_is_answered_with_a_sentence(port, fields, word):
    answer = requests.post(f"http://127.0.0.1:{port}/sdapi/v1/txt2img", json={**QUICK, **fields}, timeout=60)
    assert answer.status_code == 422
    assert word in answer.json()["detail"] and "Traceback" not in answer.text and "\n" not in answer.json()["detail"]


@pytest.mark.parametrize(
    "picture", ["", "no base64!", base64.b64encode(b"text").decode(), "http://127.0.0.1/x.png", 5, None]
)
def test_pictures_that_are_none_are_refused(port, picture):
    payload = {**QUICK, "init_images": [picture]}
    answer = requests.post(f"http://127.0.0.1:{port}/sdapi/v1/img2img", json=payload, timeout=60)
    assert answer.status_code == 422 and "init_images[0]" in answer.json()["detail"]


def test_a_body_that_is_no_object_is_refused(port):
    for body in ("[]", "{", "null", '"x"'):
        answer = requests.post(
            f"http://127.0.0.1:{port}/sdapi/v1/txt2img",
            data=body,
            headers={"Content-Type": "application/json"},
            timeout=60,
        )
        assert answer.status_code == 422 and answer.json()["detail"]
