"""What a person does on the Data screen, by labels and keyboard; the same in every WebUI's page."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from page_steps import drop
from PIL import Image

PICTURES = Path(__file__).resolve().parent.parent / "assets" / "pictures" / "basketball" / "train"
_CAPTIONS = (
    "zwx, ball, blue", "zwx, ball, green, checked", "zwx, ball, white", "zwx, ball, yellow", "zwx, ball, purple",
    "zwx, ball, pink",
)  # fmt: skip
SIDE = 256
"""What the good pictures are cut for."""
_IS_DRAWN = "(image) => image.complete && image.naturalWidth > 0"


def pictures_with_troubles(folder: Path) -> Path:
    """Six good pictures, one of them wide; one damaged, one copied, one tiny, one without a caption."""
    folder.mkdir(parents=True)
    for number, caption in enumerate(_CAPTIONS, 1):
        shutil.copyfile(PICTURES / f"{number:02}.png", folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"{caption}\n", encoding="utf-8")
    with Image.open(PICTURES / "03.png") as wide:
        wide.resize((2 * SIDE, SIDE)).save(folder / "03.png")
    shutil.copyfile(folder / "01.png", folder / "copy of 01.png")
    shutil.copyfile(PICTURES / "08.png", folder / "without caption.png")
    (folder / "damaged.png").write_bytes((folder / "02.png").read_bytes()[:3000])
    with Image.open(PICTURES / "07.png") as tiny:
        tiny.resize((40, 40)).save(folder / "tiny 小.png")
    for name in ("copy of 01", "damaged", "tiny 小"):
        (folder / f"{name}.txt").write_text("zwx, ball\n", encoding="utf-8")
    return folder


class Data:
    """The Data screen of an opened page."""

    def __init__(self, page: Any) -> None:
        self.page, self.screen = page, page.locator("#athanor-screen-data")

    def open(self) -> Data:
        """Shows the screen."""
        self.page.locator("#athanor-to-data").press("Enter")
        return self

    def show(self, folder: Path) -> None:
        """Asks for a folder; one that the page may not use is allowed by the button for that."""
        place = self.screen.get_by_label("Folder with pictures")
        place.fill(str(folder))
        place.press("Enter")
        allow = self.screen.get_by_role("button", name="Let this page use the folder")
        allow.or_(self.screen.get_by_role("heading", name=folder.name)).first.wait_for()
        if allow.is_visible():
            allow.press("Enter")
        self.screen.get_by_role("heading", name=folder.name).wait_for()

    def looked(self) -> None:
        """Waits until every pixel was looked at."""
        self.screen.get_by_text(re.compile("to look at|nothing wrong found")).wait_for()

    def cut_for(self, side: int) -> None:
        """Sets the resolution that buckets are made for."""
        field = self.screen.get_by_label("Resolution that pictures are cut for")
        if field.input_value() != str(side):
            with self.page.expect_response(lambda answer: f"resolution={side}" in answer.url):
                field.fill(str(side))
                field.press("Tab")
        self.page.wait_for_function(f"document.querySelector('.athanor-datahead input').value === '{side}'")
        self.looked()

    def counted(self, where: str) -> dict[str, int]:
        """The texts and numbers of the chips (".athanor-chip") or of the tags (".athanor-tag")."""
        found = {}
        for button in self.screen.locator(f".athanor-chips {where}, .athanor-taglist {where}").all():
            number = button.locator("small").text_content().strip()
            found[button.text_content().strip().removesuffix(number).strip()] = int(number)
        return found

    def chip(self, name: str) -> None:
        """Shows only what a chip stands for, or all again."""
        self.screen.locator(".athanor-chips").get_by_role("button", name=re.compile(rf"^{name} \d+$")).press("Enter")

    def files(self) -> list[str]:
        """The names of the pictures that are shown."""
        return self.screen.locator(".athanor-picture figcaption b").all_text_contents()

    def thumbnails(self) -> int:
        """How many pictures are drawn, after each was scrolled to."""
        pictures = self.screen.locator(".athanor-thumb > img:first-child")
        for picture in pictures.all():
            picture.scroll_into_view_if_needed()
            self.page.wait_for_function(
                "(image) => image.complete && image.naturalWidth > 0", arg=picture.element_handle()
            )
        return pictures.count()

    def caption(self, file: str) -> Any:
        """The field of a picture's caption."""
        return self.screen.get_by_label(f"Caption of {file}", exact=True)

    def write(self, file: str, text: str) -> None:
        """Writes a caption in its place, and waits until it is on the disk."""
        with self.page.expect_response(lambda answer: "data/captions" in answer.url):
            self.caption(file).fill(text)
            self.caption(file).press("Control+Enter")
        self.screen.get_by_role("button", name=f"Undo: caption of {file}").wait_for()

    def undo(self, what: str) -> None:
        """Takes the last change back."""
        button = self.screen.get_by_role("button", name=f"Undo: {what}", exact=True)
        with self.page.expect_response(lambda answer: "data/undo" in answer.url):
            button.press("Enter")
        button.wait_for(state="detached")
        self.looked()

    def select(self, *files: str) -> None:
        """Selects these pictures and no other."""
        none = self.screen.get_by_role("button", name="Select none")
        if none.is_enabled():
            none.press("Enter")
        for file in files:
            self.screen.get_by_label(f"Select {file}", exact=True).check()

    def change(self, tool: str, tag: str, to: str = "") -> None:
        """Adds, removes or replaces a tag over what is selected."""
        self.screen.get_by_label("Tag", exact=True).fill(tag)
        self.screen.get_by_label("Replace by").fill(to)
        with self.page.expect_response(lambda answer: "data/captions" in answer.url):
            self.screen.get_by_role("button", name=re.compile(rf"^{tool}( \(\d+\))?$")).press("Enter")

    def drop(self, files: list[Path], into: str) -> None:
        """Drops files, which are copied into a folder of the page's own."""
        self.screen.get_by_label("Name of the folder that dropped pictures are copied into").fill(into)
        drop(self.page, "#athanor-screen-data .athanor-drop", {file.name: file.read_bytes() for file in files})
        self.screen.get_by_role("heading", name=into).wait_for()
        self.looked()
