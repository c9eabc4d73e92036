"""Entry point of `python -m basisconv`."""

import sys

from basisconv.cli import main

if __name__ == "__main__":
    sys.exit(main())
