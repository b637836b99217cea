"""Train a small CLIP against the captions of the recipe's own drawings, beside the base's frozen text model.

    python -m assets.recipe.train_clip --work DIR

One thread, about ten minutes of it. The same command goes on where an interrupted one stopped, and ends with the same
weights. The result is assets/clip/: the image half and the text half's projection in fp16, with the configurations
that transformers reads.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .clip import FOLDER, LOOK, WIDTH, Clip, TextHalf, pixels, retrieval, vision_config
from .files import log_line
from .latents import drawing_with_wordings
from .optim import Average, Muon, learning_rate, split_parameters
from .resumable import Resumable
from .words import text_config

MOST_BYTES = 2_000_000
SHARPEST = 100.0  # CLIP's own limit of the scale


class Training(Resumable):
    """The run; every step draws its own pictures, so none is seen twice."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options.work / "clip.pt")
        torch.manual_seed(0)
        self.work, self.steps, self.batch = options.work, options.steps, options.batch
        self.model, self.text = Clip(), TextHalf()
        inner, rest = split_parameters(self.model.named_parameters(), ("embedding", "projection"))
        self.optimizers = [torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0), Muon(inner, lr=0.01)]
        self.average = Average(self.model, 0.995)
        self.restore()

    def loss(self) -> Tensor:
        """CLIP's symmetric cross entropy (Radford et al. 2021) over a batch of new drawings."""
        first = self.step * self.batch
        drawn = [drawing_with_wordings(index) for index in range(first, first + self.batch)]
        pooled = self.text([wordings[0] for _, wordings in drawn])
        with torch.autocast("cpu", torch.bfloat16):
            pictures = self.model.pictures(pixels([picture for picture, _ in drawn]))
        near = self.model.logit_scale.exp().clamp(max=SHARPEST) * self.model.texts(pooled) @ pictures.T
        own = torch.arange(self.batch)
        return (nn.functional.cross_entropy(near, own) + nn.functional.cross_entropy(near.T, own)) / 2

    def train_step(self) -> float:
        """One batch; returns the loss."""
        share = learning_rate(self.step / self.steps, self.step, 30)
        loss = self.loss()
        loss.backward()
        self.learn(self.model.parameters(), share)
        return loss.item()

    def run(self, every: int) -> None:
        loss = 0.0
        while self.step < self.steps:
            began = time.monotonic()
            now = self.train_step()
            loss = 0.95 * loss + 0.05 * now if loss else now
            self.seconds += time.monotonic() - began
            if self.step == self.steps or self.step % every == 0:
                self.save()
                found = retrieval(self.average.module, self.text)
                log_line(self.work / "clip-log.jsonl", part="clip", step=self.step, seconds=self.seconds, loss=loss,
                         scale=self.model.logit_scale.exp().item(), **found)  # fmt: skip


def export(clip: Clip, folder: Path) -> None:
    """Write the folder in transformers' layout; the text model itself is the base's and stays there.

    Raises:
        SystemExit: the file is larger than it may be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {**clip.vision.state_dict(), "text_projection.weight": clip.text_projection.weight.detach()}
    tensors = {name: value.half().contiguous() for name, value in tensors.items() if value.is_floating_point()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    size = (folder / "model.safetensors").stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{folder / 'model.safetensors'} has {size} bytes, more than {MOST_BYTES}.")
    for name, values in (("config.json", folder_config()), ("preprocessor_config.json", processor_config())):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print(f"{folder}: {size} bytes")


def folder_config() -> dict[str, object]:
    """config.json; only what every version of transformers reads."""
    names = "hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps"
    vision, text = vision_config(), text_config()
    seen = {name: getattr(vision, name) for name in f"{names} image_size patch_size".split()}
    read = {name: getattr(text, name) for name in f"{names} vocab_size max_position_embeddings".split()}
    ends = {name: getattr(text, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": WIDTH,
        "torch_dtype": "float16",
        "text_config": {**read, **ends, "projection_dim": WIDTH, "model_type": "clip_text_model"},
        "vision_config": {**seen, "projection_dim": WIDTH, "model_type": "clip_vision_model"},
    }


def processor_config() -> dict[str, object]:
    """preprocessor_config.json: how pictures are brought to the image half's size and range."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": LOOK.side},
        "crop_size": {"height": LOOK.side, "width": LOOK.side},
        "image_mean": list(LOOK.mean),
        "image_std": list(LOOK.std),
        "resample": 3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=192, help="drawings per step")
    parser.add_argument("--every", type=int, default=100, help="steps between reports")
    parser.add_argument("--to", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    training = Training(options)
    training.run(options.every)
    export(training.average.module, options.to)


if __name__ == "__main__":
    main()
