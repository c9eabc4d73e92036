"""Entry point of `python -m basisconv`."""

import sys

from basisconv.study.cli import main

if __name__ == "__main__":
    sys.exit(main())
