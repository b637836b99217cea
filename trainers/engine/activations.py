"""How many numbers the backward pass holds, from the structure of the networks.

Counted per layer for training an adapter over frozen weights, as autograd keeps them with fused attention (its matrix
of scores is never stored). N is the number of places (latent height x width of a level), C the channels, T the length
of the text:

- residual block, C_in -> C_out: input and output of each norm and the input of each convolution: 3 C_in N + 3 C_out N;
- around a stack of transformer blocks: 3 C N (the norm's input, the inputs of both projections);
- transformer block: three layer norms, in and out (6), self-attention q, k, v, output and its rearranged copy (5),
  cross-attention q, output and copy (3), and the gated feed-forward 8 + 4 + 4 (16): 30 C N, and 2 C T for the text;
- enlarging: C N at the finer level.

tests/test_engine_memory.py holds this against what autograd really saves for small UNets, and for the published sizes:
SD1 at 512 px counts 1,861 MiB in fp32 where 1,766 are held, SDXL at 1024 px 13,879 MiB where 12,863 are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainers.formats.families import FAMILIES, Family

# Widths and parameter counts of the published models; a narrow one is taken to be narrow everywhere.
UNET_WIDTHS = {"sd1": (320, 640, 1280, 1280), "sd2": (320, 640, 1280, 1280), "sdxl": (320, 640, 1280)}
UNET_PARAMETERS = {"sd1": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684}
TEXT_WIDTHS = {"sd1": (768,), "sd2": (1024,), "sdxl": (768, 1280)}
VAE_WIDTH, VAE_PARAMETERS = 128, 83_653_863
TOKENS = 77

# Bytes per counted number. In 16 bits, norms run in float32 under CUDA's autocast, and every adapter casts its input
# for itself; measured (on the CPU, with norms cast as CUDA does): 2.8; without that cast 2.1 (large) to 2.45 (small).
BYTES_FP32, BYTES_16_CUDA, BYTES_16_CPU = 4.0, 2.8, 2.4


@dataclass(frozen=True)
class Piece:
    """One block that gradient checkpointing can drop and compute again.

    Attributes:
        inside: numbers held for it without checkpointing.
        kept: numbers held for it with checkpointing, its own inputs.
    """

    inside: float
    kept: float


def _residual(c_in: float, c_out: float, n: int) -> Piece:
    return Piece(3 * (c_in + c_out) * n, c_in * n)


def _transformers(c: float, n: int, depth: int, tokens: int) -> Iterator[Piece]:
    yield Piece(3 * c * n, 3 * c * n)
    for _ in range(depth):
        yield Piece(30 * c * n + 2 * c * tokens, c * n)


def unet_widths(family: str, parameters: int) -> tuple[float, ...]:
    """Channels of each level of a UNet with this many parameters."""
    narrow = (parameters / UNET_PARAMETERS[family]) ** 0.5
    return tuple(width * narrow for width in UNET_WIDTHS[family])


def unet_pieces(
    family: str, widths: tuple[float, ...], height: int, width: int, tokens: int = TOKENS
) -> Iterator[Piece]:
    """The blocks of a UNet for one latent of `height` x `width`, in the order they run."""
    spec = FAMILIES[family].unet
    sizes = [(height, width)]
    for _ in range(spec.levels - 1):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    places = [rows * columns for rows, columns in sizes]
    channels, skips = widths[0], [widths[0]]
    for level, depth in enumerate(spec.depths):
        for _ in range(spec.resnets):
            yield _residual(channels, widths[level], places[level])
            channels = widths[level]
            if depth:
                yield from _transformers(channels, places[level], depth, tokens)
            skips.append(channels)
        if level < spec.levels - 1:
            skips.append(channels)
    yield _residual(channels, channels, places[-1])
    yield from _transformers(channels, places[-1], spec.mid_depth, tokens)
    yield _residual(channels, channels, places[-1])
    for level in reversed(range(spec.levels)):
        for _ in range(spec.resnets + 1):
            yield _residual(channels + skips.pop(), widths[level], places[level])
            channels = widths[level]
            if spec.depths[level]:
                yield from _transformers(channels, places[level], spec.depths[level], tokens)
        if level:
            held = channels * places[level - 1]
            yield Piece(held, held)
    held = 3 * channels * places[0]
    yield Piece(held, held)


def _text_pieces(family: Family, tokens: int) -> Iterator[Piece]:
    """The layers of the text encoders: norms 4, attention 5, feed-forward with its gate 12."""
    for encoder, width in zip(family.text_encoders, TEXT_WIDTHS[family.name], strict=True):
        for _ in range(encoder.layers):
            yield Piece(21 * width * tokens, width * tokens)


def bytes_per_number(itemsize: int, device_type: str) -> float:
    """Bytes that one counted number takes in this format on this kind of device."""
    if itemsize >= 4:
        return BYTES_FP32
    return BYTES_16_CPU if device_type == "cpu" else BYTES_16_CUDA


def held_numbers(pieces: list[Piece], checkpointing: bool) -> float:
    """Numbers held at the worst moment: everything, or every block's inputs and one block that is computed again."""
    if not checkpointing:
        return sum(piece.inside for piece in pieces)
    return sum(piece.kept for piece in pieces) + max(piece.inside for piece in pieces)


def training_bytes(
    *,
    family: str,
    unet_parameters: int,
    resolution: int,
    batch_size: int,
    text_trained: bool,
    checkpointing: bool,
    itemsize: int,
    device_type: str,
    chunks: int = 1,
) -> float:
    """Bytes of activations at the worst moment of a training step, with the gradients of one block on the way."""
    side = max(1, resolution // 8)
    tokens = TOKENS * chunks
    pieces = list(unet_pieces(family, unet_widths(family, unet_parameters), side, side, tokens))
    numbers = held_numbers(pieces, checkpointing) + max(piece.inside for piece in pieces)
    if text_trained:
        numbers += held_numbers(list(_text_pieces(FAMILIES[family], tokens)), checkpointing)
    return numbers * batch_size * bytes_per_number(itemsize, device_type)


def _autoencoder_width(parameters: int) -> float:
    return VAE_WIDTH * (parameters / VAE_PARAMETERS) ** 0.5


def encoding_bytes(
    vae_parameters: int, resolution: int, batch_size: int, itemsize: int, device_type: str = "cpu"
) -> float:
    """Encoding pictures: five tensors of a residual block at full size are alive at once; on CUDA the workspaces of its
    convolutions come to that (measured on an H200: 22 such tensors at 512 px)."""
    tensors = 22 if device_type == "cuda" else 5
    return tensors * _autoencoder_width(vae_parameters) * resolution**2 * batch_size * itemsize


def decoding_bytes(vae_parameters: int, resolution: int, itemsize: int) -> float:
    """Decoding one picture: the same with twice the channels."""
    return 2 * encoding_bytes(vae_parameters, resolution, 1, itemsize)
