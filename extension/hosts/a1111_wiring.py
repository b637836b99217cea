"""Our callbacks in AUTOMATIC1111: which call of the host leads where."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from modules import extra_networks, scripts

from extension.hosts import a1111_embeddings, a1111_infotext
from extension.hosts.a1111_builtin import BuiltIn, Ownership
from extension.hosts.a1111_callbacks import register
from extension.hosts.a1111_conditioning import Pass
from extension.hosts.a1111_lease import A1111Lender
from extension.hosts.a1111_refresh import after_change
from extension.hosts.a1111_sessions import Sessions
from extension.hosts.a1111_settings import SCOPES, add_settings
from extension.hosts.a1111_tab import add_tab
from extension.hosts.a1111_tags import read_batch, read_before_parsing
from extension.hosts.a1111_xyz import add_axis
from extension.hosts.base import LoadedModel
from extension.hosts.workshops import jobs_of, live_files_of
from extension.injection.embeddings import EmbeddingStore
from extension.listing import MASK_ENDINGS, Listing
from extension.wanted import Library
from trainers.formats.aesthetic import ENDINGS as AESTHETIC_ENDINGS


class AthanorNetwork(extra_networks.ExtraNetwork):
    """What the host calls for `<lora:…>`."""

    def __init__(self, sessions: Sessions) -> None:
        super().__init__("lora")
        self._sessions = sessions

    def activate(self, p: Any, params_list: list[Any]) -> None:
        self._sessions.activate(p, params_list)

    def deactivate(self, p: Any) -> None:
        self._sessions.deactivate(p)


class Plugin:
    """Everything of ours in this process; it survives "Reload UI"."""

    sessions_class = Sessions
    builtin_class = BuiltIn
    lender_class = A1111Lender
    draws_hypernetworks = False
    """Whether `<hypernet:…>` is ours to act on: AUTOMATIC1111 does it itself, its relatives no longer do."""

    def __init__(self, host: Any) -> None:
        folders = host.folders()
        self.host = host
        self.library = Library(
            Listing(folders.adapters),
            EmbeddingStore(folders.embeddings),
            masks=Listing(folders.masks, MASK_ENDINGS),
            hypernetworks=Listing(folders.hypernetworks, (".pt",)) if self.draws_hypernetworks else None,
            aesthetics=Listing(folders.aesthetics, AESTHETIC_ENDINGS),
            live=live_files_of(host),
        )
        self.sessions = self.sessions_class(host, self.library)
        self.ownership = Ownership(AthanorNetwork(self.sessions), self.builtin_class)
        self.lender = self.lender_class(self)

    def started(self) -> None:
        """The host is ready to draw, and so to share its model with trainings."""
        self.sync()
        jobs = jobs_of(self.host)
        jobs.watcher.without_live = frozenset() if self.draws_hypernetworks else frozenset({"hypernetwork"})
        self.lender.install(jobs)

    def sync(self) -> None:
        """Follows the setting: takes the tags over or gives them back."""
        self.ownership.sync()
        self.sessions.builtin = self.ownership.builtin
        if not self.ownership.held:
            self.sessions.detach()

    def unload(self) -> None:
        """The scripts are loaded again, perhaps without us."""
        self.sessions.detach()
        self.ownership.give_back()
        self.lender.remove()

    # --- a generation

    def before(self, p: Any) -> None:
        """A job begins."""
        self.sync()
        a1111_infotext.forget_notes(p)
        if self.ownership.held:
            self.library.adapters.rescan()
            for listing in (self.library.masks, self.library.hypernetworks, self.library.aesthetics):
                if listing is not None:
                    listing.rescan()
            self.read_embeddings(p, self.library.embeddings.rescan())

    def prepared(self, p: Any) -> None:
        """The host has read its embeddings."""
        model = self.host.model() if self.ownership.held else None
        if model is not None and model.family is not None and not getattr(p, "do_not_reload_embeddings", False):
            self.add_embeddings(p, model)

    def read_embeddings(self, p: Any, changed: bool) -> None:
        """Has the host see embeddings that are new or other ones than before."""
        a1111_embeddings.reload_changed(p, changed)

    def add_embeddings(self, p: Any, model: LoadedModel) -> None:
        """Has the host know the embeddings that only we can read."""
        a1111_embeddings.add_missing(self.library.embeddings, model)

    def before_batch(self, p: Any) -> None:
        """A batch's prompts are there, still with their tags."""
        if not self.ownership.held:
            return
        scope = SCOPES.get(self.host.option("athanor_scope", ""), "all")
        read_before_parsing(p, lambda one: self._read(one, scope))
        encode_with(p, self.sessions)

    def draw(self, drawing: Any) -> Any:
        """A picture that the tab asks for; see `extension.hosts.a1111_draw.draw`."""
        from extension.hosts.a1111_draw import draw  # the host's API, which it loads late

        return draw(self.host, self.library, self.ownership.held, drawing)

    def _read(self, p: Any, scope: str) -> None:
        """Reads a batch's tags, and says what is wrong with embeddings that its texts name, with or without a tag."""
        read_batch(p, self.library, scope)
        model = self.host.model()
        if model is not None and model.family is not None:
            hires = [*(getattr(p, "hr_prompts", None) or ()), *(getattr(p, "hr_negative_prompts", None) or ())]
            texts = [*p.prompts, *p.negative_prompts, *hires]
            problems = a1111_embeddings.problems_of_named(texts, self.library.embeddings, model)
            a1111_infotext.add_notes(p, problems)

    def drawn(self, p: Any) -> None:
        """A batch is drawn; its infotext is written next."""
        self.sessions.drawn(p)

    def after(self, p: Any) -> None:
        """A job is done; one without tags was not ended by the host."""
        p.__dict__.pop("get_conds_with_caching", None)
        self.sessions.deactivate(p)


class _Encoding:
    """What stands in for one processing object's `get_conds_with_caching`: the host's, with our encoder inside."""

    def __init__(self, p: Any, sessions: Sessions) -> None:
        self.owner = weakref.ref(p)
        self._sessions = sessions

    def __call__(
        self,
        function: Any,
        prompts: Any,
        steps: int,
        caches: Any,
        data: Any,
        hires_steps: int | None = None,
        *rest: Any,
    ) -> Any:
        p = self.owner()

        def encode(model: Any, texts: Any, *more: Any) -> Any:
            encoder = self._sessions.encoder(p, data, sampling_pass(p, steps, hires_steps))
            return function(model, texts, *more) if encoder is None else encoder.encode(function, model, texts, *more)

        return type(p).get_conds_with_caching(p, encode, prompts, steps, caches, data, hires_steps, *rest)


def encode_with(p: Any, sessions: Sessions) -> None:
    """Has the prompts of one processing object encoded with the weights of their rows and steps."""
    known = p.__dict__.get("get_conds_with_caching")
    # A copy of an object that was drawn with carries what stood in for the original's.
    if known is None or (isinstance(known, _Encoding) and known.owner() is not p):
        p.__dict__["get_conds_with_caching"] = _Encoding(p, sessions)


def sampling_pass(p: Any, calls: int, hires_calls: int | None) -> Pass:
    """How many steps and calls the pass will have that prompts are encoded for.

    Args:
        calls, hires_calls: the host's numbers for whole passes; img2img does only the last part of one.
    """
    from modules import sd_samplers_common

    hires = hires_calls is not None
    steps = (getattr(p, "hr_second_pass_steps", 0) if hires else 0) or p.steps
    per_step = max((hires_calls if hires else calls) // max(steps, 1), 1)
    if hires or hasattr(p, "init_latent"):
        given = (getattr(p, "hr_second_pass_steps", 0) or p.steps) if hires else None
        _, last = sd_samplers_common.setup_img2img_steps(p, given)
        steps = max(last + 1, 1)
    return Pass(steps, steps * per_step, hires)


_PLUGINS: list[Plugin] = []


def wire(host: Any, make: Callable[[Any], Plugin] = Plugin) -> type:
    """Registers our callbacks for this load of the scripts; returns the class of our always-on script."""
    if not _PLUGINS:
        _PLUGINS.append(make(host))
    plugin = _PLUGINS[0]
    add_tab(host, lambda method: after_change(plugin.ownership, method), plugin.draw)
    register(
        __file__,
        ui_settings=lambda: add_settings(plugin.sync),
        before_ui=lambda: add_axis(scripts.scripts_data),
        app_started=lambda demo, app: plugin.started(),
        model_loaded=lambda model: plugin.sessions.detach(),
        cfg_denoiser=plugin.sessions.step,
        script_unloaded=plugin.unload,
        infotext_pasted=lambda text, params: _paste(plugin, params),
    )
    return _script_class(plugin)


def _paste(plugin: Plugin, params: dict[str, Any]) -> None:
    a1111_infotext.pasted(params, plugin.library.adapters, plugin.library.files)


def _script_class(plugin: Plugin) -> type:
    class AthanorScript(scripts.Script):
        """Always on: tells us what the host is doing."""

        def title(self) -> str:
            return "Athanor"

        def show(self, is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def before_process(self, p: Any, *args: Any) -> None:
            plugin.before(p)

        def process(self, p: Any, *args: Any) -> None:
            plugin.prepared(p)

        def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
            plugin.before_batch(p)

        def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
            plugin.drawn(p)

        def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
            plugin.after(p)

    return AthanorScript
