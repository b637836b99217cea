"""The project itself: import arrows, presets, the options reference, and what must not be in the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainers import presets, spec
from trainers.errors import InputError
from trainers.options import FIELDS, ONE_PASS
from trainers.tools import options_doc

ROOT = Path(__file__).resolve().parent.parent
TEXT_ENDINGS = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".ini", ".js", ".css", ".cfg", ""}


def _tracked() -> list[Path]:
    """The files of the repository (what git would take), or every file where this is not a checkout."""
    try:
        names = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True, encoding="utf-8"
        ).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a git checkout")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def _texts() -> list[tuple[Path, str]]:
    files = [path for path in _tracked() if path.suffix in TEXT_ENDINGS and path.stat().st_size < 1_000_000]
    return [(path, path.read_text(encoding="utf-8", errors="replace")) for path in files]


def test_import_contracts_hold():
    from installer.checks import CONTRACTS

    done = subprocess.run([sys.executable, "-c", CONTRACTS], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_package_is_under_the_contracts():
    """A new top-level package must be added to the contracts of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = {path.parent.name for path in _tracked() if path.name == "__init__.py" and path.parent.parent == ROOT}
    under_contract = set(re.findall(r'"(\w+)"', re.search(r"root_packages = (\[.*?\])", text, re.S).group(1)))
    assert packages - {"assets", "tests", "benchmarks"} <= under_contract


def test_the_bridge_imports_without_the_trainers_libraries():
    """What the host's process imports must work where diffusers and the others are not installed."""
    names = "diffusers transformers peft accelerate"
    code = (
        "import sys\n"
        f"for name in {names.split()}: sys.modules[name] = None\n"
        "import trainers.errors, trainers.events, trainers.formats, trainers.options, trainers.spec\n"
        "import importlib, pkgutil\n"
        "for found in pkgutil.walk_packages(trainers.formats.__path__, 'trainers.formats.'):\n"
        "    importlib.import_module(found.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_path_of_a_machine_is_in_the_repository():
    homes = re.compile(r"(?<![\w.<])(?:/home/\w+|/Users/\w+|/root/|/work/|[A-Z]:\\Users\\)")
    found = [f"{path.relative_to(ROOT)}: {match.group()}" for path, text in _texts() for match in homes.finditer(text)]
    own = str(Path(__file__).relative_to(ROOT))
    assert [line for line in found if not line.startswith(own)] == []


def test_files_are_short_enough_to_read_in_one_sitting():
    long = [
        f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines"
        for path, text in _texts()
        if path.suffix == ".py" and text.count("\n") > 500
    ]
    assert long == []


# --- options and presets


def test_the_options_reference_is_up_to_date():
    assert options_doc.TARGET.read_text(encoding="utf-8") == options_doc.document(), (
        "run: python -m trainers.tools.options_doc"
    )


def test_every_option_is_documented():
    text = options_doc.document()
    assert [option.name for option in FIELDS if f"| `{option.name}`" not in text] == []
    assert [option.name for option in FIELDS if not option.help.endswith(".")] == []


@pytest.mark.parametrize("name", presets.preset_names())
def test_presets_are_valid_jobs(name):
    raw = presets.load_preset(name)
    if raw["method"] in ONE_PASS:
        assert spec.parse({**raw, "name": "x", "data": "d", "clip_model": "c"})
        return
    job = spec.parse({**raw, "name": "x", "base": "b.safetensors", "data": "d"})
    if name.startswith("sdxl"):
        assert job.resolution == 1024 and not job.get("train_text_encoder")
    exposures = job.steps * job.batch_size * job.gradient_accumulation
    assert name.startswith("demo") or 1000 <= exposures <= 12000


def test_presets_explain_themselves():
    for name in presets.preset_names():
        text = (presets.FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
        assert text.startswith("# ") and text.count("#") >= 3


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(InputError, match='Did you mean "sd1-person"'):
        presets.load_preset("sd1-persn")


def test_a_preset_may_be_a_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("rank: 4\n")
    assert presets.load_preset(str(tmp_path / "mine.yaml")) == {"rank": 4}
    with pytest.raises(InputError, match="no such job file"):
        presets.load_preset(str(tmp_path / "none.yaml"))
