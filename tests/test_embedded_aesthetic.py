"""Aesthetic gradients by tag in the embedded host: the published formula, whom it acts on, and nothing left behind."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from embedded_helpers import apart, draw, make_studio, one, write_lora
from torch.nn.functional import cosine_similarity

from extension.hosts.embedded.conditioning import Text
from extension.injection.aesthetic import blend
from extension.injection.scales import Row
from extension.wanted import read_wanted
from trainers.formats import aesthetic
from trainers.formats.aesthetic import Aesthetic

WIDTH = 16


def random_aesthetic(text_width: int, seed: int = 0, projected: bool = True) -> Aesthetic:
    drawn = torch.Generator().manual_seed(seed)
    projection = torch.randn(WIDTH, text_width, generator=drawn) if projected else None
    return Aesthetic(torch.randn(WIDTH, generator=drawn), projection)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    torch.set_num_threads(1)
    made = make_studio(tmp_path_factory.mktemp("data"))
    width = made.model.widths["text_encoder"]
    places = made.places.aesthetics
    aesthetic.save(places / "glow.safetensors", random_aesthetic(width), {})
    aesthetic.save_pt(places / "bare.pt", random_aesthetic(width, projected=False))
    aesthetic.save(places / "other.safetensors", random_aesthetic(width + 1), {})
    (places / "broken.pt").write_bytes(b"no such file")
    write_lora(made.places.adapters / "words.safetensors", made, unet=False, text=True)
    made.rescan()
    return made


def checksum(studio) -> str:
    digest = hashlib.sha256()
    for module in (studio.model.base.unet, *studio.model.base.text_encoders):
        for name, tensor in module.state_dict().items():
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        hooked = [m for m in module.modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__]
        digest.update(str(hooked).encode())
    return digest.hexdigest()


def by_formula(encoder, ids, one, steps, lr):
    """The published way: Adam on a deep copy of the encoder, the vocabulary left out."""
    mine = copy.deepcopy(encoder)
    for name, parameter in mine.named_parameters():
        parameter.requires_grad_("embeddings." not in name)
    optimizer = torch.optim.Adam([p for p in mine.parameters() if p.requires_grad], lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            pooled = mine(input_ids=ids).pooler_output
            loss = -cosine_similarity(pooled @ one.projection.half().float().T, one.embedding[None])
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
    with torch.no_grad():
        return mine(input_ids=ids).last_hidden_state


def test_is_the_published_formula(studio):
    prompt, tag = "a red star", "<aesthetic:glow:0.7:steps=4:lr=3e-4>"
    model, wanted = studio.model, read_wanted([f"{prompt} {tag}"], [""], studio.library)
    conditioner = model.conditioner
    conditioner.prepare([], 1)
    generation = model.injection.begin(studio, [])
    from extension.injection.aesthetic import attachments_for

    for attachment in attachments_for(model.parts, generation, wanted.aesthetics):
        attachment.attach()
        generation.attachments.append(attachment)
    ours = conditioner.encode(Text(wanted.prompts[0], Row()), generation).hidden
    other = conditioner.encode(Text(wanted.prompts[0], Row(negative=True)), generation).hidden
    model.injection.end(studio)
    encoder, spec = model.base.text_encoders[0], model.base.family.text_encoders[0]
    from trainers.bases.text import pad_chunk

    ids = torch.tensor([pad_chunk(conditioner._ids(prompt), spec.pads_with_end)])
    plain = encoder(input_ids=ids).last_hidden_state[0]
    moved = by_formula(encoder, ids, random_aesthetic(model.widths["text_encoder"]), 4, 3e-4)[0]
    assert (moved - plain).abs().max() > 1e-2
    torch.testing.assert_close(ours, plain + 0.7 * (moved - plain), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other, plain, rtol=1e-6, atol=1e-6)


def test_acts_on_its_own_prompt_and_leaves_nothing(studio):
    plain = one(studio, "a red star")  # transformers puts hooks of its own on a text model when it is first called
    before = checksum(studio)
    acting = one(studio, "a red star <aesthetic:glow:1:lr=1e-2>")
    negative = one(studio, "a red star", negative_prompt="<aesthetic:glow:1:lr=1e-2>")
    assert apart(acting, plain) > 8 and apart(negative, plain) > 8 and apart(acting, negative) > 8
    assert apart(one(studio, "a red star <aesthetic:glow:0>"), plain) == 0
    assert apart(one(studio, "a red star <aesthetic:glow:1:steps=0>"), plain) == 0
    assert apart(one(studio, "a red star <aesthetic:glow:1:lr=1e-2:slerp=1>"), plain) > 8
    both = one(studio, "a red star <lora:words:1><aesthetic:glow:1:lr=1e-2>")
    assert apart(both, acting) > 0 and apart(both, one(studio, "a red star <lora:words:1>")) > 0
    halves = "".join(f"<aesthetic:glow:1:lr=1e-2:mask={side}>" for side in ("left", "right"))
    assert apart(one(studio, f"a red star {halves}"), acting) <= 1
    studio.library.aesthetic_files._known.clear()
    studio.model.conditioner._kept.clear()
    with torch.inference_mode():  # as Forge draws: the file is read under it too
        assert apart(one(studio, "a red star <aesthetic:glow:1:lr=1e-2>"), acting) <= 1
    assert apart(one(studio, "a red star"), plain) == 0 and checksum(studio) == before


def test_what_cannot_act_says_so(studio):
    plain = one(studio, "a red star")
    for tag, sentence in [
        ("<aesthetic:bare>", "no text_projection"),
        ("<aesthetic:other>", "made for a text encoder"),
        ("<aesthetic:glov>", 'did you mean "glow"'),
        ("<aesthetic:broken>", "broken.pt"),
        ("<aesthetic:glow:1:steps=-1>", "not a whole number"),
        ("<aesthetic:glow:1:lr=7>", "not a rate"),
    ]:
        job = draw(studio, f"a red star {tag}")
        assert any(sentence in line for line in job.reports), (tag, job.reports)
        assert apart(job.pictures[0].image, plain) == 0


def test_a_clip_folder_beside_the_files_lends_its_projection(studio):
    from tiny_clip import make_clip

    folder = make_clip(studio.places.aesthetics / "clip", text_width=studio.model.widths["text_encoder"])
    job = draw(studio, "a red star <aesthetic:bare:1:lr=1e-2>")
    assert not job.reports and apart(job.pictures[0].image, one(studio, "a red star")) > 0
    assert folder.is_dir()


def test_slerp_keeps_lengths():
    own, moved = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    middle = blend(own, moved, 0.5, slerp=True)
    torch.testing.assert_close(middle, torch.tensor([[1.0, 1.0]]) * 3 / 2**0.5)
    torch.testing.assert_close(blend(own, own, 0.5, slerp=True), own)
