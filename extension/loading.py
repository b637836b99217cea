"""Loads our packages inside a WebUI under names that no other extension uses.

Extensions of a host share one interpreter, and others own packages called `extension` or `trainers` too: whoever comes
first would be everyone's. So inside a host ours are `athanor_extension` and `athanor_trainers`, and the absolute
imports between them are read as those names. Byte code is kept under names of its own, because the same files are run
under their plain names by the trainer's process and by the tests.

This file is loaded by its path and imports nothing of ours.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import marshal
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("extension", "trainers")
PREFIX = "athanor_"
_HEAD = importlib.util.MAGIC_NUMBER + hashlib.sha256(Path(__file__).read_bytes()).digest()[:8]
"""What byte code begins with: the Python and this file, which changes imports, that made it."""


def renamed(name: str) -> str:
    """`extension.prompt` -> `athanor_extension.prompt`; other names as they are."""
    return PREFIX + name if name.split(".")[0] in PACKAGES else name


class _Imports(ast.NodeTransformer):
    """Absolute imports of our packages, anywhere in a module, under the names they have here."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.level == 0 and node.module:
            node.module = renamed(node.module)
        return node

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        statements: list[ast.stmt] = [node]
        for alias in node.names:
            plain, alias.name = alias.name, renamed(alias.name)
            if alias.name != plain and alias.asname is None:
                # `import extension.prompt` binds `extension`.
                top = plain.split(".")[0]
                bind = ast.Import([ast.alias(renamed(top), top)])
                statements.append(ast.copy_location(bind, node))
        return statements


class _Loader(importlib.abc.Loader):
    """Runs one of our files with its imports renamed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(_code(self._path), module.__dict__)


def _code(path: Path) -> CodeType:
    """The code of one of our files, from its byte code where that is of this very file and this Python."""
    state = path.stat()
    head = _HEAD + struct.pack("<qq", state.st_mtime_ns, state.st_size)
    cache = path.parent / "__pycache__" / f"{path.stem}.athanor-{sys.implementation.cache_tag}.pyc"
    try:
        kept = cache.read_bytes()
        if kept.startswith(head):
            return marshal.loads(kept[len(head) :])
    except (OSError, ValueError, EOFError, TypeError):
        pass  # none yet, or a damaged one
    tree = ast.fix_missing_locations(_Imports().visit(ast.parse(path.read_bytes(), str(path))))
    code = compile(tree, str(path), "exec", dont_inherit=True)
    if not sys.dont_write_bytecode:
        _keep(cache, head + marshal.dumps(code))
    return code


def _keep(cache: Path, content: bytes) -> None:
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        cache.parent.mkdir(exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, cache)
    except OSError:
        temporary.unlink(missing_ok=True)  # a folder that cannot be written: then without


class Finder(importlib.abc.MetaPathFinder):
    """Finds `athanor_extension…` and `athanor_trainers…` in our folder, and nothing else."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        plain = fullname.removeprefix(PREFIX)
        if plain == fullname or plain.split(".")[0] not in PACKAGES:
            return None
        place = self.root.joinpath(*plain.split("."))
        package = place / "__init__.py"
        if package.is_file():
            loader = _Loader(package)
            return importlib.util.spec_from_file_location(
                fullname, package, loader=loader, submodule_search_locations=[str(place)]
            )
        file = place.with_name(place.name + ".py")
        return importlib.util.spec_from_file_location(fullname, file, loader=_Loader(file)) if file.is_file() else None


def compile_all(root: Path = ROOT) -> None:
    """Writes the byte code of all that a host may load, so that its next start need not."""
    for package in PACKAGES:
        for path in (root / package).rglob("*.py"):
            _code(path)


def load(name: str) -> ModuleType:
    """One of our modules, such as `extension.plugin`, under its name inside a host."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
    return importlib.import_module(renamed(name))
