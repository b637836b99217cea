"""As much of AUTOMATIC1111's `modules` as our adapter for it touches, in a few lines each."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import dataclass, field
from typing import Any


class ExtraNetworkParams:
    def __init__(self, items=None):
        self.items = items or []
        self.positional, self.named = [], {}

    def __eq__(self, other):
        return self.items == other.items


class ExtraNetwork:
    def __init__(self, name):
        self.name = name


def _extra_networks():
    module = types.ModuleType("modules.extra_networks")
    module.ExtraNetworkParams, module.ExtraNetwork = ExtraNetworkParams, ExtraNetwork
    module.extra_network_registry, module.extra_network_aliases = {}, {}
    return module


class SdConditioning(list):
    def __init__(self, prompts, is_negative_prompt=False):
        super().__init__(prompts)
        self.is_negative_prompt = getattr(prompts, "is_negative_prompt", is_negative_prompt)


@dataclass
class Scheduled:
    end_at_step: int
    cond: Any


@dataclass
class Composable:
    schedules: list
    weight: float = 1.0


@dataclass
class Multicond:
    shape: tuple
    batch: list


def multicond_prompt_list(prompts):
    return [[(0, 1.0) for _ in re.split(r"\bAND\b", prompt)] for prompt in prompts], None, None


def _prompt_parser():
    module = types.ModuleType("modules.prompt_parser")
    module.SdConditioning = SdConditioning
    module.ScheduledPromptConditioning = Scheduled
    module.ComposableScheduledPromptConditioning = Composable
    module.MulticondLearnedConditioning = Multicond
    module.get_multicond_prompt_list = multicond_prompt_list
    return module


@dataclass(eq=False)
class Processing:
    """Stands for the host's processing object."""

    prompts: list
    negative_prompts: list
    steps: int = 10
    batch_size: int = 1
    iteration: int = 0
    enable_hr: bool = False
    hr_second_pass_steps: int = 0
    all_hr_prompts: list = field(default_factory=list)
    all_hr_negative_prompts: list = field(default_factory=list)
    is_hr_pass: bool = False
    extra_network_data: dict = field(default_factory=dict)
    comments: dict = field(default_factory=dict)
    extra_generation_params: dict = field(default_factory=dict)

    def __post_init__(self):
        self.all_prompts = list(self.prompts)
        self.cached_c, self.cached_uc = ["old", "old"], ["old", "old"]

    def comment(self, text):
        self.comments[text] = 1

    def parse_extra_network_prompts(self):
        """Takes out every `<word:…>`, as the host does."""
        taken = re.compile(r"<(\w+):([^>]+)>")
        self.extra_network_data = {}
        for kind, items in taken.findall(self.prompts[0]):
            self.extra_network_data.setdefault(kind, []).append(ExtraNetworkParams(items.split(":")))
        self.prompts = [taken.sub("", prompt) for prompt in self.prompts]
        if self.enable_hr:
            batch = slice(self.iteration * self.batch_size, (self.iteration + 1) * self.batch_size)
            self.hr_prompts = [taken.sub("", prompt) for prompt in self.all_hr_prompts[batch]]
            self.hr_negative_prompts = self.all_hr_negative_prompts[batch]
            self.hr_extra_network_data = {}


def install(monkeypatch) -> types.SimpleNamespace:
    """Puts the stand-ins in place of the host's modules; their attributes are the modules."""
    shared = types.ModuleType("modules.shared")
    shared.opts = types.SimpleNamespace(sd_lora="None", extra_networks_default_multiplier=1.0)
    shared.cmd_opts = types.SimpleNamespace(athanor_leave_lora=False)
    shared.sd_model = None
    sd_models = types.ModuleType("modules.sd_models")
    sd_models.model_data = types.SimpleNamespace(sd_model=None, loaded_sd_models=[])
    processing = types.ModuleType("modules.processing")
    processing.StableDiffusionProcessingTxt2Img = lambda: Processing([""], [""])
    package = types.ModuleType("modules")
    made = {
        "extra_networks": _extra_networks(),
        "prompt_parser": _prompt_parser(),
        "shared": shared,
        "sd_models": sd_models,
        "processing": processing,
    }
    monkeypatch.setitem(sys.modules, "modules", package)
    for name, module in made.items():
        setattr(package, name, module)
        monkeypatch.setitem(sys.modules, f"modules.{name}", module)
    for name in [name for name in sys.modules if name.startswith("extension.hosts.a1111_")]:
        monkeypatch.delitem(sys.modules, name)
    return types.SimpleNamespace(**made)
