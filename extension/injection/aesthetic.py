"""Aesthetic gradients (Gallego 2022, arXiv:2209.12330): prompts as a text encoder would read them that has moved
towards what some pictures look like.

While a prompt is encoded, a copy of the encoder's layers takes a few steps of Adam that raise the cosine between the
prompt's embedding in CLIP's common space and the pictures'; what the copy makes of the prompt is then blended into what
the encoder itself makes of it. The encoder's own weights are only read: the copy stands in for them by
`torch.func.functional_call`, one row at a time, and is gone afterwards. The vocabulary and the positions stay.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from extension.injection.adapter_file import Stamp, stamp
from extension.injection.hooks import Attachment
from extension.injection.scales import EVERYONE, WeightAt, Whom
from extension.injection.sites import text_model_root
from extension.injection.state import Generation
from trainers.errors import InputError
from trainers.formats import aesthetic, safetensors_io
from trainers.formats.aesthetic import Aesthetic

_PROJECTION = "text_projection.weight"


@dataclass(frozen=True)
class AestheticUse:
    """One aesthetic gradient, how strongly and for whom.

    Attributes:
        weight: see `extension.injection.scales.WeightAt`; asked for the component "text_encoder".
        steps, lr: of Adam, on the copy.
        slerp: blend along the sphere instead of the straight line.
        label: what to call it in reports (the tag as typed).
    """

    embedding: Aesthetic = field(compare=False)
    stamp: Stamp
    weight: WeightAt = field(compare=False)
    whom: Whom = EVERYONE
    steps: int = 5
    lr: float = 1e-4
    slerp: bool = False
    label: str = ""

    def key(self, step: float, total: int, hires: bool) -> tuple:
        """Changes whenever what it makes of a prompt would."""
        return (self.stamp, self.steps, self.lr, self.slerp, float(self.weight("text_encoder", step, total, hires)))


class AestheticFiles:
    """Aesthetic gradients by file, kept as long as the files stay the same."""

    def __init__(self) -> None:
        self._known: dict[Stamp, Aesthetic] = {}

    def get(self, path: Path, folders: Iterable[Path] = ()) -> tuple[Aesthetic, Stamp]:
        """The file's embedding, and which content of the file it is.

        Args:
            folders: where a CLIP folder may lie that has the projection which the file lacks.

        Raises:
            InputError: missing, damaged, or no aesthetic gradient.
        """
        try:
            made = stamp(path)
        except OSError:
            raise InputError(f"{path}: there is no such file.") from None
        if made not in self._known:
            one = aesthetic.read(path)
            if one.projection is None:
                one = Aesthetic(one.embedding, _projection_in(folders, one.width))
            if one.projection is None:
                return one, made  # the CLIP folder may come yet
            self._known[made] = one
        return self._known[made], made


def _projection_in(folders: Iterable[Path], width: int) -> Tensor | None:
    """From a CLIP model's folder below these folders, one of this width."""
    for file in (found for folder in folders for found in sorted(folder.glob("*/model.safetensors"))):
        try:
            header = safetensors_io.read_header(file)
            if _PROJECTION in header.tensors and header.tensors[_PROJECTION].shape[0] == width:
                return safetensors_io.load(file, wanted=_PROJECTION.__eq__)[0][_PROJECTION].float()
        except (InputError, OSError):
            continue  # another model's folder, or a damaged one
    return None


def blend(own: Tensor, moved: Tensor, weight: float, slerp: bool) -> Tensor:
    """`own` + weight (`moved` - `own`), or the same way along the sphere over the last dimension (Shoemake 1985)."""
    if not slerp:
        return torch.lerp(own, moved.to(own), weight)
    moved = moved.to(own)
    cosine = nn.functional.cosine_similarity(own, moved, dim=-1)[..., None].clamp(-1, 1)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    curved = (torch.sin((1 - weight) * angle) * own + torch.sin(weight * angle) * moved) / sine
    return torch.where(sine.abs() < 1e-4, torch.lerp(own, moved, weight), curved)


def _blended(own: Any, moved: Sequence[Any], weights: Sequence[float], slerp: bool) -> Any:
    """An encoder's output in which every row is blended with its moved one; `moved` has one output per row or None."""
    if isinstance(own, Tensor):
        rows = [
            own[number] if other is None else blend(own[number], other[0], weight, slerp)
            for number, (other, weight) in enumerate(zip(moved, weights, strict=True))
        ]
        return torch.stack(rows)
    if isinstance(own, Mapping):
        made = {key: _blended(value, [one and one[key] for one in moved], weights, slerp) for key, value in own.items()}
        return type(own)(**made)
    if isinstance(own, (tuple, list)):
        parts = [_blended(v, [one and one[number] for one in moved], weights, slerp) for number, v in enumerate(own)]
        return type(own)(parts)
    return own


class AestheticAttachment(Attachment):
    """On one CLIP text model (transformers' class, whatever hosts wrap around it) for one generation."""

    def __init__(self, encoder: nn.Module, component: str, generation: Generation, uses: Sequence[AestheticUse]):
        self._root, self._component = weakref.ref(text_model_root(encoder)), component
        self._generation, self._uses = weakref.ref(generation), tuple(uses)
        self._handles: list[RemovableHandle] = []
        self._seen: Tensor | None = None
        self._shown: Tensor | None = None

    def attach(self) -> None:
        root = self._root()
        if root is None or self._handles:
            return
        embeddings = _embeddings_of(root)
        if embeddings is None:
            return  # open_clip's: it is not called as a whole
        self._handles = [
            embeddings.register_forward_hook(self._after_embeddings),
            root.register_forward_hook(self._after, with_kwargs=True),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._seen = [], None

    def _after_embeddings(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """Keeps what the prompt's tokens became, textual inversions included, and shows it again to the copy."""
        if self._shown is not None:
            return self._shown
        self._seen = output.detach()
        return None

    def _after(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        generation, seen, self._seen = self._generation(), self._seen, None
        if generation is None or self._shown is not None or seen is None:
            return None
        ids = args[0] if args else kwargs.get("input_ids")
        for use in self._uses:
            weights = self._weights(use, generation, seen.shape[0])
            if not any(weights) or not isinstance(ids, Tensor):
                continue
            projection = projection_for(use.embedding, module)
            if isinstance(projection, str):
                generation.note(f"{use.label}: {projection}")
                continue
            try:
                output = self._with(use, projection, weights, module, ids, seen, kwargs, output)
            except (RuntimeError, NotImplementedError, TypeError) as problem:
                why = str(problem).splitlines()[0][:200]
                generation.note(f"{use.label}: this text encoder cannot be moved ({why}); the tag does nothing.")
        return output

    def _weights(self, use: AestheticUse, generation: Generation, rows: int) -> list[float]:
        """One weight for each row of the call."""
        value = float(use.weight("text_encoder", generation.step, generation.total, generation.hires))
        known = generation.rows.get(self._component)
        if not known:
            return [value if use.whom.everyone else 0.0] * rows
        if len(known) == 1 or rows % len(known):
            known = known[:1] * rows
        return [value if use.whom.includes(row) else 0.0 for row in known[:rows]]

    def _with(
        self, use: AestheticUse, projection: Tensor, weights: list[float], module: nn.Module, ids: Tensor,
        seen: Tensor, kwargs: dict, output: Any,
    ) -> Any:  # fmt: skip
        kwargs = {name: value for name, value in kwargs.items() if name not in ("input_ids", "attention_mask")}
        moved: list[Any] = []
        for row, weight in enumerate(weights):
            if not weight:
                moved.append(None)
                continue
            known = next((i for i in range(row) if moved[i] is not None and torch.equal(seen[i], seen[row])), None)
            moved.append(
                moved[known]
                if known is not None
                else self._moved(use, projection, module, ids[row : row + 1], seen[row : row + 1], kwargs)
            )
        return _blended(output, moved, weights, use.slerp)

    def _moved(
        self, use: AestheticUse, projection: Tensor, module: nn.Module, ids: Tensor, seen: Tensor, kwargs: dict
    ) -> Any:
        """What the copy makes of one row [1, 77] after its steps."""
        # Tensors made under inference mode take no part in a gradient, and in Forge whole generations run under it, the
        # reading of files included; clones made outside of it do.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(ids.device.type, enabled=False):
            copy = {
                name: parameter.detach().clone().float().requires_grad_()
                for name, parameter in module.named_parameters()
                if "embeddings." not in name and "text_projection" not in name and parameter.is_floating_point()
            }
            target = use.embedding.embedding.to(ids.device).clone()
            projection = projection.to(ids.device).clone()
            last = ids[0].argmax().item()  # the end of the text, the highest number of the vocabulary
            optimizer = torch.optim.Adam(copy.values(), lr=use.lr)
            self._shown = seen.clone().float()
            ids = ids.clone()
            try:
                for _ in range(use.steps):
                    hidden = functional_call(module, copy, (ids,), kwargs)[0]
                    text = hidden[0, last].float() @ projection.T
                    optimizer.zero_grad(set_to_none=True)
                    (-nn.functional.cosine_similarity(text, target, dim=0)).backward()
                    optimizer.step()
                with torch.no_grad():
                    return functional_call(module, copy, (ids,), kwargs)
            finally:
                self._shown = None


def _embeddings_of(root: nn.Module) -> nn.Module | None:
    holder = getattr(root, "text_model", root)
    found = getattr(holder, "embeddings", None)
    return found if isinstance(found, nn.Module) else None


def projection_for(one: Aesthetic, module: nn.Module) -> Tensor | str:
    """[d, width] from this text model's output to the embedding's space, or why there is none."""
    width = _embeddings_of(module).position_embedding.weight.shape[1]
    own = getattr(module, "text_projection", None)
    candidates = [one.projection, own.weight if isinstance(own, nn.Linear) else None]
    found = next((p for p in candidates if p is not None and tuple(p.shape) == (one.width, width)), None)
    if found is not None:
        return found.detach().float()
    if one.projection is None:
        return (
            "the file has no text_projection and this model's text encoder has none either; make it with a whole CLIP "
            "folder, or put that folder beside the file."
        )
    return (
        f"it is made for a text encoder {one.projection.shape[1]} wide and this model's is {width} wide; "
        "it does nothing."
    )


def attachments_for(
    parts: Mapping[str, nn.Module], generation: Generation, uses: Sequence[AestheticUse]
) -> list[Attachment]:
    """One for each text model that its host calls as a whole, of a width that some use fits; says what fits none."""
    generation.text_uses = tuple(uses)
    if not uses:
        return []
    roots = {name: text_model_root(part) for name, part in parts.items() if name != "unet"}
    roots = {name: root for name, root in roots.items() if _embeddings_of(root) is not None}
    made: list[Attachment] = []
    fitting: set[int] = set()
    for name, root in roots.items():
        mine = [use for use in uses if isinstance(projection_for(use.embedding, root), Tensor)]
        fitting |= {id(use) for use in mine}
        made += [AestheticAttachment(root, name, generation, mine)] if mine else []
    for use in uses:
        if id(use) not in fitting:
            reasons = [projection_for(use.embedding, root) for root in roots.values()]
            why = next(iter(reasons), "this model's text encoder is none that can be moved; it does nothing.")
            generation.note(f"{use.label}: {why}")
    return made
