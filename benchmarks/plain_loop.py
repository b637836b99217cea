"""What a person writes with diffusers and PEFT: the loop that the trainer's steps are compared with.

    python benchmarks/plain_loop.py --model DIR --out DIR [--text] [--family sd1] [--device cuda] [--precision bf16]

Trains rank 16 on the attention of the UNet (and, with --text, of the text encoder), latents at hand, captions encoded
once or, with --text, at each step. Writes OUT/events.jsonl with the events that the trainer writes too.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

RANK = 16


def with_adapter(module, sites: list[str]):
    """The module with PEFT's LoRA at `sites`, and its trained parameters in float32."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    module.requires_grad_(False)
    module = inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK // 2, target_modules=sites), module)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.to(torch.float32)
    return module, trained


def load(args: argparse.Namespace, dtype):
    """(UNet with adapter, conditioning as a function, trained parameters)."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    unet = UNet2DConditionModel.from_pretrained(args.model, subfolder="unet", torch_dtype=dtype).to(args.device)
    sites = [name for name, layer in unet.named_modules() if ".attentions." in name and isinstance(layer, kinds)]
    unet, parameters = with_adapter(unet, sites)
    width = unet.config.cross_attention_dim
    if not args.text:
        hidden = torch.randn(args.batch, 77, width, device=args.device, dtype=dtype)
        return unet, lambda: hidden, parameters
    text = CLIPTextModel.from_pretrained(args.model, subfolder="text_encoder", torch_dtype=dtype).to(args.device)
    sites = [name for name, layer in text.named_modules() if ".layers." in name and isinstance(layer, torch.nn.Linear)]
    text, more = with_adapter(text, sites)
    tokens = torch.randint(0, 49406, (args.batch, 77), device=args.device)
    return unet, lambda: text(tokens).last_hidden_state, parameters + more


def extra_inputs(args: argparse.Namespace, unet, dtype) -> dict:
    """SDXL's further conditioning."""
    import torch

    if args.family != "sdxl":
        return {}
    pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    return {
        "text_embeds": torch.randn(args.batch, pooled, device=args.device, dtype=dtype),
        "time_ids": torch.full((args.batch, 6), float(args.side), device=args.device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--family", default="sd1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--text", action="store_true")
    for name, default in (("side", 256), ("batch", 1), ("steps", 4), ("threads", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()

    import torch
    from diffusers import DDPMScheduler

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[args.precision]
    schedule = DDPMScheduler.from_pretrained(args.model, subfolder="scheduler")
    unet, condition, parameters = load(args, dtype)
    extra = extra_inputs(args, unet, dtype)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    latents = torch.randn(args.batch, 4, args.side // 8, args.side // 8, device=args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "events.jsonl", "w", encoding="utf-8") as log:

        def emit(event: str, **fields: object) -> None:
            log.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")
            log.flush()

        emit("start", process=os.getpid())
        for step in range(1, args.steps + 1):
            began = time.perf_counter()
            noise, t = torch.randn_like(latents), torch.randint(0, 1000, (args.batch,), device=args.device)
            with torch.autocast(
                args.device, torch.bfloat16 if dtype == torch.float32 else dtype, enabled=dtype != torch.float32
            ):
                noisy = schedule.add_noise(latents, noise, t).to(dtype)
                answer = unet(noisy, t, encoder_hidden_states=condition(), added_cond_kwargs=extra).sample
            loss = torch.nn.functional.mse_loss(answer.float(), noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            emit("step", step=step, loss=loss.item(), seconds=time.perf_counter() - began)  # as the examples log it
        peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else 0
        emit("memory", peak_bytes=peak)
        emit("done", step=args.steps)


if __name__ == "__main__":
    main()
