"""What the tests of the embedded host share: a studio on the embedded base, files of adapters and embeddings."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from extension.hosts.embedded.engine import Studio
from extension.hosts.embedded.places import EMBEDDED_BASE, Places
from extension.hosts.embedded.request import Request

QUICK = {"steps": 3, "sampler_name": "Euler", "cfg_scale": 5.0, "seed": 7}


def make_studio(folder: Path) -> Studio:
    """A studio on the CPU with its own data folder."""
    return Studio(EMBEDDED_BASE, Places(folder), device="cpu")


def array(picture: Image.Image) -> np.ndarray:
    """A picture's values as whole numbers that can be subtracted."""
    return np.asarray(picture.convert("RGB")).astype(int)


def apart(first: Image.Image, second: Image.Image) -> int:
    """The largest difference between two pictures, 0 to 255."""
    return int(abs(array(first) - array(second)).max())


def draw(studio: Studio, prompt: str | list[str], **more: object):
    """A job with quick settings."""
    return studio.draw(Request(prompt=prompt, **{**QUICK, **more}))


def one(studio: Studio, prompt: str, **more: object) -> Image.Image:
    """The only picture of such a job."""
    return draw(studio, prompt, **more).pictures[0].image


def write_lora(path: Path, studio: Studio, *, unet: bool = True, text: bool = False, size: float = 0.2) -> None:
    """A LoRA of rank 4 with noise in it on attention layers of the UNet or layers of the text encoder."""
    tensors: dict[str, torch.Tensor] = {}
    draws = torch.Generator().manual_seed(3)
    parts = [(studio.model.base.unet, "lora_unet", ("attn1.to_q", "attn2.to_v"))] if unet else []
    if text:
        parts.append((studio.model.base.text_encoders[0], "lora_te", ("self_attn.v_proj", "mlp.fc1")))
    for module, prefix, endings in parts:
        for name, layer in module.named_modules():
            if not name.endswith(endings):
                continue
            full = name if prefix == "lora_unet" or name.startswith("text_model.") else f"text_model.{name}"
            key = f"{prefix}_{full.replace('.', '_')}"
            outputs, inputs = layer.weight.shape[:2]
            tensors[f"{key}.lora_down.weight"] = torch.randn(4, inputs, generator=draws) * size
            tensors[f"{key}.lora_up.weight"] = torch.randn(outputs, 4, generator=draws) * size
            tensors[f"{key}.alpha"] = torch.tensor(4.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path), metadata={"ss_output_name": path.stem, "ss_network_module": "networks.lora"})


def write_embedding(path: Path, width: int = 64, vectors: int = 2, size: float = 1.0, module: str = "") -> None:
    """An embedding with noise in it; `module` is what its trainer calls itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draws = torch.Generator().manual_seed(4)
    tensors = {"emb_params": torch.randn(vectors, width, generator=draws) * size}
    save_file(tensors, str(path), metadata={"ss_network_module": module} if module else None)


@contextmanager
def served(app: object) -> Iterator[int]:
    """Runs a web application in a thread; gives its port."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(600):
        if server.started:
            break
        time.sleep(0.05)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
