"""What a person asks for: the settings of one job, checked before anything is computed."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, fields

from PIL import Image

from extension.hosts.embedded.samplers import find_sampler, find_schedule
from trainers.errors import InputError

LONGEST_PROMPT = 100_000
LARGEST_SEED = 2**63 - 1
MOST_PIXELS = 64_000_000


@dataclass
class Request:
    """One job, by A1111's names and defaults; sizes of 0 mean the model's own.

    Attributes:
        prompt, negative_prompt: one for all pictures, or a list with one per picture.
        init_images, mask: with pictures it is img2img; the mask is white where something new is drawn.
        strip: also give, for every picture, a row of pictures from noise to the result.
    """

    prompt: str | list[str] = ""
    negative_prompt: str | list[str] = ""
    seed: int = -1
    steps: int = 20
    cfg_scale: float = 7.0
    width: int = 0
    height: int = 0
    batch_size: int = 1
    n_iter: int = 1
    sampler_name: str | None = "Euler a"
    scheduler: str | None = "Automatic"
    denoising_strength: float = 0.75
    clip_skip: int = 1
    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_upscaler: str | None = "Latent"
    hr_second_pass_steps: int = 0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_prompt: str = ""
    hr_negative_prompt: str = ""
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    init_images: list[Image.Image] = field(default_factory=list)
    mask: Image.Image | None = None
    mask_blur: int = 4
    inpainting_mask_invert: int = 0
    resize_mode: int = 0
    default_scope: str = "all"
    strip: bool = False

    def prompts_for(self, count: int) -> tuple[list[str], list[str]]:
        """(prompts, negative prompts) of `count` pictures; a list repeats from its beginning."""
        return _repeated(self.prompt, count), _repeated(self.negative_prompt, count)

    @property
    def pictures(self) -> int:
        """How many pictures the job draws."""
        lengths = [len(value) for value in (self.prompt, self.negative_prompt) if isinstance(value, list)]
        return max([self.batch_size * self.n_iter, *lengths])


def _repeated(value: str | list[str], count: int) -> list[str]:
    texts = [value] if isinstance(value, str) else (value or [""])
    return [texts[number % len(texts)] for number in range(count)]


# name, what it is called, smallest, largest
_WHOLE = (
    ("seed", -1, LARGEST_SEED),
    ("steps", 1, 1000),
    ("batch_size", 1, 64),
    ("n_iter", 1, 1000),
    ("width", 0, 8192),
    ("height", 0, 8192),
    ("clip_skip", 0, 12),
    ("hr_second_pass_steps", 0, 1000),
    ("hr_resize_x", 0, 8192),
    ("hr_resize_y", 0, 8192),
    ("mask_blur", 0, 256),
)
_SIDES = ("width", "height")  # 0 stands for the model's own, where a person named none
_SMALLEST_SIDE = 8
_REAL = (("cfg_scale", 0.0, 100.0), ("denoising_strength", 0.0, 1.0), ("hr_scale", 1.0, 8.0))


def _check_numbers(request: Request) -> list[str]:
    problems = []
    for name, smallest, largest in (*_WHOLE, *_REAL):
        value = getattr(request, name)
        whole = (name, smallest, largest) in _WHOLE
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            problems.append(f"{name}: {str(value)[:40]!r} is not a number.")
        elif whole and value != int(value):
            problems.append(f"{name}: {value} is not a whole number.")
        elif not smallest <= value <= largest:
            problems.append(
                f"{name}: {value} is not between {_SMALLEST_SIDE if name in _SIDES else smallest} and {largest}."
            )
        elif whole:
            setattr(request, name, int(value))
    return problems


def _check_texts(request: Request) -> list[str]:
    problems = []
    for name in ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt"):
        value = getattr(request, name)
        texts = value if isinstance(value, list) and not name.startswith("hr_") else [value]
        if not all(isinstance(text, str) for text in texts):
            problems.append(f"{name}: a text is expected.")
        elif any(len(text) > LONGEST_PROMPT for text in texts):
            problems.append(f"{name}: a prompt may have {LONGEST_PROMPT} characters at most.")
        elif len(texts) > 1000:
            problems.append(f"{name}: a job may have 1000 prompts at most.")
    return problems


def _check_size(request: Request) -> list[str]:
    sides = [(request.width, request.height)]
    if request.enable_hr:
        sides.append(hires_size(request))
    return [
        f"size: {width}x{height} has a side that is no multiple of 8; use {round_8(width)}x{round_8(height)}."
        if width % 8 or height % 8
        else f"size: {width}x{height} is too large."
        for width, height in sides
        if width % 8 or height % 8 or width * height > MOST_PIXELS
    ]


def round_8(value: float) -> int:
    """The nearest multiple of 8, at least 8."""
    return max(8, round(value / 8) * 8)


def hires_size(request: Request) -> tuple[int, int]:
    """(width, height) of the hires pass."""
    across, down = request.hr_resize_x, request.hr_resize_y
    if across and down:
        return round_8(across), round_8(down)
    factor = request.hr_scale
    if across or down:
        factor = across / request.width if across else down / request.height
    return round_8(request.width * factor), round_8(request.height * factor)


def settle(request: Request, native: tuple[int, int]) -> Request:
    """Checks a request and fills in what was left to us: the size and the seed.

    Args:
        native: (width, height) the model was made for.

    Raises:
        InputError: with one sentence for everything that will not do.
    """
    problems = _check_numbers(request) + _check_texts(request)
    if problems:
        raise InputError(*problems)
    request.width, request.height = request.width or native[0], request.height or native[1]
    problems = _check_size(request)
    for sampler, schedule in (
        (request.sampler_name, request.scheduler),
        (request.hr_sampler_name, request.hr_scheduler),
    ):
        try:
            find_sampler(sampler)
            find_schedule(schedule)
        except InputError as problem:
            problems += problem.problems
    if request.default_scope not in ("all", "picture", "part"):
        problems.append(f"default_scope: {request.default_scope!r} is not one of all, picture, part.")
    if problems:
        raise InputError(*problems)
    if request.seed < 0:
        request.seed = random.SystemRandom().randrange(2**32 - 1)
    return request


NAMES = frozenset(one.name for one in fields(Request))
