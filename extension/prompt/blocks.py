"""Block weights (`lbw=`): which value belongs to which block of the model, as in sd-webui-lora-block-weight.

Blocks carry that extension's names: BASE is the text encoders, IN00 to IN11 and OUT00 to OUT11 are the UNet's
`input_blocks` and `output_blocks` of the single-file layout, M00 is its middle block.
"""

from __future__ import annotations

from dataclasses import dataclass


def _numbered(prefix: str, numbers: range | tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"{prefix}{number:02}" for number in numbers)


BASE, MIDDLE = "BASE", "M00"

SD1_BLOCKS = (BASE, *_numbered("IN", range(12)), MIDDLE, *_numbered("OUT", range(12)))
SDXL_BLOCKS = (BASE, *_numbered("IN", range(9)), MIDDLE, *_numbered("OUT", range(9)))

TABLES: dict[int, tuple[str, ...]] = {
    26: SD1_BLOCKS,
    17: (BASE, *_numbered("IN", (1, 2, 4, 5, 7, 8)), MIDDLE, *_numbered("OUT", range(3, 12))),
    20: SDXL_BLOCKS,
    12: (BASE, *_numbered("IN", (4, 5, 7, 8)), MIDDLE, *_numbered("OUT", range(6))),
}
"""How many values are given -> the blocks they are for. 17 and 26 describe SD1 and SD2, 12 and 20 SDXL; the short
ones list only the blocks that have attention."""

FAMILY_BLOCKS = {"sd1": SD1_BLOCKS, "sd2": SD1_BLOCKS, "sdxl": SDXL_BLOCKS}

PRESETS: dict[str, dict[str, tuple[str, ...]]] = {
    "NONE": {"sd1": (), "sdxl": ()},
    "ALL": {"sd1": SD1_BLOCKS, "sdxl": SDXL_BLOCKS},
    "INS": {"sd1": (BASE, *_numbered("IN", range(5))), "sdxl": (BASE, *_numbered("IN", range(5)))},
    "IND": {"sd1": (BASE, *_numbered("IN", range(5, 12))), "sdxl": (BASE, *_numbered("IN", range(5, 9)))},
    "INALL": {"sd1": (BASE, *_numbered("IN", range(12))), "sdxl": (BASE, *_numbered("IN", range(9)))},
    "MIDD": {
        "sd1": (BASE, *_numbered("IN", range(5, 12)), MIDDLE, *_numbered("OUT", range(7))),
        "sdxl": (BASE, *_numbered("IN", range(5, 9)), MIDDLE, *_numbered("OUT", range(4))),
    },
    "OUTD": {"sd1": (BASE, *_numbered("OUT", range(7))), "sdxl": (BASE, *_numbered("OUT", range(4)))},
    "OUTS": {"sd1": (BASE, *_numbered("OUT", range(7, 12))), "sdxl": (BASE, *_numbered("OUT", range(4, 9)))},
    "OUTALL": {"sd1": (BASE, *_numbered("OUT", range(12))), "sdxl": (BASE, *_numbered("OUT", range(9)))},
}
"""The blocks that are on. On the 17 blocks of a plain SD1 LoRA they are sd-webui-lora-block-weight's presets value for
value. They go on where those end: its 17 values leave a LoCon's other blocks and half of SDXL at 0, so that ALL would
not be all; here a preset covers every block of the family, SDXL's by the same depth (OUTn of SDXL lies as deep as
OUTn+3 of SD1)."""


@dataclass(frozen=True)
class Blocks:
    """Values of `lbw=`: a preset's name, or 12, 17, 20 or 26 numbers.

    Attributes:
        values: the numbers in the order of `TABLES[len(values)]`; empty for a preset.
        preset: a key of `PRESETS`, or "" when numbers were given.
    """

    values: tuple[float, ...] = ()
    preset: str = ""

    def weights(self, family: str) -> dict[str, float]:
        """Block name -> factor for every block of `family` ("sd1", "sd2" or "sdxl").

        Blocks that the numbers do not mention get 0, as in sd-webui-lora-block-weight. KeyError for other families.
        """
        blocks = FAMILY_BLOCKS[family]
        if self.preset:
            on = PRESETS[self.preset]["sdxl" if family == "sdxl" else "sd1"]
            return {block: float(block in on) for block in blocks}
        given = dict(zip(TABLES[len(self.values)], self.values, strict=True))
        return {block: given.get(block, 0.0) for block in blocks}

    def fits(self, family: str) -> bool:
        """Whether the number of values is one that describes `family`; a preset always does."""
        return bool(self.preset) or (family in FAMILY_BLOCKS and len(self.values) in lengths_for(family))


def lengths_for(family: str) -> tuple[int, int]:
    """How many values describe a LoRA and a LoCon of this family."""
    return (12, 20) if family == "sdxl" else (17, 26)


def block_of(ldm_path: str) -> str | None:
    """The block of a UNet layer named by its path in a single file, e.g. `input_blocks.4.1.proj_in` -> IN04.

    None for layers outside the blocks (`time_embed`, `label_emb`, `out`), to which block weights do not apply.
    """
    parts = ldm_path.removeprefix("model.diffusion_model.").split(".")
    if parts[0] == "middle_block":
        return MIDDLE
    prefix = {"input_blocks": "IN", "output_blocks": "OUT"}.get(parts[0])
    if prefix is None or len(parts) < 2 or not parts[1].isdecimal():
        return None
    return f"{prefix}{int(parts[1]):02}"
