"""Small parts of a run, each by itself: no model is trained here."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_helpers import job_values

from trainers import cli, options, running, spec
from trainers.bases.detect import inspect_base
from trainers.bases.loader import noise_schedule
from trainers.display import Display
from trainers.engine import runfolder, sampling, session
from trainers.engine.validation import held_out_loss
from trainers.engine.world import World
from trainers.errors import InputError
from trainers.events import EventLog, is_waiting, read_events, send_command, take_commands


def option(name: str) -> spec.Field:
    return next(each for each in options.FIELDS if each.name == name)


@pytest.mark.parametrize("seed", [2**53 + 1, str(2**53 + 1), 2**63 - 1])
def test_a_large_seed_keeps_all_its_digits(seed):
    assert spec.convert(option("seed"), seed) == int(seed)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", 10**400),
        ("learning_rate", 10**400),
        ("learning_rate", "nan"),
        ("rank", "1e400"),
        ("block_ranks", {"mid": float("nan")}),
        ("block_lrs", "mid=inf"),
        ("block_lrs", {"mid": 10**400}),
    ],
)
def test_numbers_that_are_none_are_rejected_in_a_sentence(name, value):
    with pytest.raises(InputError, match=name):
        spec.convert(option(name), value)


@pytest.mark.parametrize(("written", "read"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on")])
def test_on_and_off_need_no_quotes_in_a_job_file(tmp_path, written, read):
    (tmp_path / "job.yaml").write_text(f"gradient_checkpointing: {written}\n", encoding="utf-8")
    raw = spec.read_yaml(tmp_path / "job.yaml")["gradient_checkpointing"]
    assert spec.convert(option("gradient_checkpointing"), raw) == read


@pytest.mark.parametrize("text", ["name: 2024-13-45\n", "a: " + "[" * 5000])
def test_yaml_that_cannot_be_made_is_rejected_in_a_sentence(tmp_path, text):
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="YAML"):
        spec.read_yaml(tmp_path / "job.yaml")


def test_a_folder_whose_name_starts_with_a_tilde(tmp_path):
    raw = cli.absolute_paths({"data": "~nobody-of-this-name/x", "base": "a\0b"}, tmp_path)
    assert Path(raw["data"]) == tmp_path.resolve() / "~nobody-of-this-name" / "x"
    assert raw["base"] == "a\0b"


# --- events and the terminal


def test_events_carry_names_that_are_no_text(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.emit("note", text="bild-\udcff 图.png")
    log.close()
    events, _ = read_events(tmp_path / "events.jsonl")
    assert events[0]["text"] == "bild-\udcff 图.png"


def test_a_full_disk_leaves_no_half_line(tmp_path):
    class Full(io.FileIO):
        room = 10**6

        def write(self, data):
            return super().write(data[: self.room])

    log = EventLog(tmp_path / "events.jsonl")
    log._file = Full(tmp_path / "events.jsonl", "ab")
    log.emit("note", text="first")
    log._file.room = 7
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        log.emit("note", text="second")
    log._file.room = 10**6
    log.emit("note", text="third")
    log.close()
    assert [event["text"] for event in read_events(tmp_path / "events.jsonl")[0]] == ["first", "third"]


def test_a_command_that_its_writer_still_holds_is_taken_later(tmp_path, monkeypatch):
    send_command(tmp_path, "save")
    with monkeypatch.context() as held:
        held.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
        assert take_commands(tmp_path) == set()
    assert is_waiting(tmp_path, "save") and take_commands(tmp_path) == {"save"}
    assert not is_waiting(tmp_path, "save")


def test_a_run_goes_on_when_nobody_watches_any_more():
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    display = Display(Broken())
    display.line("a line")
    display.step(1, 2, 0.5, 3.0)
    assert display.quiet


def test_a_reader_that_has_the_file_open_on_windows_is_waited_for(tmp_path, monkeypatch):
    real, refused = os.replace, []

    def refuse_twice(source, target):
        if len(refused) < 2:
            refused.append(target)
            raise PermissionError
        real(source, target)

    with monkeypatch.context() as windows:
        windows.setattr(runfolder.os, "name", "nt")
        windows.setattr(runfolder.os, "replace", refuse_twice)
        windows.setattr(runfolder.time, "sleep", lambda _: None)
        (tmp_path / "new").write_text("new")
        runfolder.replace(str(tmp_path / "new"), str(tmp_path / "old"))
    assert (tmp_path / "old").read_text() == "new" and len(refused) == 2


# --- the run


def test_a_peft_result_is_a_folder_and_collides_with_none(tmp_path):
    values = {"name": "my.style", "base": "b", "data": "d", "steps": 1, "file_format": "peft"}
    folder = runfolder.RunFolder(tmp_path)
    assert folder.result(spec.parse(values)) == tmp_path / "my.style"
    assert folder.result(spec.parse({**values, "file_format": "kohya"}), 3).name == "my.style-000003.safetensors"
    with pytest.raises(InputError, match="folder 'state' of its own"):
        spec.parse({**values, "name": "state"})


def test_pure_noise_is_where_the_drawing_starts_with_a_zero_terminal_schedule():
    betas = sampling.betas_of(noise_schedule())
    plain = sampling.make_scheduler("v", betas, 4)
    zero = sampling.make_scheduler("v", betas, 4, zero_terminal_snr=True)
    assert int(zero.timesteps[0]) == 999
    assert float(zero.sigmas[0]) > 1000 > float(plain.sigmas[0])
    latents = torch.randn(1, 4, 8, 8)
    for step in zero.timesteps:
        latents = zero.step(torch.zeros_like(latents), step, latents).prev_sample
    assert torch.isfinite(latents).all()


class _Overflows(torch.nn.Module):
    """An autoencoder that gives NaN in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def decode(self, latents):
        pixels = torch.full((len(latents), 3, 8, 8), 0.5, dtype=self.weight.dtype)
        return SimpleNamespace(sample=pixels if self.weight.dtype == torch.float32 else pixels * torch.nan)


def test_previews_survive_an_autoencoder_that_overflows():
    base = SimpleNamespace(vae=_Overflows().half(), family=SimpleNamespace(latent_scale=0.13025))
    pixels = sampling._decode(base, torch.zeros(1, 4, 1, 1))
    assert torch.equal(pixels, torch.full((1, 3, 8, 8), 0.5))


def test_measuring_takes_fewer_large_pictures_at_once():
    seen = []

    def predict(noisy, timesteps, captions, time_ids):
        seen.append(len(noisy))
        return torch.zeros_like(noisy)

    def item(key: str, side: int):
        return SimpleNamespace(latents=torch.zeros(4, side, side), caption="", key=key, time_ids=torch.zeros(6))

    items = [item("small", 8), *(item(f"large {n}", 128) for n in range(2))]
    held_out_loss(items, predict, prediction="epsilon", alphas_cumprod=noise_schedule(), draws=2)
    assert seen == [2, 2, 2]


def test_a_missing_lora_or_autoencoder_is_noticed_before_anything_is_prepared(tmp_path):
    values = {"name": "a", "base": "b", "data": "d", "steps": 1}
    info = SimpleNamespace(path=tmp_path / "b.safetensors", has_vae=True)
    with pytest.raises(InputError, match="init_from"):
        running.check_files(spec.parse({**values, "init_from": str(tmp_path / "none.safetensors")}), info)
    with pytest.raises(InputError, match="no autoencoder"):
        running.check_files(spec.parse(values), SimpleNamespace(path=info.path, has_vae=False))
    with pytest.raises(InputError, match=re.escape("none.safetensors")):
        running.check_files(spec.parse({**values, "vae": str(tmp_path / "none.safetensors")}), info)


def test_ctrl_c_before_a_run_leaves_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_dispatch", lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert cli.main(["inspect", "x"]) == 3
    assert capsys.readouterr().err == "Stopped.\n"


@pytest.mark.parametrize("how", ["command", "signal"])
def test_a_stop_while_the_run_is_made_ready(tmp_path, monkeypatch, how):
    """Caching pictures may take an hour; nobody should have to wait for the first step to stop."""
    job = spec.parse({"name": "a", "base": "b", "data": "d", "steps": 1})
    run, job = runfolder.create(job, tmp_path / "run")

    def prepare(*arguments):
        report = arguments[-1]
        report(1, 10, "pictures prepared")
        if how == "command":
            send_command(run.path, "stop")
        else:
            signal.raise_signal(signal.SIGTERM)
        report(2, 10, "pictures prepared")
        raise AssertionError("went on")

    monkeypatch.setattr(running, "check_base", lambda job: (job, None))
    monkeypatch.setattr(running, "open_session", prepare)
    assert running._train(job, run, World(), resuming=False) == running.STOPPED
    events, _ = read_events(run.events_file)
    assert events[-1]["event"] == "stopped" and events[-1]["step"] == 0


def test_what_a_resumed_run_must_share_is_fixed_with_the_run():
    job = spec.parse({"name": "a", "base": "b", "data": "d", "steps": 1})
    first = runfolder.stamped(job)
    assert first.run["threads"] == torch.get_num_threads()
    assert runfolder.stamped(first).run == first.run
    assert runfolder.stamped(job.replace(threads=3)).run["threads"] == 3


def test_an_sd2_base_that_does_not_say_what_it_predicts_is_asked(tiny_base, monkeypatch):
    """Otherwise a v model without a side file would be trained as an epsilon model."""
    monkeypatch.setattr("trainers.bases.prediction.measure", lambda *_: "v")
    values = {"name": "a", "base": str(tiny_base("sd2")), "data": "d", "steps": 1}
    job, info = session.check_base(spec.parse(values))
    assert (job.prediction, info.prediction_source) == ("v", "measured")
    job, _ = session.check_base(spec.parse({**values, "prediction": "epsilon"}))
    assert job.prediction == "epsilon"


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="this torch scales losses on CUDA only")
def test_the_loss_scale_is_there_before_the_first_loss():
    """A process whose share of the first batch is empty takes part in the step all the same."""
    scaler = session._loss_scaler(torch.float16, torch.device("cpu"))
    assert scaler._scale is not None
    assert session._loss_scaler(torch.bfloat16, torch.device("cpu")) is None


@pytest.mark.parametrize(("said", "asked", "used"), [(True, None, True), (False, None, False), (True, False, False)])
def test_zero_terminal_snr_is_what_the_model_says_unless_asked(tiny_base, tmp_path, said, asked, used):
    base = tiny_base("sd2")
    info = dataclasses.replace(inspect_base(base), prediction="v", zero_terminal_snr=said)
    job = spec.parse(job_values(base, tmp_path, zero_terminal_snr=asked))
    assert session.complete(job, info).zero_terminal_snr is used
    epsilon = session.complete(job.replace(prediction="epsilon", zero_terminal_snr=None), info)
    assert epsilon.zero_terminal_snr is False
