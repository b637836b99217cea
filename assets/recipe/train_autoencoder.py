"""Train the base's KL autoencoder.

    torchrun --nproc-per-node 2 -m assets.recipe.train_autoencoder --work DIR --minutes 30

The same command goes on where an interrupted one stopped. The result is DIR/autoencoder.safetensors, whose latents
times 0.18215 have zero mean and unit variance, as every host assumes of SD1.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn

from .drawings import HELD_OUT, RICH, TRAIN, draw
from .files import log_line, sheet
from .optim import Average, Muon, learning_rate, split_parameters
from .resumable import Resumable
from .rich import autoencoder_picture, draw_rich
from .together import agree, average_gradients, join

CHANNELS = (64, 64, 128, 128)
SCALING = 0.18215
KL_WEIGHT = 2e-6
FIRST_LOG_VARIANCE = -8.0  # noise of size 1 at the start would drown the latents before they mean anything


def build() -> AutoencoderKL:
    """An untrained autoencoder: factor 8, 4 latent channels, one residual block per level."""
    model = AutoencoderKL(
        block_out_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=64,
        scaling_factor=SCALING,
    )
    model.quant_conv.bias.data[4:] = FIRST_LOG_VARIANCE
    return model


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """uint8 pictures to a batch of -1..1."""
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    return (batch / 127.5 - 1).contiguous()


def objective(model: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Mean root-mean-square error per picture (RGB -1..1), and the mean KL per latent number."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(batch).latent_dist
        output = model.decode(posterior.sample()).sample
    error = (output.float() - batch).square().flatten(1).mean(1)
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return (error + 1e-6).sqrt().mean(), kl


@torch.no_grad()
def reconstruct(model: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures through the mean of their latents, clipped to -1..1."""
    parts = [model.decode(model.encode(part).latent_dist.mean).sample for part in pictures.split(32)]
    return torch.cat(parts).clamp(-1, 1)


def psnr(model: AutoencoderKL, pictures: Tensor) -> float:
    """Mean over pictures of the reconstruction's PSNR in dB, RGB 0..1."""
    error = ((reconstruct(model, pictures) - pictures) / 2).square().flatten(1).mean(1)
    return float((-10 * error.clamp_min(1e-10).log10()).mean())


def evaluation_sets(count: int = 48) -> dict[str, Tensor]:
    """Held-out drawings of the base's kind and rich ones."""
    return {
        "psnr_drawings": to_tensor([draw(HELD_OUT, i)[0] for i in range(count)]),
        "psnr_rich": to_tensor([draw_rich(i, HELD_OUT) for i in range(count)]),
    }


@torch.no_grad()
def normalise_latents(model: AutoencoderKL, pictures: Tensor) -> None:
    """Fold each latent channel's mean and spread into quant_conv and its inverse into post_quant_conv."""
    latents = torch.cat([model.encode(part).latent_dist.mean for part in pictures.split(32)])
    mean = latents.mean((0, 2, 3))
    scale = 1 / (latents.std((0, 2, 3)) * SCALING)
    moments = model.quant_conv
    moments.weight[:4] *= scale[:, None, None, None]
    moments.bias[:4] = (moments.bias[:4] - mean) * scale
    moments.bias[4:] += 2 * scale.log()
    back = model.post_quant_conv
    back.bias += (back.weight[:, :, 0, 0] * mean).sum(1)
    back.weight /= scale[None, :, None, None]


class Training(Resumable):
    """The autoencoder's run."""

    def __init__(self, work: Path, minutes: float, batch: int, compiled: bool, muon: float = 0.01) -> None:
        super().__init__(work / "autoencoder.pt")
        torch.manual_seed(0)
        self.work, self.seconds_allowed, self.batch = work, minutes * 60, batch
        self.rank, self.count = join()
        self.model = build()  # not channels_last: there, group norm's backward takes ten times longer in bf16
        inner, rest = split_parameters(self.model.named_parameters(), ("conv_in", "conv_out", "quant_conv"))
        self.optimizers = [torch.optim.AdamW(rest, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.0)]
        if muon:
            self.optimizers.append(Muon(inner, lr=muon))
        else:
            self.optimizers[0].add_param_group({"params": inner})
        self.average = Average(self.model, 0.998)
        self.restore()
        self.objective = torch.compile(objective) if compiled else objective

    def train_step(self) -> tuple[float, float]:
        """One batch; returns the error and the KL."""
        first = (self.step * self.count + self.rank) * self.batch
        batch = to_tensor([autoencoder_picture(first + i, TRAIN if i % 2 else RICH) for i in range(self.batch)])
        share = learning_rate(self.seconds / self.seconds_allowed, self.step, 60)
        error, kl = self.objective(self.model, batch)
        (error + KL_WEIGHT * kl).backward()
        average_gradients(self.model.parameters(), self.count)
        self.learn(self.model.parameters(), share)
        return error.item(), kl.item()

    def report(self, sets: dict[str, Tensor], error: float, kl: float) -> None:
        figures = {name: psnr(self.average.module, pictures) for name, pictures in sets.items()}
        log_line(
            self.work / "autoencoder-log.jsonl", step=self.step, seconds=self.seconds, rmse=error, kl=kl, **figures
        )
        shown = torch.cat([pictures[:12] for pictures in sets.values()])
        both = torch.cat([shown, reconstruct(self.average.module, shown)])
        pixels = ((both + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        sheet(pixels, 12).save(self.work / "autoencoder.png")

    def run(self, every: int) -> None:
        sets = evaluation_sets()
        error = kl = 0.0
        while self.seconds < self.seconds_allowed:
            began = time.monotonic()
            now = self.train_step()
            error, kl = (0.95 * error + 0.05 * now[0], now[1]) if self.step > 1 else now
            self.seconds = agree(self.seconds + min(5.0, time.monotonic() - began))
            last = self.seconds >= self.seconds_allowed
            if self.rank == 0 and self.step % 20 == 0:
                print(self.step, round(self.seconds, 1), round(error, 4), round(kl, 3), flush=True)
            if self.rank == 0 and (last or self.step % every == 0):
                self.save()
                self.report(sets, error, kl)

    def export(self) -> None:
        """Write the averaged weights with normalised latents."""
        model = self.average.module
        before = psnr(model, sample := evaluation_sets()["psnr_drawings"])
        normalise_latents(model, to_tensor([draw(TRAIN, i)[0] for i in range(1024)]))
        log_line(self.work / "autoencoder-log.jsonl", step=self.step, before_folding=before, folded=psnr(model, sample))
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, self.work / "autoencoder.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--muon", type=float, default=0.01)
    parser.add_argument("--every", type=int, default=200)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    run = Training(options.work, options.minutes, options.batch, options.compile, options.muon)
    run.run(options.every)
    if run.rank == 0:
        run.export()


if __name__ == "__main__":
    main()
