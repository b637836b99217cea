"""What a person does in the tab, by labels and keyboard; the same in every WebUI's page."""

from __future__ import annotations

import base64
import contextlib
import mimetypes
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

PROMPT = "#txt2img_prompt textarea, textarea#txt2img_prompt"
_ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextlib.contextmanager
def opened(playwright: Any, browser: str, address: str, **wishes: Any) -> Iterator[Any]:
    """A page at an address; `page.errors` holds what went wrong in it, the console's errors included."""
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=browser, args=_ARGUMENTS)
        page = running.new_page(**wishes)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(f"{error}\n{error.stack}"))
        page.on("console", lambda said: page.errors.append(_told(said)) if _is_error(said, address) else None)
        page.set_default_timeout(90_000)
        page.goto(address, wait_until="domcontentloaded")
        yield page
        running.close()


def our_errors(page: Any) -> list[str]:
    """What went wrong in our scripts or routes; a WebUI's own scripts have errors of their own."""
    return [error for error in page.errors if "athanor" in error]


def _is_error(said: Any, address: str) -> bool:
    """Whether the console says that something of this page went wrong; what older gradios fetch elsewhere is theirs."""
    addresses = re.findall(r"https?://([^/\s)]+)", f"{said.text} {said.location.get('url', '')}")
    return said.type == "error" and all(each == address.split("/")[2] for each in addresses)


def _told(said: Any) -> str:
    return f"{said.text} ({said.location.get('url', '')})"


_DROP = """([files, place]) => {
  const given = new DataTransfer(), bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  for (const [name, type, text] of files) given.items.add(new File([bytes(text)], name, { type }));
  const dropped = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: given });
  document.querySelector(place).dispatchEvent(dropped);
}"""


def drop(page: Any, place: str, files: Mapping[str, bytes]) -> None:
    """Drops files, by their names, on what a selector finds."""
    kinds = {name: mimetypes.guess_type(name)[0] or "" for name in files}
    given = [[name, kinds[name], base64.b64encode(content).decode()] for name, content in files.items()]
    page.evaluate(_DROP, [given, place])


def open_tab(page: Any, name: str) -> None:
    """Shows a tab of the WebUI; gradio 3 makes buttons of them, and Forge writes "Txt2img"."""
    named = re.compile(rf"^\s*{name}\s*$", re.IGNORECASE)
    page.get_by_role("tab", name=named).or_(page.get_by_role("button", name=named)).first.click()


def set_option(page: Any, option: str, value: str | bool) -> None:
    """Sets an option under Expert, which is open."""
    tab = page.locator("#athanor")
    tab.get_by_label("Search", exact=True).fill(option)
    field = tab.get_by_label(re.compile(rf"^{option}( \(.*\))?$")).first  # some have a unit behind
    if isinstance(value, bool):
        field.set_checked(value)
    else:
        field.fill(value)
        field.press("Tab")
    tab.get_by_label("Search", exact=True).fill("")


def train_from_the_form(
    page: Any, folder: Path, trigger: str, steps: int, look: Callable[[], None] = lambda: None
) -> None:
    """Fills the form and starts; keys and labels only. `look` is called before the start."""
    tab = page.locator("#athanor")
    tab.get_by_role("tab", name="Train", exact=True).press("Enter")
    tab.get_by_label("Pictures", exact=True).fill(str(folder))
    tab.get_by_label("Trigger word", exact=True).fill(trigger)
    tab.get_by_label("Name of the result", exact=True).press("Tab")
    assert tab.get_by_label("Name of the result", exact=True).input_value() == re.sub(r"\s+", "-", trigger)
    if not tab.get_by_label("steps", exact=True).is_visible():
        tab.get_by_text("Expert: every option").press("Enter")
    tab.get_by_label("steps", exact=True).fill(str(steps))
    tab.get_by_label("steps", exact=True).press("Tab")
    look()
    tab.get_by_role("button", name="Train", exact=True).press("Enter")


def wait_until_done(page: Any, steps: int) -> None:
    """Until the run that is shown is done."""
    page.locator("#athanor .athanor-detail").get_by_text(f"done · step {steps} of {steps}").wait_for()


def use_in_prompt(page: Any) -> str:
    """Presses the button of the finished run's file; gives what is in the prompt then."""
    page.locator("#athanor").get_by_role("button", name=re.compile("^Use (in prompt|this)")).first.press("Enter")
    page.wait_for_function(f"document.querySelector('{PROMPT}') && document.querySelector('{PROMPT}').value != ''")
    return page.locator(PROMPT).first.input_value()
