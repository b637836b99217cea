"""WebUIs that no adapter of ours fits: one sentence in the tab, and nothing else of ours stays."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from extension import plugin
from extension.hosts import unfit

pytest.importorskip("gradio")

CALLBACKS = """
from collections import namedtuple
ScriptCallback = namedtuple("ScriptCallback", ["script", "callback"])
callback_map = {"callbacks_ui_tabs": [], "callbacks_before_ui": [], "callbacks_app_started": []}

def _adds(kind):
    def add(callback):
        import sys
        callback_map[kind].append(ScriptCallback(sys._getframe(1).f_code.co_filename, callback))
    return add

on_ui_tabs, on_before_ui, on_app_started = (_adds(kind) for kind in callback_map)
"""
LACKS = "class Script: pass"


@pytest.fixture
def webui(monkeypatch, tmp_path):
    """Makes a WebUI of modules with these contents; gives its `script_callbacks`."""

    def make(**contents):
        for name in [name for name in sys.modules if name.split(".")[0] == "modules"]:
            monkeypatch.delitem(sys.modules, name)
        for name in [name for name in sys.modules if name.startswith("extension.hosts.a1111_")]:
            monkeypatch.delitem(sys.modules, name)
        folder = tmp_path / "modules"
        folder.mkdir()
        for name, text in {"__init__": "", "script_callbacks": CALLBACKS, **contents}.items():
            (folder / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        import modules.script_callbacks

        return modules.script_callbacks

    yield make
    for name in [name for name in sys.modules if name.split(".")[0] == "modules"]:
        del sys.modules[name]


def said_in_the_tab(callbacks) -> str:
    """The text of the one tab, which must be the one callback that is left."""
    (found,) = [one for some in callbacks.callback_map.values() for one in some]
    ((page, title, name),) = found.callback()
    assert (title, name) == ("Athanor", "athanor_page")
    (block,) = [block for block in page.blocks.values() if "athanor-refusal" in str(getattr(block, "value", ""))]
    return block.value


def test_sd_next_is_told_from_automatic1111(webui, capsys):
    callbacks = webui(processing="", processing_diffusers="", scripts=LACKS)
    assert plugin.start() is None
    assert "does not work in SD.Next yet" in said_in_the_tab(callbacks)
    assert capsys.readouterr().out.strip() == unfit.SD_NEXT


def test_a_webui_that_nobody_knows(webui):
    callbacks = webui()
    assert plugin.start() is None
    assert "does not know this WebUI" in said_in_the_tab(callbacks)


def test_a_fork_that_lacks_what_the_adapter_needs(webui, capsys):
    callbacks = webui(processing="", scripts=LACKS, extra_networks="")
    assert plugin.start() is None
    text = said_in_the_tab(callbacks)
    assert "could not start in this WebUI" in text and "Error" in text and "AUTOMATIC1111 1.10" in text
    assert "Traceback" in capsys.readouterr().err


def test_what_was_registered_before_it_failed_is_taken_back(webui, monkeypatch):
    callbacks = webui(processing="")
    theirs = callbacks.ScriptCallback("extensions/another/scripts/another.py", print)
    callbacks.callback_map["callbacks_before_ui"].append(theirs)

    def register():
        callbacks.callback_map["callbacks_app_started"].append(callbacks.ScriptCallback(plugin.__file__, print))
        raise AttributeError("module 'modules.shared' has no attribute <b>opts</b>")

    host = SimpleNamespace(detect=lambda: True, make=lambda: SimpleNamespace(register=register))
    known = plugin._host_module
    monkeypatch.setattr(plugin, "_host_module", lambda name: known(name) if name == "unfit" else host)
    assert plugin.start() is None
    assert callbacks.callback_map["callbacks_before_ui"] == [theirs]
    assert callbacks.callback_map["callbacks_app_started"] == []
    callbacks.callback_map["callbacks_before_ui"].clear()
    assert "AttributeError" in said_in_the_tab(callbacks) and "<b>" not in said_in_the_tab(callbacks)


def test_where_no_tab_can_be_made_it_is_only_printed(monkeypatch, capsys):
    monkeypatch.setattr(unfit, "detect", lambda: False)
    assert plugin.start() is None
    assert "does not know this WebUI" in capsys.readouterr().out
