"""That a card's memory which a WebUI's torch has shared comes back, on the stand-in card. Needs only a WebUI's Python:
`pytest tests/real_host/test_card_memory.py --python PY`."""

from __future__ import annotations

import os
import subprocess

import pytest
import stand_in_card

from extension.jobs.places import ROOT

PROGRAM = """
import gc, json, os, subprocess, sys
import torch
from trainers.formats.live_tensors import Mapped, Shared

file, how = sys.argv[1:3]
if len(sys.argv) > 3:
    mapped = Mapped(json.load(open(file))).tensors("unet", ["a", "b"])
    assert mapped["a"].is_cuda and float(mapped["a"].sum()) == 2**20 and float(mapped["b"][3]) == 3
    mapped["b"][3] = 5  # it is the same memory
    if how == "killed":
        torch.cuda.synchronize()
        os.kill(os.getpid(), 9)
    sys.exit(0)

tensors = {"a": torch.ones(8, 2**20, device="cuda")[0], "b": torch.arange(10.0, device="cuda")}
shared = Shared({"unet": ("ldm", tensors)})
with open(file, "w") as out:
    json.dump(shared.description(), out)
if how != "never came":
    subprocess.run([sys.executable, __file__, file, how, "child"])
    assert float(tensors["b"][3]) == 5
shared.release()
if how == "twice":
    again = Shared({"unet": ("ldm", tensors)})
    again.release()
del tensors, shared
gc.collect()
torch.cuda.empty_cache()
print("left", torch.cuda.memory_reserved())
"""


@pytest.mark.parametrize("how", ["never came", "killed", "ended", "twice"])
def test_it_comes_back(how, request, host_python, tmp_path):
    if stand_in_card.problem():
        pytest.skip(stand_in_card.problem())
    ask = [host_python, "-c", "import torch; print(torch.version.cuda or '')"]
    if not request.config.getoption("--python") or not subprocess.check_output(ask, text=True).strip():
        pytest.skip("needs a torch that was built for CUDA: --python PY")
    (tmp_path / "program.py").write_text(PROGRAM)
    variables = stand_in_card.build(tmp_path)
    variables["PYTHONPATH"] += os.pathsep + str(ROOT)
    done = subprocess.run(
        [host_python, tmp_path / "program.py", tmp_path / "tensors.json", how],
        env={**os.environ, **variables}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout.strip() == "left 0", done.stdout + done.stderr
