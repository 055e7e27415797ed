"""`python -m rlft` is the `rlft` command; cluster jobs use it, having no console script on PATH."""

import sys

from rlft.cli import main

if __name__ == "__main__":
    sys.exit(main())
