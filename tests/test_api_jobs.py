"""The HTTP routes: what they answer, whom they refuse, and what they never reach."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jobs_helpers import fake_jobs, kill_all, look_until, until, values
from PIL import Image

fastapi = pytest.importorskip("fastapi")
pytest.importorskip("httpx")
from fastapi.testclient import TestClient  # noqa: E402

from extension import publishing  # noqa: E402
from extension.api import add_routes  # noqa: E402
from extension.grids import Drawn  # noqa: E402
from extension.jobs.files import write_json  # noqa: E402
from extension.jobs.processes import Identity  # noqa: E402
from extension.recipes import Base  # noqa: E402
from extension.workshop import Workshop  # noqa: E402

V1 = "/athanor/v1"


def png(side: int = 16, colour: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def workshop(tmp_path):
    base = tmp_path / "models" / "b.safetensors"
    base.parent.mkdir()
    base.write_bytes(b"x")
    made = Workshop(
        fake_jobs(tmp_path / "host" / "runs"),
        tmp_path / "host" / "pictures",
        lambda: [Base(base, "b", "sd1", 64, True)],
    )
    made.pictures.mkdir(parents=True)
    yield made
    kill_all(made.jobs)


@pytest.fixture
def client(workshop):
    app = fastapi.FastAPI()
    add_routes(app, workshop)
    return TestClient(app, base_url="http://127.0.0.1")


@pytest.fixture
def job(workshop):
    return values(base=str(workshop.bases()[0].path), data=str(workshop.pictures))


def test_the_page_may_use_the_clip_model_that_comes_with_the_project(client, workshop):
    asked = {"base": str(workshop.bases()[0].path), "method": "aesthetic_gradient"}
    composed = client.post(f"{V1}/recipes/compose", json=asked).json()["values"]
    assert Path(composed["clip_model"], "model.safetensors").is_file()
    assert workshop.checked(composed)["clip_model"] == composed["clip_model"]


def test_a_job_from_submission_to_result(client, workshop, job):
    made = client.post(f"{V1}/jobs", json={"job": {**job, "sample_prompts": ["a"]}, "key": "one"}).json()
    assert (made["id"], made["state"]) == ("ball", "queued")
    assert client.post(f"{V1}/jobs", json={"job": job, "key": "one"}).json()["id"] == "ball"
    look_until(workshop.jobs, "ball", "done")
    shown = client.get(f"{V1}/jobs/ball").json()
    assert [each[0] for each in shown["losses"]] == [1, 2, 3, 4, 5]
    later = client.get(f"{V1}/jobs/ball?since=3&generation={shown['generation']}").json()
    assert [each[0] for each in later["losses"]] == [4, 5]
    events = client.get(f"{V1}/jobs/ball/events").json()
    assert events["events"][-1]["event"] == "done"
    assert client.get(f"{V1}/jobs/ball/events?offset={events['offset']}").json()["events"] == []
    assert client.get(f"{V1}/jobs").json()["jobs"][0]["id"] == "ball"
    assert "name: ball" in client.get(f"{V1}/jobs/ball/job.yaml").text
    (entry,) = client.get(f"{V1}/library").json()["entries"]
    assert entry["tag"] == "<lora:ball:1>" and entry["finished"]


def test_a_result_is_put_where_the_host_looks(client, workshop, job, tmp_path):
    client.post(f"{V1}/jobs", json={"job": {**job, "trigger": "sks ball"}})
    look_until(workshop.jobs, "ball", "done")
    publish = {"file": "ball.safetensors"}
    assert client.post(f"{V1}/jobs/ball/publish", json=publish).json()["tag"] == "<lora:ball:1>"
    told = []
    workshop.results, workshop.changed = lambda method: tmp_path / "Lora", told.append
    for _ in range(2):
        assert client.post(f"{V1}/jobs/ball/publish", json=publish).json()["name"] == "ball"
    assert told == ["lora"] and "sks ball" in (tmp_path / "Lora" / "ball.json").read_text()
    (tmp_path / "Lora" / "ball.safetensors").write_bytes(b"another's")
    assert client.post(f"{V1}/jobs/ball/publish", json=publish).json() == {"taken": "ball", "free": "ball-2"}
    assert (tmp_path / "Lora" / "ball.safetensors").read_bytes() == b"another's"
    aside = client.post(f"{V1}/jobs/ball/publish", json={**publish, "name": "ball-2"}).json()
    assert aside["tag"] == "<lora:ball-2:1>" and told == ["lora", "lora"]
    replaced = client.post(f"{V1}/jobs/ball/publish", json={"replace": True}).json()
    assert replaced["tag"] == "<lora:ball:1>" and not list((tmp_path / "Lora").glob(".*"))
    (kept,) = (workshop.jobs.runs / ".trash" / "files").glob("*/ball.safetensors")
    assert kept.read_bytes() == b"another's"
    card = tmp_path / "Lora" / "ball.json"
    for notes, left in (("step 9 is best", ""), ("mine", "mine")):  # what we said of the file that gives way is old
        write_json(card, {"notes": notes, publishing.OUR_NOTES: "step 9 is best"})
        (tmp_path / "Lora" / "ball.safetensors").write_bytes(b"another's")
        client.post(f"{V1}/jobs/ball/publish", json={"replace": True})
        assert json.loads(card.read_text())["notes"] == left
    assert client.post(f"{V1}/jobs/ball/publish", json={"name": "../x", "replace": True}).status_code == 422
    for file in ("../ball/job.yaml", "job.yaml", "/etc/passwd"):
        assert client.post(f"{V1}/jobs/ball/publish", json={"file": file}).status_code == 422


def test_a_full_disk_leaves_the_file_with_its_run(client, workshop, job, tmp_path, monkeypatch):
    client.post(f"{V1}/jobs", json={"job": {**job, "publish": True}})
    look_until(workshop.jobs, "ball", "done")
    workshop.results = lambda method: tmp_path / "Lora"
    publisher = publishing.Publisher(workshop)

    def half(source, target):
        Path(target).write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(publishing.shutil, "copyfile", half)
        refused = client.post(f"{V1}/jobs/ball/publish", json={})
        assert refused.status_code == 422 and "the disk is full" in refused.json()["problems"][0]
        assert list((tmp_path / "Lora").iterdir()) == [] and (workshop.jobs.runs / "ball/ball.safetensors").is_file()
        full.setattr(publishing, "write_json", lambda *given: half(None, tmp_path / "y"))
        publisher.look()  # not even a note of it can be written
    assert client.get(f"{V1}/jobs/ball").json()["published"] is None
    monkeypatch.setattr(publishing.time, "monotonic", lambda: 1e12)  # a while later there is room
    publisher.look()
    assert client.get(f"{V1}/jobs/ball").json()["published"]["name"] == "ball"


def test_of_two_hosts_the_one_that_trained_puts_the_file_into_its_folder(client, workshop, job, tmp_path):
    client.post(f"{V1}/jobs", json={"job": {**job, "publish": True}})
    look_until(workshop.jobs, "ball", "done")
    workshop.results = lambda method: tmp_path / "Lora"
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        write_json(workshop.jobs.runs / "ball" / "lease.json", {"host": vars(Identity.of(other.pid))})
        publishing.Publisher(workshop).look()
        assert not (tmp_path / "Lora").exists()
    finally:
        other.communicate(b"\n")
    publishing.Publisher(workshop).look()
    assert (tmp_path / "Lora" / "ball.safetensors").is_file()


HOSTILE = (
    {"name": "../../x"}, {"name": "a\0b"}, {"name": "x" * 5000}, {"name": {"a": 1}}, {"rank": 1e400}, {"rank": -1},
    {"rank": float("nan")}, {"steps": 10**30}, {"steps": "9" * 5000}, {"seed": True}, {"trigger": ["a"]},
    {"method": "__class__"}, {"method": ["lora"]}, {"comment": {"$ref": "x"}}, {"sample_prompts": "a" * 10},
    {"block_lrs": [[1]]}, {"override_checks": [{"a": 1}]}, {"device": "cuda:0; rm -rf /"}, {"run": "x"},
    {"run": {"host_clip_skip": "x", "session_id": 5}}, {"optimizer_args": ["__import__=os"]},
    {"data": "/etc"}, {"base": "file:///etc/passwd"}, {"init_from": "/etc/passwd"}, {"cache_dir": "/tmp"},
    {"vae": "\\\\host\\share"}, {"template": "~root/.ssh/id_rsa"}, {"<script>": 1}, {"": 1}, {"__proto__": {}},
)  # fmt: skip


def test_hostile_values_end_in_sentences_or_in_an_ordinary_job(client, workshop, job):
    """Whatever is sent: no fault of ours, nothing outside the runs, and what is accepted reads back as plain YAML."""
    runs = workshop.jobs.runs
    for changes in HOSTILE:
        body = json.dumps({"job": {**job, **changes}})
        for path in ("job/write", "jobs"):
            answer = client.post(f"{V1}/{path}", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in (200, 400, 422), (changes, answer.text[:300])
        made = list(runs.glob("[!.]*"))
        assert len(made) == (1 if answer.status_code == 200 else 0), changes
        for run in made:
            assert run.resolve().parent == runs.resolve()
            written = (run / "request.yaml").read_text(encoding="utf-8")
            assert "!!python" not in written and yaml.safe_load(written)["name"], changes
            assert "session_id" not in yaml.safe_load(written).get("run", {})
            workshop.jobs.delete(run.name)


def test_a_result_is_put_there_by_itself_where_that_was_asked_for(client, workshop, job, tmp_path):
    workshop.results = lambda method: tmp_path / "Lora"
    workshop.start()
    try:
        client.post(f"{V1}/jobs", json={"job": {**job, "publish": True}})
        until(lambda: client.get(f"{V1}/jobs/ball").json()["published"], 60)
        assert (tmp_path / "Lora" / "ball.safetensors").is_file()
        (tmp_path / "Lora" / "ball.safetensors").write_bytes(b"another's")
        for name in ("ball", "bowl"):
            client.post(f"{V1}/jobs", json={"job": {**job, "name": name, "publish": name == "ball"}})
        until(lambda: client.get(f"{V1}/jobs/ball-2").json()["published"], 60)
        assert client.get(f"{V1}/jobs/ball-2").json()["published"] == {"taken": "ball", "free": "ball-2"}
        assert (tmp_path / "Lora" / "ball.safetensors").read_bytes() == b"another's"  # never without being asked
        until(lambda: client.get(f"{V1}/jobs/bowl").json()["state"] == "done", 60)
        assert not (tmp_path / "Lora" / "bowl.safetensors").exists()
    finally:
        workshop.jobs.close()


def test_actions(client, workshop, job):
    for name in ("a", "b"):
        client.post(f"{V1}/jobs", json={"job": {**job, "name": name}})
    assert client.post(f"{V1}/jobs/b/move", json={"where": "up"}).json()["place"] == 1
    assert client.post(f"{V1}/jobs/b/stop").json()["state"] == "stopped"
    assert client.post(f"{V1}/jobs/b/save").status_code == 422
    assert client.post(f"{V1}/jobs/b/explode").status_code == 422
    again = client.post(f"{V1}/jobs/b/again", json={"changes": {"rank": 8}}).json()
    assert client.get(f"{V1}/jobs/{again['id']}/job").json()["job"]["rank"] == 8
    assert client.post(f"{V1}/jobs/b/delete").json() == {"done": "delete"}
    assert client.get(f"{V1}/jobs/b").status_code == 404
    assert client.post(f"{V1}/jobs/b/restore").json()["state"] == "stopped"


def test_problems_are_sentences(client, job):
    answer = client.post(f"{V1}/jobs", json={"job": {**job, "rnak": 1, "steps": "many"}})
    assert answer.status_code == 422
    assert any("rnak" in problem for problem in answer.json()["problems"]) and len(answer.json()["problems"]) == 2
    for body in ([], "x", {"job": [1]}, {"job": job, "key": 5}):
        refused = client.post(f"{V1}/jobs", json=body)
        assert refused.status_code == 422 and refused.json()["problems"][0].endswith("."), body
    assert client.get(f"{V1}/jobs/x/log?lines=-1").status_code == 422


@pytest.mark.parametrize("name", ["%2e%2e", "..%2f..%2fetc", "a%00b", ".trash", "%5c..%5c", "con:", "x" * 300])
def test_hostile_names_are_refused_in_one_sentence(client, job, name):
    client.post(f"{V1}/jobs", json={"job": job})
    for path in (f"jobs/{name}", f"jobs/{name}/log", f"jobs/{name}/job.yaml", f"jobs/ball/samples/{name}"):
        answer = client.get(f"{V1}/{path}")
        assert 400 <= answer.status_code < 500, path
    assert 400 <= client.post(f"{V1}/jobs/{name}/delete").status_code < 500


def test_paths_outside_the_folders_are_refused(client, workshop, job, tmp_path):
    outside = tmp_path / "secret"
    outside.mkdir()
    (outside / "a.png").write_bytes(png())
    os.symlink(outside, workshop.pictures / "link", target_is_directory=True)
    for data in (str(outside), str(workshop.pictures / ".." / ".." / "secret"), str(workshop.pictures / "link"), "rel"):
        answer = client.post(f"{V1}/jobs", json={"job": {**job, "data": data}})
        assert answer.status_code == 422 and "may use" in answer.json()["problems"][0], data
        assert client.get(f"{V1}/data", params={"folder": data}).status_code == 422
    for file in ("../../secret/a.png", "link/a.png", str(outside / "a.png"), "a\0.png", ""):
        answer = client.get(f"{V1}/data/thumbnail", params={"folder": str(workshop.pictures), "file": file})
        assert answer.status_code == 422, file
    assert client.post(f"{V1}/data/folders", json={"path": str(outside)}).json()["folder"] == str(outside)
    assert client.get(f"{V1}/data", params={"folder": str(outside)}).status_code == 200


def test_only_a_person_at_this_machine_adds_folders(client, tmp_path):
    for headers in ({"X-Forwarded-For": "1.2.3.4"}, {"Host": "rebound.example:7860"}):  # another's name for 127.0.0.1
        refused = client.post(f"{V1}/data/folders", json={"path": str(tmp_path)}, headers=headers)
        assert refused.status_code == 403
    for host in ("[::1]:7860", "LocalHost", "0.0.0.0:7860"):  # the last is what a WebUI prints with --listen
        answer = client.post(f"{V1}/data/folders", json={"path": str(tmp_path)}, headers={"Host": host})
        assert answer.status_code == 200, host


def test_other_sites_change_nothing(client, job):
    foreign = {"Origin": "https://example.org"}
    assert client.post(f"{V1}/jobs", json={"job": job}, headers=foreign).status_code == 403
    for site in ("cross-site", "same-site", "none", ""):
        answer = client.post(f"{V1}/jobs", json={"job": job}, headers={**foreign, "Sec-Fetch-Site": site})
        assert answer.status_code == 403, site
    assert client.get(f"{V1}/jobs", headers=foreign).json() == {"jobs": []}
    assert client.post(f"{V1}/jobs", json={"job": job}, headers={"Origin": "http://127.0.0.1"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "192.168.1.7:7860", "Origin": "http://192.168.1.7:7860"},  # --listen
        {"Host": "abc.gradio.live", "Origin": "https://abc.gradio.live"},  # --share
        {"Host": "127.0.0.1:7860", "X-Forwarded-Host": "art.example", "Origin": "https://art.example"},
        {
            "Host": "127.0.0.1:7860",
            "Sec-Fetch-Site": "same-origin",
            "Origin": "https://art.example",
        },  # plain proxy_pass
    ],
)
def test_the_page_works_under_every_address_that_leads_to_it(client, job, headers):
    assert client.post(f"{V1}/jobs", json={"job": job}, headers=headers).status_code == 200


def test_the_hosts_authentication_applies_to_every_route(workshop):
    def authorise() -> None:
        raise fastapi.HTTPException(401, "Who are you?")

    app = fastapi.FastAPI()
    add_routes(app, workshop, authorise)
    client = TestClient(app, base_url="http://127.0.0.1")
    paths = [(path, method) for path, ways in app.openapi()["paths"].items() for method in ways]
    assert len(paths) >= 18
    for path, method in paths:
        path = re.sub(r"{\w+}", "x", path)
        assert client.request(method, path, params={"folder": "f", "file": "f", "name": "n"}).status_code == 401, path


def test_options_recipes_and_bases(client, workshop):
    schema = client.get(f"{V1}/schema").json()
    assert {"name", "help", "kind", "default", "level"} <= set(schema["options"][0])
    assert client.get(f"{V1}/schema?method=nonsense").status_code == 422
    base = str(workshop.bases()[0].path)
    body = {"base": base, "purpose": "object", "pace": "quick"}
    composed = client.post(f"{V1}/recipes/compose", json=body).json()
    full = client.post(f"{V1}/recipes/compose", json={**body, "pace": "balanced"}).json()
    assert composed["preset"] == "demo"
    assert composed["values"]["steps"] == round(0.4 * full["values"]["steps"])
    for wrong in ({"purpose": "cheese"}, {"pace": "never"}, {"preset": "../demo"}):
        assert client.post(f"{V1}/recipes/compose", json={**body, **wrong}).status_code == 422
    assert client.get(f"{V1}/bases").json()["bases"][0]["loaded"]
    assert client.get(f"{V1}/me").json()["local"]


def test_the_hosts_clip_skip_is_for_sd1_alone(workshop, job):
    workshop.clip_skip = lambda: 1
    for family, skip, run in (("sd1", 1, {"host_clip_skip": 1}), ("sd2", None, {}), ("sdxl", None, {})):
        workshop.bases = lambda family=family: [Base(Path(job["base"]), "x", family)]
        done = workshop.completed(job)
        assert (done.get("clip_skip"), done["run"]) == (skip, run), family


def test_a_word_is_drawn_with_the_loaded_model(client, workshop):
    assert client.post(f"{V1}/bases/draw", json={"prompt": "ball"}).status_code == 422  # nothing draws here
    asked = []
    workshop.draw = lambda drawing: asked.append(drawing) or Drawn(Image.new("RGB", (8, 8), "red"))
    assert client.get(f"{V1}/bases").json()["can_draw"]
    picture = client.post(f"{V1}/bases/draw", json={"prompt": "ball", "seed": 43}).json()["picture"]
    kind, _, encoded = picture.partition(",")
    assert kind == "data:image/png;base64" and Image.open(io.BytesIO(base64.b64decode(encoded))).size == (8, 8)
    assert (asked[0].prompt, asked[0].seed, asked[0].files) == ("ball", 43, {})
