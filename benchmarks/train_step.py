"""How long a training step takes and how much memory it needs, beside a plain loop of diffusers and PEFT.

    python benchmarks/train_step.py [--quick] [--json] [--work DIR]

Makes a model of Stable Diffusion 1.5's size with random weights, and trains rank 16 on 256 px pictures with batch 1:
on the UNet alone (192 layers) and with the text encoder (264), in fp32 and in bf16. Each case runs in a process of its
own, ours as `python -m trainers lora …`, and the cases take turns, so that a busy machine is busy for both. Printed are
medians over the turns: seconds per step, seconds from the start of the process to the beginning of the first step with
warm caches, and the peak of the resident memory. DIR keeps the model (2 GB) for the next time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIDE, RANK, PICTURES = 256, 16, 4
# This process must stay small: a child's peak memory counts from what its parent had. So torch is only imported in
# the children.


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _watch_memory(process: subprocess.Popen, peak: list[int]) -> None:
    import psutil

    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak[0] = max(peak[0], watched.memory_info().rss)
        except psutil.Error:
            return
        time.sleep(0.05)


def _wait(process: subprocess.Popen) -> int:
    """The peak of the process's resident memory in bytes, after its end."""
    if hasattr(os, "wait4"):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    seen = [0]
    watcher = threading.Thread(target=_watch_memory, args=(process, seen))
    watcher.start()
    process.wait()
    watcher.join()
    return seen[0]


def run_child(words: list[str]) -> tuple[float, int]:
    """Runs one process to its end; (time of its start, peak of its resident memory in bytes)."""
    started = time.time()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(words, env=_environment(), cwd=ROOT, stdout=log, stderr=log)
        try:
            peak = _wait(process)
        finally:
            if process.returncode is None:  # interrupted
                process.kill()
        if process.returncode != 0:
            log.seek(0)
            sys.exit(f"{' '.join(words)}\nended with {process.returncode}:\n{log.read()[-4000:]}")
    return started, peak


# --- ours


def run_ours(work: Path, text: bool, precision: str, steps: int, threads: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        run = Path(folder) / "run"
        options = {
            "steps": steps, "rank": RANK, "resolution": SIDE, "bucket_min": SIDE, "precision": precision,
            "base_dtype": precision, "gradient_checkpointing": "off", "train_text_encoder": str(text).lower(),
            "state_every": 1000000, "device": "cpu", "threads": threads, "cache_dir": work / "cache",
            "override_checks": "amount|quality|captions",
        }  # fmt: skip
        words = [sys.executable, "-m", "trainers", "lora", "--base", work / "model", "--data", work / "pictures"]
        words += ["--name", "bench", "--run", run, "--set", *(f"{name}={value}" for name, value in options.items())]
        started, peak = run_child([str(word) for word in words])
        events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return _summary(started, peak, [event for event in events if event["event"] == "step"])


def _summary(started: float, peak: int, steps: list[dict[str, float]]) -> dict[str, object]:
    """Steps are events with the time of their end and, for the first, its seconds."""
    ends = [step["time"] for step in steps]
    return {
        "before_first_step": ends[0] - steps[0]["seconds"] - started,
        # The first step also warms up the allocator and the kernels.
        "steps": [after - before for before, after in itertools.pairwise(ends)],
        "peak_bytes": peak,
    }


# --- the plain loop


def run_plain(work: Path, text: bool, precision: str, steps: int, threads: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        result = Path(folder) / "result.json"
        words = [sys.executable, __file__, "--work", work, "--child", "plain", "--result", result, "--steps", steps]
        words += ["--precision", precision, "--threads", threads, *(["--text"] if text else [])]
        started, peak = run_child([str(word) for word in words])
        return _summary(started, peak, json.loads(result.read_text(encoding="utf-8")))


def _with_adapter(module, sites: list[str]):
    from peft import LoraConfig, inject_adapter_in_model

    module.requires_grad_(False)
    module = inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK // 2, target_modules=sites), module)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    return module, trained


def plain_loop(args: argparse.Namespace) -> None:
    """What a person writes with diffusers and PEFT: latents at hand, captions encoded once or (--text) each step."""
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.precision]
    folder = args.work / "model"
    schedule = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype)
    text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", torch_dtype=dtype)
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    sites = [name for name, layer in unet.named_modules() if ".attentions." in name and isinstance(layer, kinds)]
    unet, parameters = _with_adapter(unet, sites)
    tokens = torch.randint(0, 49406, (1, 77))
    if args.text:
        sites = [n for n, layer in text.named_modules() if ".layers." in n and isinstance(layer, torch.nn.Linear)]
        text, more = _with_adapter(text, sites)
        parameters += more
    else:
        with torch.no_grad():
            cached = text(tokens).last_hidden_state
        del text
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    latents, done = torch.randn(1, 4, SIDE // 8, SIDE // 8), []
    for _ in range(args.steps):
        began = time.time()
        noise, t = torch.randn_like(latents), torch.randint(0, 1000, (1,))
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden = text(tokens).last_hidden_state if args.text else cached
            noisy = schedule.add_noise(latents, noise, t).to(dtype)
            answer = unet(noisy, t, encoder_hidden_states=hidden).sample
        torch.nn.functional.mse_loss(answer.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done.append({"time": time.time(), "seconds": time.time() - began})
    args.result.write_text(json.dumps(done), encoding="utf-8")


# --- what both train on


def _fill(module) -> None:
    """Random weights, quickly: a block of normal numbers repeated, scaled so that signals stay alive."""
    import torch

    module.to_empty(device="cpu")
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2:
            parameter.data.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        values = block.repeat(-(-parameter.numel() // len(block)))[: parameter.numel()]
        scale = 0.02 if "embedding" in name else parameter[0].numel() ** -0.5
        parameter.data.copy_(values.view_as(parameter) * scale)
    for owner in module.modules():
        positions = owner._buffers.get("position_ids")
        if positions is not None:
            owner._buffers["position_ids"] = torch.arange(positions.shape[-1]).expand((1, -1)).clone()


def make_inputs(args: argparse.Namespace) -> None:
    """The model as a diffusers folder in fp16, and the pictures."""
    from types import SimpleNamespace

    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from PIL import Image
    from transformers import CLIPTextConfig, CLIPTextModel

    from trainers.bases.export import save_diffusers
    from trainers.formats.families import FAMILIES

    narrow, heads = args.narrow, max(1, 12 // args.narrow)
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=tuple(width // narrow for width in (320, 640, 1280, 1280)),
            cross_attention_dim=64 * heads, attention_head_dim=8,
        )  # fmt: skip
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=64 * heads, intermediate_size=256 * heads, num_hidden_layers=12, num_attention_heads=heads,
                projection_dim=64 * heads, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
            )
        )  # fmt: skip
        widths = tuple(max(32, width // narrow // 32 * 32) for width in (128, 256, 512, 512))
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=widths, layers_per_block=2, latent_channels=4,
        )  # fmt: skip
    for module in (unet, text, vae):
        _fill(module)
    base = SimpleNamespace(family=FAMILIES["sd1"], prediction="epsilon", unet=unet, text_encoders=[text], vae=vae)
    save_diffusers(base, args.work / "model", torch.float16)
    pictures = args.work / "pictures"
    pictures.mkdir(exist_ok=True)
    for number in range(PICTURES):
        values = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(values.numpy()).resize((SIDE, SIDE)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"a pattern, number {number}", encoding="utf-8")
    (args.work / f"made-{args.narrow}").touch()


# --- all of it

RUNNERS = {"ours": run_ours, "plain": run_plain}


def measure(work: Path, precisions: list[str], repeats: int, steps: int, threads: int, say) -> list[dict[str, object]]:
    """Every case `repeats` times in turn; one result per case."""
    for precision in precisions:
        say(f"filling the caches for {precision}")
        run_ours(work, False, precision, 1, threads)
    cases = [(text, precision, who) for text in (False, True) for precision in precisions for who in RUNNERS]
    found: dict[tuple, list[dict]] = {case: [] for case in cases}
    for turn in range(repeats):
        for text, precision, who in cases:
            one = RUNNERS[who](work, text, precision, steps + 1, threads)
            found[text, precision, who].append(one)
            sites = 264 if text else 192
            say(
                f"turn {turn + 1}: {sites} layers, {precision}, {who}: {statistics.median(one['steps']):.2f} s per step"
            )
    return [
        {
            "layers": 264 if text else 192,
            "precision": precision,
            "loop": who,
            "seconds_per_step": round(statistics.median(s for one in runs for s in one["steps"]), 3),
            "seconds_before_first_step": round(statistics.median(one["before_first_step"] for one in runs), 2),
            "peak_gib": round(statistics.median(one["peak_bytes"] for one in runs) / 2**30, 2),
        }
        for (text, precision, who), runs in found.items()
    ]


def table(results: list[dict[str, object]]) -> str:
    """The results as a Markdown table."""
    names = list(results[0])
    rows = [names, ["---"] * len(names), *[[str(result[name]) for name in names] for result in results]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one turn of two steps in fp32")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument(
        "--work", type=Path, help="folder for the model and the caches, kept (default: a temporary one)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="turns of every case")
    parser.add_argument("--steps", type=int, default=3, help="measured steps per turn")
    parser.add_argument("--narrow", type=int, default=1, help="divide all widths by 2, 5 or 10, to try this script out")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 means all")
    for name in ("--child", "--precision"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--text", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        {"plain": plain_loop, "inputs": make_inputs}[args.child](args)
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        if not (work / f"made-{args.narrow}").exists():
            words = ["--work", str(work), "--child", "inputs", "--narrow", str(args.narrow)]
            run_child([sys.executable, __file__, *words])

        def say(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        precisions, repeats, steps = ["fp32", "bf16"], args.repeats, args.steps
        if args.quick:
            precisions, repeats, steps = ["fp32"], 1, 2
        results = measure(work, precisions, repeats, steps, args.threads, say)
    print(json.dumps(results, indent=1) if args.json else table(results))


if __name__ == "__main__":
    main()
