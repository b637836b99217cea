"""The adapter for AUTOMATIC1111 without the host: reading tags, rows, encoding, infotext, who owns `lora`."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import a1111_stand_ins as stand_ins
import pytest
import torch
from safetensors.torch import save_file

from extension.hosts.base import LoadedModel
from extension.injection import Row
from extension.injection.embeddings import EmbeddingStore
from extension.listing import MASK_ENDINGS, Listing
from extension.wanted import Library


@pytest.fixture
def host(monkeypatch):
    """The stand-ins for the host's modules."""
    return stand_ins.install(monkeypatch)


@pytest.fixture
def library(tmp_path):
    for name in ("cat", "dog"):
        path = tmp_path / "Lora" / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        layer = "lora_unet_mid_block_attentions_0_proj_in"
        save_file({f"{layer}.lora_down.weight": torch.ones(2, 64), f"{layer}.lora_up.weight": torch.ones(64, 2)}, path)
    embeddings = tmp_path / "embeddings"
    embeddings.mkdir()
    save_file({"emb_params": torch.ones(2, 64)}, embeddings / "shiny.safetensors")
    made = Library(
        Listing([tmp_path / "Lora"]), EmbeddingStore([embeddings]), masks=Listing([tmp_path / "masks"], MASK_ENDINGS)
    )
    made.rescan()
    return made


def ours(name):
    """One of our modules for this host, on the stand-ins."""
    return importlib.import_module(f"extension.hosts.a1111_{name}")


def read(host, library, p, scope="all"):
    tags = ours("tags")
    tags.read_before_parsing(p, lambda one: tags.read_batch(one, library, scope))
    p.parse_extra_network_prompts()
    return tags.carried(p.extra_network_data.get("lora", []))


# --- reading tags


def test_tags_of_both_prompts_are_read_and_taken_out(host, library):
    p = stand_ins.Processing(["a <lora:cat:0.5> b <hypernet:h:1>"], ["ugly <lora:dog>"])
    found = read(host, library, p)
    assert p.prompts == ["a  b "] and p.negative_prompts == ["ugly "]
    assert [(one.tag.name, one.tag.negative) for one in found.wanted.found] == [("cat", False), ("dog", True)]
    assert list(p.extra_network_data) == ["hypernet", "lora"]
    assert p.extra_network_data["lora"][0].items == ["cat", "0.5"]  # what other extensions look for
    assert "parse_extra_network_prompts" not in p.__dict__


def test_a_prompt_without_tags_is_the_hosts_own(host, library):
    p = stand_ins.Processing(["a (b:1.2) <3"], ["c"])
    assert read(host, library, p) is None
    assert p.prompts == ["a (b:1.2) <3"] and p.extra_network_data == {}


def test_later_pictures_have_tags_of_their_own(host, library):
    p = stand_ins.Processing(["a", "b <lora:cat:1:for=picture>"], ["", ""], batch_size=2)
    found = read(host, library, p)
    use = found.wanted.uses("sd1")[0]
    assert [use.whom.includes(Row(picture)) for picture in (0, 1)] == [False, True]


def test_what_others_change_before_the_host_reads_is_seen(host, library):
    tags = ours("tags")
    p = stand_ins.Processing(["a"], [""])
    tags.read_before_parsing(p, lambda one: tags.read_batch(one, library, "all"))
    p.prompts = ["a <lora:cat>"]  # another extension, later than us
    p.parse_extra_network_prompts()
    assert tags.carried(p.extra_network_data["lora"]).wanted.found


def test_a_batch_that_was_given_up_leaves_no_second_reading(host, library):
    tags = ours("tags")
    p = stand_ins.Processing(["a <lora:cat>"], [""])
    for _ in range(2):
        tags.read_before_parsing(p, lambda one: tags.read_batch(one, library, "all"))
    p.parse_extra_network_prompts()
    assert "parse_extra_network_prompts" not in p.__dict__


def test_the_hires_pass_has_tags_of_its_own(host, library):
    p = stand_ins.Processing(
        ["a <lora:cat>"],
        ["n"],
        enable_hr=True,
        all_hr_prompts=["h <lora:dog>"],
        all_hr_negative_prompts=["m <lora:cat>"],
    )
    first = read(host, library, p)
    second = ours("tags").carried(p.hr_extra_network_data["lora"])
    assert not first.hires and second.hires
    assert p.hr_prompts == ["h "] and p.hr_negative_prompts == ["m "]
    assert p.all_hr_prompts == ["h <lora:dog>"]  # the infotext is made from it
    assert first != second


def test_equal_tags_are_equal_for_the_hosts_memory_and_a_retrained_file_is_not(host, library, tmp_path):
    def data():
        library.rescan()
        return read(host, library, stand_ins.Processing(["a <lora:cat:0.5>"], [""]))

    first = data()
    assert first == data()
    path = tmp_path / "Lora" / "cat.safetensors"
    save_file({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(4, 64)}, path)
    assert first != data()


def test_the_chosen_network_is_added_once(host, library):
    host.shared.opts.sd_lora = "cat"
    p = stand_ins.Processing(["a"], [""])
    assert [one.tag.name for one in read(host, library, p).wanted.found] == ["cat"]
    assert p.all_prompts == ["a<lora:cat:1.0>"]
    p = stand_ins.Processing(["a <lora:cat:0.3>"], [""])
    assert len(read(host, library, p).wanted.found) == 1 and p.all_prompts == ["a <lora:cat:0.3>"]


def test_embeddings_stand_where_their_tag_stood(host, library):
    p = stand_ins.Processing(["a <ti:shiny:0.5> b <ti:shiny> c<ti:shiny:0> <ti:shin>"], ["<ti:shiny:1:start=0.5>x"])
    found = read(host, library, p)
    assert p.prompts == ["a (shiny:0.5) b shiny c  "]
    assert p.negative_prompts == [" x"]
    assert 'did you mean "shiny"' in " ".join(found.wanted.reports)


def empty_modules(monkeypatch):
    """Modules of the host that are imported and hardly used."""
    names = ("call_queue", "devices", "paths_internal", "script_callbacks", "scripts", "sd_hijack", "textual_inversion")
    for name in names:
        module = ModuleType(f"modules.{name}")
        module.__getattr__ = lambda name: None
        monkeypatch.setitem(sys.modules, f"modules.{name}", module)
        monkeypatch.setattr(sys.modules["modules"], name, module, raising=False)


class Database:
    """The host's store of embeddings."""

    def __init__(self):
        self.word_embeddings = {}

    def register_embedding(self, made, model):
        return self.register_embedding_by_name(made, model, made.name)

    def register_embedding_by_name(self, made, model, name):
        self.word_embeddings[name] = made
        if made is None:
            del self.word_embeddings[name]
        return made


class HostEmbedding:
    def __init__(self, vec, name, step):
        self.vec, self.name, self.shorthash = vec, name, None

    def set_hash(self, value):
        self.shorthash = value[:10]


def test_a_word_in_training_is_the_hosts_as_long_as_its_tag_acts(host, library, monkeypatch, tmp_path):
    empty_modules(monkeypatch)
    embeddings, known = ours("embeddings"), Database()
    monkeypatch.setattr(embeddings, "database", lambda: known)
    monkeypatch.setattr(embeddings, "textual_inversion", SimpleNamespace(Embedding=HostEmbedding))
    monkeypatch.setattr(embeddings.devices, "device", "cpu", raising=False)
    host.shared.sd_model = object()
    file = known.register_embedding(HostEmbedding(torch.ones(2, 64), "shiny", 0), None)
    snapshot = tmp_path / "live" / "shiny-000007.safetensors"
    snapshot.parent.mkdir()
    save_file({"emb_params": torch.full((2, 64), 7.0)}, snapshot)
    library.live = lambda name, kind: snapshot if kind == "ti" else None
    p = stand_ins.Processing(["a <ti:Shiny:0.5:live=1> b <ti:new:1:live=1>"], [""])
    wanted = read(host, library, p).wanted
    assert p.prompts == ["a (shiny:0.5) b new"] and wanted.reports == []
    plain = stand_ins.Processing(["a <ti:shiny:0.5> b"], [""])
    assert wanted.fingerprint() != read(host, library, plain).wanted.fingerprint()
    bundled = embeddings.Bundled()
    assert bundled.add([], LoadedModel("sd1", {}, widths={"text_encoder": 64}), wanted.shown) == []
    assert known.word_embeddings["shiny"].vec[0, 0] == 7 and known.word_embeddings["new"].vec[0, 0] == 7
    bundled.remove()
    assert known.word_embeddings == {"shiny": file}
    assert "is for" in bundled.add([], LoadedModel("sd1", {}, widths={"text_encoder": 768}), wanted.shown)[0]


def test_an_embedding_that_does_not_fit_is_said_without_any_tag(host, library, monkeypatch):
    empty_modules(monkeypatch)
    wiring = ours("wiring")
    plugin = wiring.Plugin.__new__(wiring.Plugin)
    plugin.library = library
    for widths, vocabulary, said in [
        ({"text_encoder": 768}, (), 'The embedding "shiny" is for'),
        ({"text_encoder": 64}, {"shiny</w>"}, 'The embedding "shiny" takes the place of the word'),
        ({"text_encoder": 64}, (), None),
    ]:
        model = LoadedModel("sd1", {}, widths=widths, vocabulary=vocabulary)
        plugin.host = SimpleNamespace(model=lambda model=model: model)
        for prompts in (["a Shiny hill"], ["a hill"]), (["a hill <lora:shiny:1>"], ["shiny"]):
            p = stand_ins.Processing(*prompts)
            plugin._read(p, "all")
            assert (said is None) == ("Athanor" not in p.extra_generation_params)
            assert said is None or p.extra_generation_params["Athanor"].startswith(said)
        p = stand_ins.Processing(["a hill <lora:shiny:1>"], ["a tree"])  # a file's name is not a word of the prompt
        plugin._read(p, "all")
        assert "Athanor" not in p.extra_generation_params


def test_tags_that_another_extension_read_still_act(host, library):
    items = [stand_ins.ExtraNetworkParams(["cat", 0.5]), stand_ins.ExtraNetworkParams(["dog"])]
    wanted = ours("tags").wanted_from_items(items, library)
    assert [one.tag.name for one in wanted.found] == ["cat", "dog"]


def test_with_extra_networks_turned_off_tags_are_taken_out_and_nothing_acts(host, library):
    p = stand_ins.Processing(["a <lora:cat>"], ["n <lora:dog>"])
    p.disable_extra_networks = True
    assert read(host, library, p) is None
    assert p.prompts == ["a "] and p.negative_prompts == ["n "]


def test_what_belongs_to_the_pass_at_hand(host, library):
    p = stand_ins.Processing(
        ["a <lora:cat>"], [""], enable_hr=True, all_hr_prompts=["h <lora:dog>"], all_hr_negative_prompts=[""]
    )
    first = read(host, library, p)
    assert ours("tags").carried_now(p) is first
    p.is_hr_pass = True
    assert ours("tags").carried_now(p).hires


# --- rows


def test_rows_of_a_step(host):
    rows = ours("rows")
    order = rows.rows_of_step([2, 1], 5)
    assert order == [Row(0, 0), Row(0, 1), Row(1, 0), Row(0, negative=True), Row(1, negative=True)]
    assert rows.rows_of_step([1], 3) is None  # an editing model's third kind of row


@pytest.mark.parametrize("calls", [[5], [2, 2, 1], [3, 2], [3], [2, 1]])
def test_calls_take_their_rows_from_front_to_back(host, calls):
    rows = ours("rows")
    order = rows.rows_of_step([2, 1], 5)
    cursor = rows.Cursor()
    for _ in range(2):
        cursor.start(order)
        taken = [cursor.take(count) for count in calls]
        assert [row for part in taken for row in part] == order[: sum(calls)]


def test_calls_that_do_not_fit_are_not_guessed(host):
    rows = ours("rows")
    cursor = rows.Cursor()
    assert cursor.take(2) is None
    cursor.start(rows.rows_of_step([1], 2))
    assert cursor.take(3) is None
    assert len(cursor.take(4)) == 4  # two tiles at once
    assert cursor.take(2) and cursor.take(2)  # tile after tile
    cursor.start(None)
    assert cursor.take(2) is None


# --- infotext


def test_hashes_and_notes(host):
    infotext = ours("infotext")
    p = stand_ins.Processing(["a"], [""])
    infotext.add_lora_hashes(p, {"c:a,t": "abc", "none": ""})
    assert p.extra_generation_params["Lora hashes"] == "cat: abc"
    infotext.add_notes(p, ["One.", "Two."])
    infotext.add_notes(p, ["Two.", "Three."])
    assert list(p.comments) == ["One.", "Two.", "Three."]
    assert p.extra_generation_params["Athanor"] == "One. Two. Three."


def test_a_pasted_prompt_leads_to_the_files_that_are_here(host, library):
    from extension.wanted import file_hash

    known = file_hash(library.files.get(library.adapters.find("dog")))[:12]
    params = {
        "Prompt": "a <lora:hound:0.5:start=0.2> <lora:cat:1> <lora:gone:1>",
        "Negative prompt": "<lora:hound>",
        "Lora hashes": f"hound: {known}, cat: 000000000000, gone: 111111111111",
        "Athanor": "a note",
    }
    ours("infotext").pasted(params, library.adapters, library.files)
    assert params["Prompt"] == "a <lora:dog:0.5:start=0.2> <lora:cat:1> <lora:gone:1>"
    assert params["Negative prompt"] == "<lora:dog>"
    assert "Athanor" not in params


# --- X/Y/Z plot


def test_the_axis_sets_weights(host):
    xyz = ours("xyz")
    assert (
        xyz.with_weight("a <lora:cat> <lora:dog:0.2:start=0.5>", None, 0.7)
        == "a <lora:cat:0.7> <lora:dog:0.7:start=0.5>"
    )
    assert xyz.with_weight("<lora:cat:1:2> <lora:dog>", "cat", 1) == "<lora:cat> <lora:dog>"
    assert xyz.read_value("cat:0.5") == xyz.read_value("cat=0.5") == ("cat", 0.5)
    with pytest.raises(RuntimeError, match="neither a number"):
        xyz.confirm(None, ["1", "much"])


# --- who owns `lora`


class BuiltIn(stand_ins.ExtraNetwork):
    def __init__(self):
        super().__init__("lora")
        self.calls = []

    def activate(self, p, params_list):
        self.calls.append([one.items for one in params_list])

    def deactivate(self, p):
        self.calls.append("deactivate")


def test_taking_over_and_giving_back(host):
    registry, aliases = host.extra_networks.extra_network_registry, host.extra_networks.extra_network_aliases
    builtin, network = BuiltIn(), stand_ins.ExtraNetwork("lora")
    registry["lora"], aliases["lyco"] = builtin, builtin
    ownership = ours("builtin").Ownership(network)
    ownership.sync()
    assert registry["lora"] is network and aliases["lyco"] is network
    assert builtin.calls == [[]]  # it was asked to let go
    host.shared.opts.athanor_lora = False
    ownership.sync()
    assert registry["lora"] is builtin and aliases["lyco"] is builtin
    host.shared.opts.athanor_lora = True
    ownership.sync()
    assert ownership.held and builtin.calls == [[], []]


def test_the_flag_wins_over_the_setting(host):
    host.shared.cmd_opts.athanor_leave_lora = True
    ownership = ours("builtin").Ownership(stand_ins.ExtraNetwork("lora"))
    ownership.sync()
    assert not ownership.held and host.extra_networks.extra_network_registry == {}


def test_a_host_without_a_loader_of_its_own(host):
    ownership = ours("builtin").Ownership(stand_ins.ExtraNetwork("lora"))
    ownership.take()
    assert ownership.held
    ownership.give_back()
    assert host.extra_networks.extra_network_registry == {} == host.extra_networks.extra_network_aliases


def test_the_hosts_lists_were_cleared_meanwhile(host):
    ownership = ours("builtin").Ownership(stand_ins.ExtraNetwork("lora"))
    ownership.take()
    host.extra_networks.extra_network_registry.clear()
    builtin = BuiltIn()
    host.extra_networks.extra_network_registry["lora"] = builtin
    ownership.give_back()
    assert host.extra_networks.extra_network_registry["lora"] is builtin
