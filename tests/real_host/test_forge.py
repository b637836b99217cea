"""The real Forge, where it differs from the others; what it shares with them is in test_every_host.py."""

from __future__ import annotations

import pytest
from server import PROMPT


@pytest.fixture
def ours(which_webui, hosts):
    if which_webui != "forge":
        pytest.skip("the WebUI is not Forge")
    return hosts.ours


def test_negative_rows_are_left_out_where_guidance_does_not_look_at_them(ours):
    tagged = ours(PROMPT, "blurry <lora:k_lora:0.7>", cfg_scale=1)
    assert tagged.away_from(ours(cfg_scale=1)) == 0


def test_a_tag_of_one_picture_of_a_prompt_matrix(ours):
    more = {"script_name": "Prompt matrix", "script_args": [False, False, "positive", "comma", 0], "batch_size": 2}
    _, first, second = ours(f"{PROMPT}|<lora:k_lora:0.7:for=picture>", **more).pictures
    for drawn, expected in ((first, ours()), (second, ours(f"{PROMPT}, <lora:k_lora:0.7>"))):
        assert abs(drawn.astype(int) - expected.pictures[0].astype(int)).max() <= 1
