"""What each method's demonstration teaches, and with which recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainers.errors import InputError, did_you_mean
from trainers.options import ONE_PASS, fields_for
from trainers.presets import load_preset

ROOT = Path(__file__).resolve().parent.parent.parent
ASSETS = ROOT / "assets"
RESULTS = {
    "lora": "LoRA",
    "textual_inversion": "embedding",
    "pivotal": "LoRA and its word",
    "dreambooth": "taught model",
    "hypernetwork": "hypernetwork",
    "aesthetic_gradient": "aesthetic gradient",
}
"""The methods that have a demonstration, and what each makes."""
TRAINED = tuple(method for method in RESULTS if method not in ONE_PASS)
"""Those of them that train in steps."""


@dataclass(frozen=True)
class Subject:
    """What is taught.

    Attributes:
        word: what it is called in captions and prompts; the result has this name.
        said: what it is, in the middle of a sentence.
        start: what a word for it starts from, of all that the base can draw.
        prompts: what is drawn to see whether it was learned.
        pictures: a folder with `train` and `held-out`, or what draws one into a folder.
        looks_like: (shape, colour) where the drawings can be told by them.
        was_new: how its pictures are said to stand to the base.
    """

    word: str
    said: str
    start: str
    prompts: tuple[str, ...]
    pictures: Path | Callable[[Path], None]
    was_new: str
    looks_like: tuple[str, str] | None = None


def _draw_zogs(folder: Path) -> None:
    from assets.recipe.taught import write_thing

    for part, (name, count) in enumerate((("train", 16), ("held-out", 8))):
        write_thing(folder / name, *ZOG.looks_like, ZOG.word, count, part)


FOOTBALL = Subject(
    "football",
    "the football",
    "white circle",
    (
        "a large football on a green background",
        "a football on a blue background",
        "a football on a pink background",
    ),
    ASSETS / "pictures" / "football",
    "The embedded base had never seen a football",
)
ZOG = Subject(
    "zog",
    "what a zog is",
    "circle",
    (
        "a zog on a green background",
        "a large zog on a white background",
        "a zog on the left on a black background",
        "a zog on a striped yellow background",
    ),
    _draw_zogs,
    "The embedded base can draw a pink heart, and had never read the word zog",
    ("heart", "pink"),
)


@dataclass(frozen=True)
class Task:
    """What a demonstration works on; tests put smaller things in."""

    base: Path = ASSETS / "base" / "athanor-base.safetensors"
    unrelated: Path = ASSETS / "pictures" / "unrelated"
    known: int = 160
    preset: str = "demo"
    method: str = "lora"
    subject: Subject = field(default=FOOTBALL)

    @property
    def result(self) -> str:
        """What comes out, in the middle of a sentence."""
        return RESULTS[self.method]

    @property
    def keeps(self) -> bool:
        """Whether known drawings are shown in turn with the new thing: a word of its own changes nothing else."""
        return self.method != "textual_inversion"

    def pictures(self, out: Path) -> Path:
        """The folder with the subject's pictures, `train` and `held-out`."""
        return self.subject.pictures if isinstance(self.subject.pictures, Path) else out / "pictures"

    def prepare(self, out: Path) -> None:
        """Draws what the training looks at beside the bundled pictures."""
        from assets.recipe.known import write_known

        # Drawings of what the base knows, shown in turn with the new thing: without them a small model forgets at once.
        if self.keeps:
            write_known(out / "known", self.known)
        if not isinstance(self.subject.pictures, Path):
            self.subject.pictures(self.pictures(out))

    def job(self, out: Path) -> dict[str, Any]:
        """The raw options of the training job."""
        return {
            **load_preset(self.preset),
            **({"regularisation_data": str(out / "known")} if self.keeps else {}),
            **({"initial_text": self.subject.start} if has_option(self.method, "initial_text") else {}),
            **({"verdict": False} if has_option(self.method, "verdict") else {}),  # before and after is its picture
            "name": self.subject.word,
            "comment": "made by `python install.py demo`",
            "base": str(self.base),
            "data": str(self.pictures(out) / "train"),
            "validation_data": str(self.pictures(out) / "held-out"),
            "prior_data": str(self.unrelated),
            "cache_dir": str(out / "cache"),
        }


def has_option(method: str, name: str) -> bool:
    """Whether a method has an option."""
    return name in (option.name for option in fields_for(method))


def task_for(method: str) -> Task:
    """The demonstration of a method that trains in steps.

    Raises:
        InputError: it has none.
    """
    if method not in RESULTS:
        raise InputError(f"--method: {method!r} is not one of {', '.join(RESULTS)}." + did_you_mean(method, RESULTS))
    if method == "lora":
        return Task()
    if method == "textual_inversion":
        return Task(preset=f"demo/{method}", method=method, subject=ZOG)
    return Task(preset=f"demo/{method}", method=method)
