"""Our packages inside a host: under names of their own, whatever other extensions have."""

from __future__ import annotations

import runpy
import sys
import types

import pytest

from extension import loading


@pytest.fixture
def crowded(monkeypatch):
    """Another extension's packages `extension` and `trainers` came first; ours are not loaded yet."""
    foreign = {}
    for name in list(sys.modules):
        if name.split(".")[0] in ("extension", "trainers", "athanor_extension", "athanor_trainers"):
            monkeypatch.delitem(sys.modules, name)
    for name in ("extension", "trainers"):
        foreign[name] = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, foreign[name])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield foreign
    for name in list(sys.modules):
        if name.split(".")[0] in ("athanor_extension", "athanor_trainers"):
            del sys.modules[name]


def test_neither_shadows_the_other(crowded):
    wanted = loading.load("extension.wanted")
    assert wanted.__name__ == "athanor_extension.wanted"
    assert sys.modules["extension"] is crowded["extension"] and sys.modules["trainers"] is crowded["trainers"]
    assert not hasattr(crowded["extension"], "wanted")
    assert sys.modules["athanor_trainers.errors"].InputError is wanted.InputError


def test_every_name_inside_is_the_renamed_one(crowded):
    loading.load("extension.wanted")
    ours = {name for name in sys.modules if name.split(".")[0] in ("extension", "trainers")}
    assert ours == {"extension", "trainers"}  # the neighbours' only


def test_a_module_is_loaded_once(crowded):
    assert loading.load("extension.prompt") is loading.load("extension.prompt")
    assert sum(isinstance(finder, loading.Finder) for finder in sys.meta_path) == 1


def test_what_is_not_there_is_not_found(crowded):
    with pytest.raises(ModuleNotFoundError, match=r"athanor_extension\.nothing"):
        loading.load("extension.nothing")
    assert loading.Finder().find_spec("athanor_something") is None
    assert loading.Finder().find_spec("extension") is None


@pytest.mark.parametrize(
    "source",
    [
        "from trainers.errors import InputError as found",
        "import trainers.errors as module; found = module.InputError",
        "import trainers.errors; found = trainers.errors.InputError",
        "def late():\n    from trainers.errors import InputError\n    return InputError\nfound = late()",
    ],
)
def test_every_form_of_import(crowded, tmp_path, source):
    package = tmp_path / "trainers"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "errors.py").write_text("class InputError(Exception):\n    pass\n")
    (package / "user.py").write_text(source)
    sys.meta_path.insert(0, loading.Finder(tmp_path))
    user = loading.load("trainers.user")
    assert user.found.__module__ == "athanor_trainers.errors"


def test_no_byte_code_of_the_renamed_kind_is_left(crowded, tmp_path, monkeypatch):
    """Python itself, which imports our files under their own names, would take it for theirs."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    package = tmp_path / "trainers"
    package.mkdir()
    (package / "__init__.py").write_text("import sys")
    sys.meta_path.insert(0, loading.Finder(tmp_path))
    loading.load("trainers")
    kept = [path.name for path in (package / "__pycache__").iterdir()]
    assert kept == [f"__init__.athanor-{sys.implementation.cache_tag}.pyc"]


def test_byte_code_is_kept_and_never_older_than_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "extension" / "some.py"
    path.parent.mkdir()

    def value() -> object:
        module = types.ModuleType("athanor_extension.some")
        loading._Loader(path).exec_module(module)
        return module.found

    path.write_text("found = 1\n")
    loading.compile_all(tmp_path)
    (kept,) = (path.parent / "__pycache__").iterdir()
    assert ".athanor-" in kept.name  # Python itself looks for another name
    with monkeypatch.context() as without:
        without.setattr(loading.ast, "parse", None)
        assert value() == 1
    path.write_text("found = 'another'\n")
    assert value() == "another"
    kept.write_bytes(kept.read_bytes()[:-5])
    assert value() == "another"


def test_a_second_copy_does_nothing(tmp_path, monkeypatch, capsys):
    copies = [tmp_path / name / "scripts" / "athanor.py" for name in ("athanor", "sd-webui-athanor")]
    for copy in copies:
        copy.parent.mkdir(parents=True)
        copy.write_bytes((loading.ROOT / "scripts" / "athanor.py").read_bytes())
        plugin = copy.parent.parent / "extension" / "plugin.py"
        plugin.parent.mkdir()
        (plugin.parent / "__init__.py").write_text("")
        (plugin.parent / "loading.py").write_bytes((loading.ROOT / "extension" / "loading.py").read_bytes())
        plugin.write_text("starts = []\ndef start():\n    starts.append(__file__)\n    return starts\n")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in [name for name in sys.modules if name.startswith("athanor_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "athanor_loading", raising=False)
    started = [runpy.run_path(str(copy))["AthanorScript"] for copy in (*copies, *copies)]  # and once more: "Reload UI"
    plugin = str(tmp_path / "athanor" / "extension" / "plugin.py")
    assert started == [[plugin, plugin], None, [plugin, plugin], None]
    assert str(copies[1]) in capsys.readouterr().out
    for name in [name for name in sys.modules if name.startswith("athanor_")]:
        del sys.modules[name]
