"""Pictures beside each other with headings: the layout of a verdict sheet."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

INK, QUIET, PAPER, MARK = (24, 24, 27), (113, 113, 122), (255, 255, 255), (194, 65, 12)
SMALLEST, LARGEST, GAP = 128, 256, 4
# Pillow's own letters are Latin; these are found by name where a system has them.
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "msyh.ttc", "simhei.ttf",
               "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf")  # fmt: skip

Column = tuple[str, float, bool, Sequence[Image.Image]]


@lru_cache(8)
def _font(size: int, latin: bool) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    for name in () if latin else _WIDE_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one size
        return ImageFont.load_default()


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: tuple[int, int, int]) -> None:
    latin = all(ord(letter) < 0x250 for letter in text)
    try:
        draw.multiline_text(at, text, fill=colour, font=_font(size, latin), spacing=4)
    except (UnicodeError, OSError):  # letters that no font here has
        plain = text.encode("ascii", "replace").decode("ascii")
        draw.multiline_text(at, plain, fill=colour, font=_font(size, True), spacing=4)


def compose_sheet(
    title: str, prompts: Sequence[str], before: Sequence[Image.Image], columns: Sequence[Column]
) -> Image.Image:
    """A line for each prompt: the prompt, the picture before, then one picture of each column.

    Args:
        columns: (heading, strength, whether it is the best, a picture for each prompt); neighbours with the same
            heading share it.
    """
    side = min(LARGEST, max(SMALLEST, before[0].width))
    text, small = max(12, side // 13), max(11, side // 16)
    label = max(150, side)
    lefts, x, former = [], label + GAP, None
    for heading, _, _, _ in [("before", 1.0, False, before), *columns]:
        x += 0 if heading == former or former is None else 3 * GAP
        lefts.append(x)
        x, former = x + side + GAP, heading
    said = textwrap.wrap(title, max(20, int(x / (text * 0.56))))[:5]
    top = (len(said) + 1) * (text + 2) + 3 * small + 4
    sheet = Image.new("RGB", (x + GAP, top + len(prompts) * (side + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (2 * GAP, GAP), "\n".join(said), text, INK)
    for row, prompt in enumerate(prompts):
        lines = textwrap.wrap(prompt, max(8, int(label / (small * 0.6))))[: max(3, side // (small + 6))]
        _write(draw, (2 * GAP, top + row * (side + GAP) + GAP), "\n".join(lines), small, INK)
    former = None
    for left, (heading, weight, is_best, drawn) in zip(lefts, [("before", 0.0, False, before), *columns], strict=True):
        colour = MARK if is_best else QUIET
        if heading != former:
            _write(draw, (left, top - 2 * small - 12), heading + (" (best)" if is_best else ""), small, colour)
        if weight:
            _write(draw, (left, top - small - 9), f"{weight:g}", small, colour)
        for row, picture in enumerate(drawn):
            scaling = Image.Resampling.NEAREST if picture.width < side else Image.Resampling.LANCZOS
            sheet.paste(picture.resize((side, side), scaling), (left, top + row * (side + GAP)))
        if is_best:
            draw.line((left, top - 3, left + side - 1, top - 3), fill=MARK, width=3)
        former = heading
    return sheet
