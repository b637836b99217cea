"""What AUTOMATIC1111 can do for a training: give its tensors, or make room; and telling trainers when it draws."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from extension.hosts import lease
from extension.hosts.a1111 import _sdxl_encoders, family_of
from extension.jobs.environment import Environment
from extension.jobs.lease import CannotLend, Holding, Lent
from extension.jobs.manager import Jobs
from trainers.formats.live_tensors import Shared

log = logging.getLogger(__name__)


class A1111Lender:
    """The model of AUTOMATIC1111.

    Attributes:
        plugin: who answers to `<lora:…>`, and which sessions are open.
        let_go: asks trainers that are attached to save and stop, and waits for them.
        environment: what the trainers are started with.
        writers: functions of the host that copy other weights into a model's tensors, which is their first argument.
    """

    writers: tuple[tuple[str, str], ...] = (("sd_models", "load_model_weights"), ("sd_vae", "_load_vae_dict"))

    def __init__(self, plugin: Any) -> None:
        self.plugin = plugin
        self.let_go: Callable[[], None] = lambda: None
        self.environment = Environment()
        self._shared: list[Shared] = []
        self._undo: list[Callable[[], None]] = []

    # --- what the host has

    def components(self, sd_model: Any, family: str) -> lease.Components:
        """The tensors of UNet, text encoders and autoencoder, named as in a single file."""
        modules = {"unet": sd_model.model.diffusion_model, "vae": sd_model.first_stage_model}
        if family == "sdxl":
            first, second = _sdxl_encoders(sd_model)
            modules |= {"text_encoder": first.transformer, "text_encoder_2": second.model}
        else:
            inner = getattr(sd_model.cond_stage_model, "wrapped", sd_model.cond_stage_model)
            modules["text_encoder"] = inner.model if family == "sd2" else inner.transformer
        return {name: ("ldm", lease.tensors_of(module)) for name, module in modules.items()}

    def family(self, sd_model: Any) -> str | None:
        """ "sd1", "sd2" or "sdxl"; None for another model."""
        return family_of(sd_model)

    def offloads(self, sd_model: Any) -> str:
        """How the host moves parts of the model to and fro, as a clause; "" where it does not."""
        return "the WebUI runs with --medvram or --lowvram" if getattr(sd_model, "lowvram", False) else ""

    def vae_file(self) -> str:
        """The separate autoencoder file in use, "" for the model's own."""
        from modules import sd_vae

        return str(getattr(sd_vae, "loaded_vae_file", None) or "")

    def holding(self) -> Holding | None:
        """The model that is in memory."""
        sd_model = self.plugin.host.raw_model()
        if sd_model is None:
            return None
        info = getattr(sd_model, "sd_checkpoint_info", None)
        checkpoint = Path(info.filename) if info is not None else None
        family = self.family(sd_model)
        if family is None:
            device, taken = _device_and_size(sd_model)
            return Holding(checkpoint, device, taken, "this kind of model is not trained")
        components = self.components(sd_model, family)
        taken = sum(lease.nbytes_of(tensors.values()) for _, tensors in components.values())
        device = next(iter(components["unet"][1].values())).device
        return Holding(checkpoint, lease.device_name(device), taken, self._problem(sd_model, components))

    def _problem(self, sd_model: Any, components: lease.Components) -> str:
        if not self.plugin.ownership.held:
            return "the WebUI's own loader is in charge of LoRA tags, and writes into the weights (setting Athanor)"
        return self.offloads(sd_model) or lease.tensors_problem(components) or lease.room_problem(components)

    # --- giving the tensors

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Alone with the model, after whatever is being drawn."""
        from modules import call_queue

        with call_queue.queue_lock:
            yield

    def export(self, manifest: Path, about: Mapping[str, Any]) -> Lent:
        """Shares the tensors once the host's own loader has taken off what it merged, and that is seen to be so."""
        lease.try_first(self.environment, self.holding())
        with self.idle():
            sd_model = self.plugin.host.raw_model()
            family = self.family(sd_model) if sd_model is not None else None
            if family is None:
                raise CannotLend("the WebUI has just loaded another model")
            self.make_clean()
            components = self.components(sd_model, family)
            lease.check_clean(components, family, Path(str(about["checkpoint"])), self.left_merges(sd_model))
            about = {**about, "vae_file": self.vae_file()}
            shared = lease.export(components, manifest, about, self.environment)
            self._shared.append(shared)
            return _Lent(shared, self._shared)

    def make_clean(self) -> None:
        """Has the host's own loader take everything off the weights."""
        self.plugin.sync()
        self.plugin.sessions.detach()
        self.plugin.ownership.builtin.let_go()

    def left_merges(self, sd_model: Any) -> str:
        """The name of a layer on which something is merged still; "" where there is none."""
        for name, module in sd_model.named_modules():
            if getattr(module, "network_current_names", ()):
                return name
            backup = getattr(module, "network_weights_backup", None)
            if isinstance(backup, torch.Tensor) and not torch.equal(backup.to(module.weight), module.weight):
                return name
        return ""

    @property
    def is_lent(self) -> bool:
        """Whether a trainer has the tensors."""
        return bool(self._shared)

    def before_writing(self, model: Any) -> None:
        """Other weights are about to be copied into the model's tensors: those that are lent stay with the trainers,
        and the host goes on in copies. Where there is no room for them, trainers save and stop first."""
        if any(not lease.has_room_for(shared) for shared in self._shared):
            self.let_go()
        with torch.no_grad():
            for parameter in model.parameters() if self._shared else ():
                if any(shared.holds(parameter) for shared in self._shared):
                    parameter.data = parameter.data.clone()

    # --- making room

    def free(self) -> int:
        """Frees the model; the host itself loads it again when it next draws."""
        from modules import sd_hijack, sd_models, sd_unet

        with self.idle():
            sd_model = self.plugin.host.raw_model()
            if sd_model is None:
                return 0
            device = torch.device(_device_and_size(sd_model)[0])
            self.make_clean()
            before = lease.in_use(device)
            sd_unet.apply_unet("None")
            sd_hijack.model_hijack.undo_hijack(sd_model)
            sd_models.send_model_to_trash(sd_model)
            sd_models.model_data.sd_model = None
            sd_models.model_data.loaded_sd_models.clear()
            del sd_model
            lease.return_memory(device)
            return max(0, before - lease.in_use(device))

    def restore(self) -> None:
        """Loads it again, unless the host has done so."""
        from modules import sd_models

        with self.idle():
            if sd_models.model_data.sd_model is None:
                sd_models.reload_model_weights()

    # --- in place

    def install(self, jobs: Jobs) -> None:
        """From now on trainings share the device with this host's model."""
        jobs.borrow_from(self)
        self.let_go, self.environment = jobs.let_go, jobs.environment
        self.plugin.ownership.is_lent = self.plugin.sessions.is_lent = lambda: self.is_lent
        if self._undo:
            return
        from modules import call_queue

        self._undo.append(tell_turns(call_queue.queue_lock, jobs.turns))
        self._undo += [self._guarded(*writer) for writer in self.writers]

    def _guarded(self, module_name: str, name: str) -> Callable[[], None]:
        """Has `before_writing` called before a function of the host; returns what undoes that."""
        import importlib

        module = importlib.import_module(f"modules.{module_name}")
        original = getattr(module, name)

        @functools.wraps(original)
        def guarded(model: Any, *args: Any, **kwargs: Any) -> Any:
            self.before_writing(model)
            return original(model, *args, **kwargs)

        setattr(module, name, guarded)
        return lambda: setattr(module, name, original) if getattr(module, name) is guarded else None

    def remove(self) -> None:
        """Takes our hooks off the host, unless a trainer still needs them."""
        if not self.is_lent:
            while self._undo:
                self._undo.pop()()


class _Lent:
    """Tensors in a trainer's hands; the host's again after `release`."""

    def __init__(self, shared: Shared, every: list[Shared]) -> None:
        self._shared, self._every = shared, every
        self.nbytes = shared.nbytes

    def release(self) -> None:
        if self._shared in self._every:
            self._every.remove(self._shared)
        self._shared.release()


def _device_and_size(model: Any) -> tuple[str, int]:
    """Where a model lies, by most of its bytes, and what it takes."""
    sizes: dict[str, int] = {}
    for parameter in model.parameters():
        name = lease.device_name(parameter.device)
        sizes[name] = sizes.get(name, 0) + parameter.numel() * parameter.element_size()
    return (max(sizes, key=sizes.__getitem__), sum(sizes.values())) if sizes else ("cpu", 0)


def tell_turns(lock: Any, turns: Any) -> Callable[[], None]:
    """Has trainers told while this lock of the host is held; returns what undoes that.

    `with` looks up its methods on the class, so the object gets a class of its own.
    """
    original = type(lock)

    class Telling(original):  # type: ignore[misc, valid-type]
        """The host's lock, which says when it is held."""

        def acquire(self, *args: Any, **kwargs: Any) -> Any:
            taken = original.acquire(self, *args, **kwargs)
            if taken is not False:
                turns.begin()
            return taken

        def release(self) -> None:
            turns.end()
            original.release(self)

        def __enter__(self) -> Any:
            return self.acquire()

        def __exit__(self, *_: Any) -> None:
            self.release()

    lock.__class__ = Telling

    def undo() -> None:
        if type(lock) is Telling:
            lock.__class__ = original

    return undo
