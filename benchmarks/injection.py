"""What injected adapters cost, beside PEFT's unmerged and fused paths, on a UNet of Stable Diffusion 1.5's size.

    python benchmarks/injection.py [--json] [--quick] [--size 512] [--rounds 3] [--device cpu] [--dtype float32]

The UNet has random weights and is called directly; nothing else runs. Printed are
  - from tag to first step: reading the file, laying out the bank, attaching, and what the first step takes longer than
    the next one with the same adapter; with the memory that is held afterwards. At 64 px, because none of it depends on
    the picture, and the chance in one long step would hide it;
  - seconds per step (batch 2) with 0, 1, 4 and 8 LoRAs of rank 16, one LoHa, the merged copy, and PEFT. Every variant
    has a turn in every round, so a busy machine is busy for all; medians over the rounds, and the median of the ratio
    to "no adapter" in the same round.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from extension.injection import AdapterFiles, Injection, constant_use  # noqa: E402
from trainers.formats import safetensors_io  # noqa: E402
from trainers.formats.families import FAMILIES  # noqa: E402
from trainers.formats.sites import unet_sites  # noqa: E402

RANK, LOHA_RANK, FILES = 16, 8, 8
SITES = unet_sites(FAMILIES["sd1"])


class Processing:
    """Stands for a host's processing object."""


def make_unet(widths: tuple[int, ...], context: int, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """A UNet of SD1's structure with small random weights."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device("meta"):
        unet = UNet2DConditionModel(block_out_channels=widths, cross_attention_dim=context, attention_head_dim=8)
    unet = unet.to(dtype).to_empty(device=device)
    for name, parameter in unet.named_parameters():
        norm = "norm" in name and name.endswith("weight")
        parameter.data.fill_(1.0) if norm else parameter.data.normal_(0, 0.02)
    return unet.eval().requires_grad_(False)


def lora_tensors(unet: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """A LoRA of rank 16 on the 192 sites, in float16 as files usually are."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for site in SITES:
        out, inp, *kernel = unet.get_submodule(site.path).weight.shape
        down = torch.randn(RANK, inp, *kernel, generator=generator) * 0.02
        up = torch.randn(out, RANK, *kernel, generator=generator) * 0.02
        tensors[f"{site.name}.lora_down.weight"], tensors[f"{site.name}.lora_up.weight"] = down.half(), up.half()
        tensors[f"{site.name}.alpha"] = torch.tensor(RANK / 2)
    return tensors


def loha_tensors(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A LoHa of rank 8 on the same sites."""
    generator = torch.Generator().manual_seed(99)
    tensors = {}
    for site in SITES:
        out, inp = unet.get_submodule(site.path).weight.shape[:2]
        for half in (1, 2):
            for part, shape in (("a", (out, LOHA_RANK)), ("b", (LOHA_RANK, inp))):
                value = torch.randn(shape, generator=generator) * 0.1
                tensors[f"{site.name}.hada_w{half}_{part}"] = value.half()
        tensors[f"{site.name}.alpha"] = torch.tensor(LOHA_RANK / 2)
    return tensors


class Bench:
    """The UNet, its inputs and its adapter files."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        widths, context = ((32, 64, 96, 96), 64) if options.quick else ((320, 640, 1280, 1280), 768)
        self.device, dtype = options.device, getattr(torch, options.dtype)
        self.unet = make_unet(widths, context, self.device, dtype)
        self.context, self.dtype = context, dtype
        self.inputs = self.inputs_of(options.size)
        self.files = AdapterFiles()
        self.loras = [folder / f"lora{index}.safetensors" for index in range(FILES)]
        for index, path in enumerate(self.loras):
            safetensors_io.save(path, lora_tensors(self.unet, index))
        self.loha = folder / "loha.safetensors"
        safetensors_io.save(self.loha, loha_tensors(self.unet))
        self.injection = Injection("sd1", {"unet": self.unet})
        self.steps = 10 if self.device.startswith("cuda") else 1
        self.p = Processing()
        numbers = sum(v.numel() for k, v in lora_tensors(self.unet, 0).items() if not k.endswith("alpha"))
        self.file_bytes = numbers * dtype.itemsize

    def inputs_of(self, size: int) -> dict[str, torch.Tensor]:
        """What the UNet is called with for two pictures of `size` pixels."""
        shape = (2, 4, size // 8, size // 8)
        return {
            "sample": torch.randn(shape, dtype=self.dtype, device=self.device),
            "timestep": torch.full((2,), 300, device=self.device),
            "encoder_hidden_states": torch.randn(2, 77, self.context, dtype=self.dtype, device=self.device),
        }

    def wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def step(self) -> float:
        """Seconds of one call of the UNet."""
        self.wait()
        start = time.perf_counter()
        with torch.inference_mode():
            self.unet(**self.inputs)
        self.wait()
        return time.perf_counter() - start

    def begin(self, paths: list[Path], weight: float = 0.8, merged: bool = False) -> float:
        """Seconds to get these adapters going."""
        self.wait()
        start = time.perf_counter()
        uses = [constant_use(self.files.get(path), weight / len(paths)) for path in paths]
        self.injection.begin(self.p, uses, merged=merged)
        self.wait()
        return time.perf_counter() - start


def held(bench: Bench) -> int:
    """Bytes that this process holds now, on the device the model is on."""
    gc.collect()
    if bench.device.startswith("cuda"):
        return torch.cuda.memory_allocated()
    import psutil

    return psutil.Process().memory_info().rss


def first_uses(bench: Bench, rounds: int) -> dict[str, dict[str, float]]:
    """Time from tag to first step and memory for: first use, another weight, another LoRA, merged copy.

    What the first step takes longer than the next one with the same adapter counts as part of the time to it.
    """
    one, other = bench.loras[:2]
    cases: list[tuple[str, Callable[[], float]]] = [
        ("first use", lambda: bench.begin([one])),
        ("another weight", lambda: bench.begin([one], 0.5)),
        ("another LoRA", lambda: bench.begin([other])),
        ("merged copy", lambda: bench.begin([other], merged=True)),
    ]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name, _ in cases}
    bench.inputs = bench.inputs_of(64)
    for _ in range(rounds):
        bench.injection.detach()
        bench.step()
        before = held(bench)
        for name, begin in cases:
            seconds = begin()
            first, usual = bench.step(), min(bench.step() for _ in range(3))
            rows[name].append(
                {
                    "begin_s": seconds,
                    "to_first_step_s": seconds + max(0.0, first - usual),
                    "bank_bytes": bench.injection.nbytes(),
                    "memory_bytes": held(bench) - before,
                }
            )
    bench.injection.detach()
    return {name: {key: median(row[key] for row in taken) for key in taken[0]} for name, taken in rows.items()}


def ours(bench: Bench) -> dict[str, Callable[[], None]]:
    """Variants of ours: what sets each up; the first three go to nothing."""

    def use(paths: list[Path], merged: bool = False) -> Callable[[], None]:
        return lambda: bench.begin(paths, merged=merged) and None

    return {
        "no adapter": bench.injection.detach,
        "1 LoRA": use(bench.loras[:1]),
        "4 LoRAs": use(bench.loras[:4]),
        "8 LoRAs": use(bench.loras),
        "1 LoHa": use([bench.loha]),
        "1 LoRA, merged copy": use(bench.loras[:1], merged=True),
    }


def per_step(bench: Bench, variants: dict[str, Callable[[], None]], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each variant (median), and its time over that of "no adapter" in the same round (median)."""
    plain = bench.unet
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        for name, set_up in variants.items():
            bench.unet = plain
            set_up()
            bench.step()
            times[name].append(min(bench.step() for _ in range(bench.steps)))
            print(f"round {turn + 1} of {rounds}: {name}: {times[name][-1]:.4f} s", file=sys.stderr, flush=True)
    bench.unet = plain
    bench.injection.detach()
    return {
        name: {
            "seconds": median(taken),
            "ratio": median(mine / usual for mine, usual in zip(taken, times["no adapter"], strict=True)),
        }
        for name, taken in times.items()
    }


def with_peft(bench: Bench) -> dict[str, Callable[[], None]]:
    """PEFT's layers on a copy of the UNet that shares its weights, and its fused weights on a copy of their own."""
    from peft import LoraConfig, inject_adapter_in_model

    plain = bench.unet
    config = LoraConfig(r=RANK, lora_alpha=RANK / 2, target_modules=[site.path for site in SITES])
    shared = {id(parameter): parameter for parameter in plain.parameters()}
    unmerged = inject_adapter_in_model(config, copy.deepcopy(plain, shared)).eval()
    fused = inject_adapter_in_model(config, copy.deepcopy(plain)).eval()
    for layer in fused.modules():
        if hasattr(layer, "merge") and hasattr(layer, "lora_A"):
            layer.merge()

    def use(model: torch.nn.Module) -> Callable[[], None]:
        def set_up() -> None:
            bench.injection.detach()
            bench.unet = model

        return set_up

    return {"PEFT, unmerged": use(unmerged), "PEFT, fused": use(fused)}


def report(results: dict) -> None:
    """Prints the tables."""
    print(f"{results['size']} px, batch 2, {results['dtype']} on {results['device']}, {results['threads']} threads")
    mib = 1 / 2**20
    print(f"\nfrom tag to first step (file in this number format: {results['file_bytes'] * mib:.1f} MiB)")
    for name, row in results["first_uses"].items():
        bank, memory = row["bank_bytes"] * mib, row["memory_bytes"] * mib
        print(f"  {name:16} {row['to_first_step_s']:7.3f} s   bank {bank:7.1f} MiB   process {memory:+8.1f} MiB")
    print("\nper step")
    for name, row in results["per_step"].items():
        print(f"  {name:22} {row['seconds']:8.4f} s  {100 * (row['ratio'] - 1):+6.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="a narrow UNet: only whether it runs")
    parser.add_argument("--size", type=int, default=None, help="side of the picture in pixels (512; quick: 128)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every variant")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    options.size = options.size or (128 if options.quick else 512)
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        bench.step()
        steps = per_step(bench, {**ours(bench), **with_peft(bench)}, options.rounds)
        first = first_uses(bench, options.rounds)
    results = {
        "size": options.size,
        "dtype": options.dtype,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "file_bytes": bench.file_bytes,
        "first_uses": first,
        "per_step": steps,
    }
    print(json.dumps(results, indent=2)) if options.json else report(results)


if __name__ == "__main__":
    main()
