"""Sets Athanor up and runs it: demo, serve, test, link, doctor. A WebUI runs it without arguments at every start.

This file must be readable by any Python, so that an old one is answered with a sentence; the work is in `installer/`.
"""

import os
import sys


def main():
    if sys.version_info < (3, 10):
        version = ".".join(map(str, sys.version_info[:3]))
        sys.stderr.write("Athanor needs Python 3.10 or newer; %s is Python %s.\n" % (sys.executable, version))
        return 1
    # An embedded Python does not put a script's own folder on its path.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    if len(sys.argv) == 1 and not (sys.stdout and sys.stdout.isatty()):
        from installer.host import at_start

        return at_start()
    from installer.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
