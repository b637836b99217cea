"""Runs a module in an environment that is only a folder, for a Python that cannot make virtual environments.

    python bootstrap.py FOLDER -m MODULE [WORD …]
    python bootstrap.py FOLDER -c PROGRAM [WORD …]

The folder comes before the packages of that Python, which is a WebUI's own (the "embedded" Python of Windows packages
has no `venv` and reads no PYTHONPATH). Standard library only; run by its path.
"""

import os
import runpy
import sys


def main(words):
    """Puts the folders in order, then becomes the program."""
    folder, kind, name, rest = words[0], words[1], words[2], words[3:]
    here = os.path.dirname(os.path.abspath(__file__))
    first = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    first.append(folder)
    known = {os.path.normcase(os.path.abspath(path)) for path in [*first, here]}
    others = [path for path in sys.path if path and os.path.normcase(os.path.abspath(path)) not in known]
    # A folder of packages must stand behind ours, the standard library may stand anywhere.
    sys.path[:] = [*first, *others]
    sys.argv = [name, *rest]
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # such a Python reads no PYTHONIOENCODING and no PYTHONUNBUFFERED either
            stream.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)
    if kind == "-c":
        sys.argv[0] = "-c"
        exec(compile(name, "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
