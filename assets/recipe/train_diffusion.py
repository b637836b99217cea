"""Train the base's text model and UNet on cached latents.

    torchrun --nproc-per-node 2 -m assets.recipe.train_diffusion --work DIR --minutes 75

Needs DIR/autoencoder.safetensors. The same command goes on where an interrupted one stopped. The result is
DIR/unet.safetensors and DIR/text.safetensors, written at every report.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .diffusion import STEPS, alphas, build_unet, noised, soft_min_snr_weight
from .drawings import HELD_OUT, draw
from .files import log_line, sheet
from .latents import LatentCache
from .optim import Average, Muon, learning_rate, split_parameters
from .resumable import Resumable
from .sampling import draw_prompts
from .together import agree, average_gradients, join
from .words import build_text_model, tokens

DROP_CAPTION = 0.1
DRAWS = 2  # noise levels per picture and caption in a batch: the text model runs once for both


class Base(nn.Module):
    """The two parts that learn together."""

    def __init__(self) -> None:
        super().__init__()
        self.text = build_text_model()
        self.unet = build_unet()

    def forward(self, numbers: Tensor, latents: Tensor, times: Tensor) -> Tensor:
        """Predicted noise; there are `DRAWS` latents for each row of token numbers."""
        words = self.text(numbers)[0].repeat(DRAWS, 1, 1)
        return self.unet(latents, times, words).sample


class Training(Resumable):
    """The text model's and UNet's run."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options.work / "diffusion.pt")
        torch.manual_seed(0)
        self.work, self.seconds_allowed, self.batch = options.work, options.minutes * 60, options.batch
        self.rank, self.count = join()
        self.model = Base()
        self.learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizers = self.make_optimizers(options.muon)
        self.average = Average(self.model, 0.999)
        self.alphas, self.nothing = alphas(), tokens([""])
        self.restore()
        self.cache = LatentCache(options.work, self.rank, self.count, options.emphasis)
        self.pieces = options.pieces

    def make_optimizers(self, muon: float) -> list[torch.optim.Optimizer]:
        """Muon for the matrices; slow AdamW for embeddings, so that words never seen stay comparable to others."""
        named = [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        words = [parameter for name, parameter in named if "embeddings" in name]
        others = [(name, parameter) for name, parameter in named if "embeddings" not in name]
        inner, rest = split_parameters(others, ("unet.conv_in", "unet.conv_out", "time_embedding"))
        groups = [{"params": rest, "lr": 1e-3}, {"params": words, "lr": 1e-4}]
        return [torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0), Muon(inner, lr=muon)]

    def save(self) -> None:
        """The checkpoint, and the averaged weights as they will be exported."""
        super().save()
        average = self.average.module
        save_file({k: v.contiguous() for k, v in average.unet.state_dict().items()}, self.work / "unet.safetensors")
        save_file({k: v.contiguous() for k, v in average.text.state_dict().items()}, self.work / "text.safetensors")

    def loss(self) -> Tensor:
        """The weighted error of one batch, drawn from this step's and this process's own random numbers."""
        generator = torch.Generator().manual_seed(self.step * 64 + self.rank)
        latents, numbers = self.cache.batch(self.batch // DRAWS, generator)
        drop = torch.rand(len(numbers), generator=generator) < DROP_CAPTION
        numbers = torch.where(drop[:, None], self.nothing, numbers)
        latents = latents.repeat(DRAWS, 1, 1, 1)
        times = (torch.rand(self.batch, generator=generator) * STEPS).long()
        noise = torch.randn(latents.shape, generator=generator)
        alpha = self.alphas[times]
        with torch.autocast("cpu", torch.bfloat16):
            output = self.model(numbers, noised(latents, noise, alpha), times)
        error = (output.float() - noise).square().flatten(1).mean(1)
        return (error * soft_min_snr_weight(alpha)).mean()

    def train_step(self) -> float:
        """One batch; returns the loss."""
        share = learning_rate(self.seconds / self.seconds_allowed, self.step, 100)
        loss = self.loss()
        loss.backward()
        average_gradients(self.learning, self.count)
        self.learn(self.learning, share)
        return loss.item()

    def report(self, loss: float) -> None:
        """A log line and a sheet of held-out prompts."""
        log_line(self.work / "diffusion-log.jsonl", step=self.step, seconds=self.seconds, loss=loss)
        words = [draw(HELD_OUT, 5000 + i, single=i < 18, full=True)[1] for i in range(24)]
        base = self.average.module
        pictures = draw_prompts(
            base.text, base.unet, self.cache.autoencoder, tokens(words), self.nothing, list(range(24)), steps=20
        )
        sheet(pictures, 8).resize((1024, 384), 0).save(self.work / "diffusion.png")
        (self.work / "diffusion.txt").write_text("\n".join(words))

    def run(self, every: int) -> None:
        loss = 0.0
        while self.seconds < self.seconds_allowed:
            began = time.monotonic()
            self.cache.grow(min(self.pieces, 2 + 2 * (self.step // 120)))
            now = self.train_step()
            loss = 0.97 * loss + 0.03 * now if loss else now
            self.seconds = agree(self.seconds + time.monotonic() - began)
            last = self.seconds >= self.seconds_allowed
            if self.rank == 0 and self.step % 20 == 0:
                print(self.step, round(self.seconds, 1), round(loss, 4), flush=True)
            if self.rank == 0 and (last or self.step % every == 0):
                self.save()
                self.report(loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=75, help="training time, set-up and reports not counted")
    parser.add_argument("--batch", type=int, default=64, help="latents per process and step")
    parser.add_argument("--muon", type=float, default=0.012, help="peak learning rate of the matrices")
    parser.add_argument("--pieces", type=int, default=12, help="how many times 4096 drawings to encode in the end")
    parser.add_argument("--emphasis", nargs="*", help="things to show three times as often")
    parser.add_argument("--every", type=int, default=200, help="steps between reports")
    options = parser.parse_args()
    Training(options).run(options.every)


if __name__ == "__main__":
    main()
