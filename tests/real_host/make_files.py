"""Makes files for `--files`: what our trainers learn on a checkpoint, and what LyCORIS's own layers are on it.

    python tests/real_host/make_files.py CHECKPOINT FOLDER [--steps 8]

writes into FOLDER adapters that our trainers made (as processes, on a few drawn pictures), adapters whose numbers are
random but whose layers and keys are LyCORIS's own, and in `embeddings/` a trained embedding. For kinds that some
WebUI's own loader does not read, or reads otherwise, `reference/` has a file of the same name with the differences that
LyCORIS makes of the weights, in full: those every loader reads.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from training_helpers import job_values, make_pictures, run_trainer, write_job  # noqa: E402

from trainers.bases.loader import load_base, module_for  # noqa: E402
from trainers.formats import safetensors_io  # noqa: E402
from trainers.formats.sites import all_sites, component_sites  # noqa: E402

TRAINED = {
    "trained_lora": {"kind": "lora"},
    "trained_loha": {"kind": "loha"},
    "trained_lokr": {"kind": "lokr"},
    "trained_dora": {"kind": "dora"},
    "athanortrained": {"method": "textual_inversion", "rank": None, "trigger": "athanortrained", "vectors": 2},
}
CHECKS = ["amount", "quality", "buckets", "sameness", "dose", "rate", "learning", "captions", "trigger"]
# Kind: (LyCORIS's module, its class, its options, whether a reference is needed, of which so many sites one is taken)
LYCORIS = {
    "lycoris_locon": ("locon", "LoConModule", {}, False, 1),
    "lycoris_tucker": ("locon", "LoConModule", {"use_tucker": True}, False, 1),
    "lycoris_loha": ("loha", "LohaModule", {}, False, 1),
    "lycoris_lokr": ("lokr", "LokrModule", {"factor": 4}, False, 1),
    "lycoris_dora": ("locon", "LoConModule", {"weight_decompose": True, "wd_on_out": False}, False, 1),
    "lycoris_dora_out": ("locon", "LoConModule", {"weight_decompose": True, "wd_on_out": True}, True, 5),
    "lycoris_oft": ("diag_oft", "DiagOFTModule", {}, True, 5),
    "lycoris_boft": ("boft", "ButterflyOFTModule", {}, True, 5),
    "lycoris_ia3": ("ia3", "IA3Module", {}, True, 5),
    "lycoris_glora": ("glora", "GLoRAModule", {}, True, 5),
}
SIZE = {"lycoris_oft": 0.05, "lycoris_boft": 0.05, "lycoris_ia3": 0.1, "lycoris_dora_out": 0.1, "lycoris_glora": 0.05}


def train(checkpoint: Path, folder: Path, steps: int) -> None:
    """Runs our trainers and puts what they made into the folder."""
    runs = folder / "runs"
    pictures = make_pictures(runs / "pictures", 3)
    for name, options in TRAINED.items():
        values = job_values(checkpoint, pictures, name=name, steps=steps, learning_rate=0.01, text_encoder_lr=0.01)
        values |= {"override_checks": CHECKS, "verdict": False, **options}
        if "method" in options:
            values |= {"learning_rate": 0.05, "text_encoder_lr": None}
        values = {key: value for key, value in values.items() if value is not None}
        done = run_trainer("run", write_job(runs / f"{name}.yaml", values), "--run", runs / name, timeout=900)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stdout}{done.stderr}")
        target = folder / "embeddings" if "method" in options else folder
        target.mkdir(exist_ok=True)
        (runs / name / f"{name}.safetensors").replace(target / f"{name}.safetensors")


def _module(kind: str, name: str, layer: torch.nn.Module) -> torch.nn.Module:
    """LyCORIS's module for one layer, with random numbers."""
    place, cls, options, _, _ = LYCORIS[kind]
    found = getattr(importlib.import_module(f"lycoris.modules.{place}"), cls)
    made = found(name, layer, 1.0, lora_dim=8, alpha=4.0, **options)
    for parameter_name, parameter in made.named_parameters():
        noise = torch.randn(parameter.shape) * SIZE.get(kind, 0.2)
        near_one = parameter_name == "dora_scale"
        parameter.data = parameter.data * (1 + noise) if near_one else noise
    return made


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    own = module.custom_state_dict()
    return {name: value.detach().float() for name, value in (own or module.state_dict()).items() if name != "scalar"}


def write_lycoris(checkpoint: Path, folder: Path) -> None:
    """A file of each of LyCORIS's kinds."""
    base = load_base(checkpoint, parts=("unet", "text"))
    convolutions = list(component_sites(base.family, "unet", conv3x3=True))
    (folder / "reference").mkdir(exist_ok=True)
    for kind, (_, _, _, referenced, every) in LYCORIS.items():
        torch.manual_seed(3)
        tensors, full = {}, {}
        sites = convolutions if "tucker" in kind or "locon" in kind else list(all_sites(base.family))
        for site in sites[::every]:
            try:
                layer = module_for(base, site)
                module = _module(kind, site.name, layer)
            except (LookupError, ValueError):
                continue  # a layer that this model has not, or a width of which BOFT's blocks cannot be made
            tensors |= {f"{site.name}.{name}": value.contiguous() for name, value in _tensors(module).items()}
            if referenced:
                with torch.no_grad():
                    merged = module.get_merged_weight(multiplier=1.0)[0].reshape(layer.weight.shape)
                full[f"{site.name}.diff"] = (merged.double() - layer.weight.double()).float().contiguous()
        safetensors_io.save(folder / f"{kind}.safetensors", tensors, {})
        if referenced:
            safetensors_io.save(folder / "reference" / f"{kind}.safetensors", full, {})


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    reader.add_argument("checkpoint", type=Path)
    reader.add_argument("folder", type=Path)
    reader.add_argument("--steps", type=int, default=8)
    given = reader.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    train(given.checkpoint, given.folder, given.steps)
    write_lycoris(given.checkpoint, given.folder)


if __name__ == "__main__":
    main()
