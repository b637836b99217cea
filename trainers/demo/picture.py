"""The labelled before/after picture: one row per prompt, without the adapter on the left, with it on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

TILE = 176
GAP = 10
MARGIN = 40
LABEL_WIDTH = 250
COLUMN_GAP = 44
INK, SOFT, LINE, PAPER = (28, 30, 34), (105, 110, 118), (222, 225, 229), (255, 255, 255)


@dataclass(frozen=True)
class Row:
    """One prompt with its seeds, and a picture per seed without and with the adapter."""

    prompt: str
    seeds: Sequence[int]
    before: Sequence[Image.Image]
    after: Sequence[Image.Image]


@dataclass(frozen=True)
class Group:
    """Rows under a heading."""

    heading: str
    rows: Sequence[Row]


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def wrap(draw: ImageDraw.ImageDraw, text: str, font, width: int) -> list[str]:
    """`text` in lines of at most `width` px; a single long word is left as it is."""
    lines: list[str] = []
    for word in text.split():
        if lines and draw.textlength(f"{lines[-1]} {word}", font=font) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _paragraph(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, width: int, fill) -> int:
    """Writes wrapped text at `at`; returns the y below it."""
    font = _font(size)
    x, y = at
    for line in wrap(draw, text, font, width):
        draw.text((x, y), line, font=font, fill=fill)
        y += round(size * 1.35)
    return y


def _row(page: Image.Image, draw: ImageDraw.ImageDraw, top: int, row: Row, columns: tuple[int, int]) -> None:
    seeds = "seed " + str(row.seeds[0]) if len(row.seeds) == 1 else "seeds " + ", ".join(map(str, row.seeds))
    y = _paragraph(draw, (MARGIN, top + 6), row.prompt, 19, LABEL_WIDTH - 20, INK)
    draw.text((MARGIN, y + 6), seeds, font=_font(14), fill=SOFT)
    for left, pictures in zip(columns, (row.before, row.after), strict=True):
        for number, picture in enumerate(pictures):
            # Nearest would show squares, and these are drawings with soft edges.
            shown = picture.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)
            page.paste(shown, (left + number * (TILE + GAP), top))


def compose(title: str, subtitle: str, groups: Sequence[Group], footnote: str, result: str = "LoRA") -> Image.Image:
    """The whole page. Every row must have the same number of seeds; `result` is what the right column has."""
    seeds = max(len(row.seeds) for group in groups for row in group.rows)
    block = seeds * (TILE + GAP) - GAP
    columns = (MARGIN + LABEL_WIDTH, MARGIN + LABEL_WIDTH + block + COLUMN_GAP)
    width = columns[1] + block + MARGIN
    page = Image.new("RGB", (width, 4000), PAPER)
    draw = ImageDraw.Draw(page)
    y = _paragraph(draw, (MARGIN, MARGIN), title, 30, width - 2 * MARGIN, INK) + 4
    y = _paragraph(draw, (MARGIN, y), subtitle, 17, width - 2 * MARGIN, SOFT) + 22
    for left, text in zip(columns, (f"without the {result}", f"with the {result}"), strict=True):
        draw.text((left, y), text, font=_font(20), fill=INK)
    y += 34
    for group in groups:
        draw.line((MARGIN, y, width - MARGIN, y), fill=LINE, width=2)
        draw.text((MARGIN, y + 12), group.heading, font=_font(16), fill=SOFT)
        y += 44
        for row in group.rows:
            _row(page, draw, y, row, columns)
            y += TILE + GAP
        y += 14
    draw.line((MARGIN, y, width - MARGIN, y), fill=LINE, width=2)
    y = _paragraph(draw, (MARGIN, y + 16), footnote, 16, width - 2 * MARGIN, SOFT)
    return page.crop((0, 0, width, y + MARGIN))
