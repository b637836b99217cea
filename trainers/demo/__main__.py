"""`python -m trainers.demo --out DIR`: what `python install.py demo` runs inside the environment."""

import sys

from trainers.demo.run import main

if __name__ == "__main__":
    sys.exit(main())
