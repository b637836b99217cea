"""What Forge and reForge can do for a training: their models lie in patchers, and are replaced, never written over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from extension.hosts import forge, lease, reforge
from extension.hosts.a1111_lease import A1111Lender
from extension.jobs.lease import CannotLend, Holding, Lent


class PatcherLender(A1111Lender):
    """What both have in common."""

    writers = (("sd_vae", "_load_vae_dict"),)

    def encoders(self, engine: Any, family: str) -> list[Any]:
        """The text encoders, in the family's order."""
        raise NotImplementedError

    def management(self) -> Any:
        """The module that moves models between memories."""
        raise NotImplementedError

    def components(self, engine: Any, family: str) -> lease.Components:
        """The tensors; the UNet's names are a single file's, the others' say themselves whose they are."""
        objects = engine.forge_objects
        modules = {"unet": objects.unet.model.diffusion_model, "vae": objects.vae.first_stage_model}
        for name, encoder in zip(forge.COMPONENTS, self.encoders(engine, family), strict=False):
            modules[name] = encoder.transformer
        return {name: ("ldm", lease.tensors_of(module)) for name, module in modules.items()}

    def holding(self) -> Holding | None:
        """The model that is in memory. It is moved to the card whenever it draws, so the card counts as its place."""
        held = super().holding()
        engine = self.plugin.host.raw_model()
        device = getattr(engine.forge_objects.unet, "load_device", None) if engine is not None else None
        if held is None or device is None:
            return held
        return Holding(held.checkpoint, lease.device_name(torch.device(device)), held.nbytes, held.problem)

    def export(self, manifest: Path, about: Mapping[str, Any]) -> Lent:
        """Shares the tensors; the UNet is brought onto the card first, where it is wanted."""
        lease.try_first(self.environment, self.holding())
        with self.idle():
            engine = self.plugin.host.raw_model()
            if engine is None:
                raise CannotLend("the WebUI has just freed its model")
            unet = engine.forge_objects.unet
            if torch.device(unet.load_device).type != "cpu":
                self.management().load_models_gpu([unet])
        return super().export(manifest, about)

    def left_merges(self, engine: Any) -> str:
        """The name of a weight that a patch is merged into still; "" where there is none."""
        for patcher in (engine.forge_objects.unet, engine.forge_objects.clip.patcher):
            kept = getattr(getattr(patcher, "lora_loader", patcher), "backup", None)
            if kept:
                return str(next(iter(kept)))
        return ""

    def free(self) -> int:
        """Moves the model off the card; where there is none, drops it, and the host loads it when it next draws."""
        with self.idle():
            engine = self.plugin.host.raw_model()
            if engine is None:
                return 0
            device = torch.device(engine.forge_objects.unet.load_device)
            self.make_clean()
            before = lease.in_use(device)
            self.management().unload_all_models()
            del engine
            if device.type == "cpu":
                self.drop()
            self.management().soft_empty_cache()
            lease.return_memory(device)
            return max(0, before - lease.in_use(device))

    def drop(self) -> None:
        """Has the host forget its model."""
        raise NotImplementedError


class ForgeLender(PatcherLender):
    """The model of Forge."""

    writers = ()

    def family(self, engine: Any) -> str | None:
        """ "sd1", "sd2" or "sdxl"; None for another model."""
        return forge.family_of(engine)

    def encoders(self, engine: Any, family: str) -> list[Any]:
        """The text encoders, in the family's order."""
        return [part for name, part in forge.parts_of(engine, family).items() if name != "unet"]

    def management(self) -> Any:
        """Forge's memory management."""
        from backend import memory_management

        return memory_management

    def offloads(self, engine: Any) -> str:
        """How the host changes the model that is in memory, as a clause."""
        if len(self._files()) > 1:
            return "the WebUI takes parts of the model from several files (VAE / Text Encoder)"
        state = str(getattr(self.management(), "vram_state", ""))
        return "the WebUI streams the model's weights (--always-no-vram)" if state.endswith("NO_VRAM") else ""

    def _files(self) -> list[str]:
        return list(self.plugin.host.option("forge_additional_modules", None) or [])

    def vae_file(self) -> str:
        """The file that is used beside the model's; an autoencoder, as a rule."""
        return next(iter(self._files()), "")

    def drop(self) -> None:
        """Back to how it was before the first model was loaded."""
        from modules import sd_models

        sd_models.model_data.sd_model = sd_models.FakeInitialModel()
        sd_models.model_data.forge_hash = ""

    def restore(self) -> None:
        """Loads it again where it was dropped; what was only moved away comes back with the next picture."""
        from modules import sd_models

        with self.idle():
            if self.plugin.host.raw_model() is None:
                sd_models.forge_model_reload()


class ReForgeLender(PatcherLender):
    """The model of reForge."""

    def family(self, engine: Any) -> str | None:
        """ "sd1", "sd2" or "sdxl"; None for another model."""
        return reforge.family_of(engine)

    def encoders(self, engine: Any, family: str) -> list[Any]:
        """The text encoders, in the family's order."""
        return list(reforge.encoders_of(engine).values())

    def management(self) -> Any:
        """The backend's memory management."""
        from ldm_patched.modules import model_management

        return model_management

    def drop(self) -> None:
        """Empties the model and forgets it; what the last picture has left behind would keep its weights otherwise."""
        from modules import sd_models

        objects = self.plugin.host.raw_model().forge_objects
        modules = [objects.unet.model, objects.clip.cond_stage_model, objects.vae.first_stage_model]
        tracked = self.management().current_loaded_models
        tracked[:] = [one for one in tracked if one.model is not None and one.model.model not in modules]
        for module in modules:
            module.to("meta")
        sd_models.model_data.sd_model = None
        sd_models.model_data.loaded_sd_models.clear()
