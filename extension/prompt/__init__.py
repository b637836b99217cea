"""The tag grammar: prompt text -> what to inject, how strongly, when, where and for whom.

Standard library only; nothing here knows a host, a model or a file. Prompt text is data and is never evaluated.
"""

from .batch import Active, BatchError, BatchTags, parse_batch
from .blocks import PRESETS, Blocks, block_of
from .curves import ALWAYS, ONE, Curve, Edge, Window
from .errors import TagError, printable
from .formatting import format_tag
from .names import nearest, resolve
from .parser import ParsedPrompt, embedding_text, parse_prompt
from .parts import Part
from .regions import REGIONS, Region
from .tags import (
    ADAPTER_KINDS,
    KINDS,
    OFF,
    Strength,
    Tag,
    Weights,
    combine,
    constant_weights,
    effective,
    schedule,
)

__all__ = [
    "ADAPTER_KINDS",
    "ALWAYS",
    "KINDS",
    "OFF",
    "ONE",
    "PRESETS",
    "REGIONS",
    "Active",
    "BatchError",
    "BatchTags",
    "Blocks",
    "Curve",
    "Edge",
    "ParsedPrompt",
    "Part",
    "Region",
    "Strength",
    "Tag",
    "TagError",
    "Weights",
    "Window",
    "block_of",
    "combine",
    "constant_weights",
    "effective",
    "embedding_text",
    "format_tag",
    "nearest",
    "parse_batch",
    "parse_prompt",
    "printable",
    "resolve",
    "schedule",
]
