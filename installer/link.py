"""`install.py link`: puts this folder into a WebUI that is installed elsewhere, and on request the embedded base."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from pathlib import Path

from installer.environment import ROOT, Environment
from installer.problems import SetupError, tail_of
from installer.processes import capture

NAME = "athanor"
BASE = "athanor-base"
_SIGNS = ("webui.py", "launch.py", "webui.sh", "webui-user.bat", "modules", "models", "extensions")
_NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "demo", "runs", "environment", ".*_cache")


def is_webui(folder: Path) -> bool:
    """Whether `folder` looks like a Stable Diffusion WebUI."""
    return (folder / "modules").is_dir() and sum((folder / sign).exists() for sign in _SIGNS) >= 3


SD_NEXT = "Athanor does not work in SD.Next yet; `python install.py serve` starts a small WebUI in which it trains."


def is_sd_next(folder: Path) -> bool:
    """Whether `folder` is SD.Next's, which has AUTOMATIC1111's layout over a backend of another kind."""
    return (folder / "installer.py").is_file() and (folder / "modules" / "processing_diffusers.py").is_file()


def check_webui(folder: Path) -> None:
    """Raises `SetupError` unless `folder` looks like a Stable Diffusion WebUI."""
    if not folder.is_dir():
        raise SetupError(f"{folder} does not exist or is not a folder.")
    if is_webui(folder):
        return
    inside = folder / "webui"
    hint = f" Did you mean {inside}?" if (inside / "modules").is_dir() else ""
    raise SetupError(f"{folder} is not the folder of a Stable Diffusion WebUI (it has no launch.py and modules).{hint}")


def link(webui: Path, with_base: bool = False, root: Path = ROOT) -> int:
    """Links the extension, and with `with_base` the base model; says what was done and overwrites no other file."""
    check_webui(webui)
    if is_sd_next(webui):
        raise SetupError(SD_NEXT)
    _link_folder(root, webui / "extensions" / NAME)
    if with_base:
        give_base(root, webui)
    print("Restart the WebUI to see it.")
    return 0


def _link_folder(root: Path, target: Path) -> None:
    if target.exists() and target.resolve() == root.resolve():
        print(f"{target} is already this folder.")
        return
    if os.path.lexists(target):
        raise SetupError(f"{target} is there already and is something else; rename or remove it first.")
    try:
        target.parent.mkdir(exist_ok=True)
        print(f"{target}: {_make_link(root, target)}.")
    except OSError as error:
        raise SetupError(f"{target} cannot be made ({error.strerror or error}).") from None


def _make_link(root: Path, target: Path) -> str:
    """A symbolic link; on Windows without that right a junction, and where neither works a copy."""
    try:
        target.symlink_to(root, target_is_directory=True)
        return f"linked to {root}"
    except (OSError, NotImplementedError):
        if os.name == "nt":
            status, _ = capture(["cmd", "/c", "mklink", "/J", target, root], timeout=30)
            if status == 0:
                return f"joined to {root}"
    shutil.copytree(root, target, ignore=_NOT_COPIED)
    return "copied (this system allows no link here; after an update of Athanor remove it and link again)"


# --- the embedded base model


def give_base(root: Path, webui: Path) -> None:
    """Puts the embedded base model, its settings and its vocabulary among a WebUI's models."""
    model = root / "assets" / "base" / f"{BASE}.safetensors"
    if not model.is_file():
        raise SetupError(f"{model} is missing; get the whole repository (a clone or the full archive).")
    folder = webui / "models" / "Stable-diffusion"
    encoder = folder / f"{BASE}-text-encoder"
    settings = (model.with_suffix(".yaml")).read_text(encoding="utf-8")
    # The host opens this file with its own working folder, so the path in it must be complete.
    settings = settings.replace("ATHANOR_TEXT_ENCODER", json.dumps(encoder.as_posix(), ensure_ascii=False))
    folder.mkdir(parents=True, exist_ok=True)
    _make_text_encoder_folder(root, encoder)
    _put_file(model, folder / model.name)
    _put_text(settings, folder / f"{BASE}.yaml")


def _refuse_if_different(same: bool, target: Path) -> None:
    if not same:
        raise SetupError(f"{target} is there already with other contents; rename or remove it first.")


def _put_file(source: Path, target: Path) -> None:
    if target.exists():
        _refuse_if_different(filecmp.cmp(source, target, shallow=False), target)
        return
    temporary = target.with_name(target.name + ".part")
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SetupError(f"{target} cannot be written ({error.strerror}).") from None
    print(f"{target}: copied.")


def _put_text(text: str, target: Path) -> None:
    if target.exists():
        _refuse_if_different(target.read_text(encoding="utf-8", errors="replace") == text, target)
        return
    target.write_text(text, encoding="utf-8")
    print(f"{target}: written.")


def _make_text_encoder_folder(root: Path, folder: Path) -> None:
    """config.json, vocab.json and merges.txt: what a host needs to build the text encoder without a download."""
    folder.mkdir(exist_ok=True)
    _put_file(root / "assets" / "base" / "text_encoder" / "config.json", folder / "config.json")
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return
    write = "import sys; from trainers.bases.tokenizer import write_vocabulary; write_vocabulary(sys.argv[1])"
    status, output = capture([Environment(root).ensure(), "-c", write, folder], timeout=300)
    if status != 0:
        raise SetupError(f"The vocabulary could not be written to {folder}.", tail_of(output))
    print(f"{folder}: made.")
