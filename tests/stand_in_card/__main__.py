"""Runs a Python with the stand-in card: `python tests/stand_in_card PYTHON FILE|-m MODULE …`."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import stand_in_card  # noqa: E402

with tempfile.TemporaryDirectory() as folder:
    variables = stand_in_card.build(Path(folder))
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [variables["PYTHONPATH"], os.environ.get("PYTHONPATH")]))
    sys.exit(subprocess.run(sys.argv[1:], env={**os.environ, **variables}, check=False).returncode)
