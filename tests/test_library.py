"""The library: cards of the host's files and of runs, renaming, the trash, and grids that the host draws."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from jobs_helpers import fake_jobs, kill_all, look_until, until, values
from PIL import Image
from safetensors.torch import save_file

from extension.api import add_routes
from extension.grids import Drawing, Drawn
from extension.library import sample_near
from extension.workshop import Workshop
from trainers.errors import InputError

V1 = "/athanor/v1"
SITE = "lora_unet_mid_block_attentions_0_proj_in"


@pytest.fixture
def workshop(tmp_path):
    places = {"lora": tmp_path / "Lora", "textual_inversion": tmp_path / "embeddings"}
    (places["lora"] / "old ones").mkdir(parents=True)
    adapter = {f"{SITE}.lora_down.weight": torch.ones(4, 64), f"{SITE}.lora_up.weight": torch.ones(64, 4)}
    said = {"ss_network_dim": "4", "ss_steps": "700", "ss_sd_model_name": "base.safetensors"}
    save_file(adapter, places["lora"] / "old ones" / "cat.safetensors", said)
    (places["lora"] / "old ones" / "cat.json").write_text(json.dumps({"notes": "mine", "activation text": "zkw cat"}))
    Image.new("RGB", (8, 8)).save(places["lora"] / "old ones" / "cat.preview.png")
    (places["lora"] / "broken.safetensors").write_bytes(b"no such thing")
    made = Workshop(fake_jobs(tmp_path / "runs"), tmp_path / "pictures", results=places.get)
    yield made
    kill_all(made.jobs)


def serve(workshop) -> TestClient:
    app = FastAPI()
    add_routes(app, workshop)
    return TestClient(app, base_url="http://127.0.0.1")


def cards(client) -> dict[str, dict]:
    return {entry["name"]: entry for entry in client.get(f"{V1}/library").json()["entries"]}


def test_cards_say_what_a_file_is(workshop):
    found = cards(serve(workshop))
    cat = found["cat"]
    assert (cat["rank"], cat["steps"], cat["base"], cat["family"]) == (4, 700, "base.safetensors", "sd1")
    assert (cat["trigger"], cat["notes"], cat["sites"], cat["tag"]) == ("zkw cat", "mine", {"unet": 1}, "<lora:cat:1>")
    assert cat["picture"] and found["broken"]["problem"].startswith("broken.safetensors")


def test_a_file_is_renamed_and_thrown_away_with_what_is_beside_it(workshop):
    told = []
    workshop.changed = told.append
    client, folder = serve(workshop), workshop.results("lora") / "old ones"
    cat = cards(client)["cat"]["id"]
    assert client.get(f"{V1}/library/picture", params={"id": cat}).status_code == 200
    renamed = client.post(f"{V1}/library/rename", json={"id": cat, "name": "猫 two"}).json()["id"]
    assert sorted(path.name for path in folder.iterdir()) == ["猫 two.json", "猫 two.preview.png", "猫 two.safetensors"]
    assert cards(client)["猫 two"]["id"] == renamed
    for name in ("../out", "", "a:b"):
        assert client.post(f"{V1}/library/rename", json={"id": renamed, "name": name}).status_code == 422
    (folder / "dog.safetensors").write_bytes(b"")
    assert "already" in client.post(f"{V1}/library/rename", json={"id": renamed, "name": "dog"}).json()["problems"][0]
    for wanted in ("lora/../../x.safetensors", "/etc/passwd", cat, ""):
        assert client.post(f"{V1}/library/delete", json={"id": wanted}).status_code == 422
    assert client.post(f"{V1}/library/delete", json={"id": renamed}).status_code == 200
    kept = {path.name for path in (workshop.jobs.runs / ".trash" / "files").rglob("*.*")}
    assert kept == {"猫 two.json", "猫 two.preview.png", "猫 two.safetensors"} and told == ["lora", "lora"]


def test_a_run_and_its_file_in_the_host_are_one_card(workshop):
    client = serve(workshop)
    place = str(workshop.jobs.runs)
    client.post(f"{V1}/jobs", json={"job": values(base=place, data=place)})
    look_until(workshop.jobs, "ball", "done")
    assert (cards(client)["ball"]["id"], cards(client)["ball"]["run"]) == ("", "ball")
    client.post(f"{V1}/jobs/ball/publish", json={})
    (entry,) = [entry for entry in client.get(f"{V1}/library").json()["entries"] if entry["run"]]
    assert entry["id"] == "lora/ball.safetensors"
    client.post(f"{V1}/library/rename", json={"id": entry["id"], "name": "globe"})
    assert cards(client)["globe"]["run"] == "ball" and workshop.jobs.one("ball").published["name"] == "globe"
    client.post(f"{V1}/library/delete", json={"id": "lora/globe.safetensors"})
    assert workshop.jobs.one("ball").published["name"] == "" and cards(client)["ball"]["id"] == ""


def test_a_whole_model_is_said_to_be_among_the_hosts_and_a_job_file_hides_nothing(workshop, tmp_path):
    client, lora = serve(workshop), workshop.results("lora")
    place, models = str(workshop.jobs.runs), tmp_path / "models"
    workshop.results = {"dreambooth": models, "lora": lora}.get
    client.post(f"{V1}/jobs", json={"job": values(base=place, data=place, method="dreambooth")})
    look_until(workshop.jobs, "ball", "done")
    assert not cards(client)["ball"]["is_there"]
    client.post(f"{V1}/jobs/ball/publish", json={})
    (tmp_path / "job.yaml").write_text("method: lora\n")  # somebody's download, beside the host's folders
    assert cards(client)["ball"]["is_there"] and cards(client)["cat"]["id"]
    (models / "ball.safetensors").unlink()
    assert not cards(client)["ball"]["is_there"]


def test_a_grid_is_drawn_cell_by_cell_and_can_be_cancelled(workshop):
    asked, go_on = [], threading.Semaphore(0)

    def draw(drawing):
        asked.append(drawing)
        assert go_on.acquire(timeout=20)
        said = [f"{name}: 0 of 264 sites." for name in drawing.files if name in drawing.prompt]
        return Drawn(Image.new("RGB", (8, 8)), said)

    workshop.draw = draw
    client = serve(workshop)
    wish = {
        "id": "lora/old ones/cat.safetensors",
        "prompts": ["zkw cat", " ", "a house"],
        "weights": [0.5, 1],
        "steps": 7,
    }
    about = client.get(f"{V1}/library/grid/about", params={"id": wish["id"]}).json()
    assert about["steps"] == Drawing("").steps
    assert about["files"] == ["cat"] and about["prompts"][0] == "zkw cat" and "zkw" not in about["prompts"][-1]
    grid = client.post(f"{V1}/library/grid", json={**wish, "steps": 7}).json()
    assert (grid["total"], grid["drawing"]) == (6, True)
    assert client.post(f"{V1}/library/grid", json=wish).status_code == 422  # one at a time
    for _ in range(3):
        go_on.release()
    until(lambda: len(asked) == 4, 20)
    now = client.get(f"{V1}/library/grid", params={"name": grid["id"]}).json()
    drawn = [(cell["prompt"], cell["file"], cell["weight"]) for cell in now["cells"]]
    assert now["reports"] == ["cat: 0 of 264 sites."]
    assert drawn == [(0, None, 0), (1, None, 0), (0, 0, 1)]
    assert client.get(f"{V1}/library/grid/picture", params={"name": grid["id"], "cell": 2}).status_code == 200
    client.post(f"{V1}/library/grid/cancel", json={"name": grid["id"]})
    go_on.release()
    until(lambda: not client.get(f"{V1}/library/grid", params={"name": grid["id"]}).json()["drawing"], 20)
    assert len(asked) == 4 and now["steps"] == asked[3].steps == 7
    assert asked[0].prompt == "zkw cat" and asked[0].seed == asked[2].seed != asked[1].seed
    (name,) = asked[2].files
    assert asked[2].prompt == f"zkw cat <lora:{name}:1>" and asked[2].files[name].name == "cat.safetensors"


def test_what_a_grid_cannot_be_is_said(workshop):
    client, wish = serve(workshop), {"id": "lora/old ones/cat.safetensors", "prompts": ["x"], "weights": [1]}
    assert "no model" in client.post(f"{V1}/library/grid", json=wish).json()["problems"][0]

    def draw(drawing):
        raise InputError("Nothing is loaded.")

    workshop.draw = draw
    client = serve(workshop)
    wrong = (
        {"prompts": []},
        {"weights": ["x"]},
        {"weights": [1, "x"]},
        {"weights": [None, 1]},
        {"weights": [99]},
        {"prompts": "x"},
        {"prompts": ["x"] * 300},
    )
    for change in (*wrong, {"steps": 0}, {"steps": 2.5}, {"steps": True}):
        assert client.post(f"{V1}/library/grid", json={**wish, **change}).status_code == 422
    grid = client.post(f"{V1}/library/grid", json=wish).json()["id"]
    until(lambda: client.get(f"{V1}/library/grid", params={"name": grid}).json()["problem"] == "Nothing is loaded.", 20)
    for name in ("../runs", "", ".", "nothing"):
        assert client.get(f"{V1}/library/grid", params={"name": name}).status_code == 422


def test_the_picture_of_a_file_is_never_the_one_of_the_base_before_the_first_step():
    drawn = [{"step": step, "path": f"samples/{step}-{number}.png"} for step in (0, 20, 40) for number in (0, 1)]
    near = {step: sample_near(SimpleNamespace(samples=drawn), step) for step in (5, 20, 36)}
    assert near == {5: "samples/20-0.png", 20: "samples/20-0.png", 36: "samples/40-0.png"}
    assert sample_near(SimpleNamespace(samples=drawn[:2]), 10) == ""
