"""`python -m rlft` is the `rlft` command; cluster jobs use it, having no console script on PATH."""

from rlft.cli import main

if __name__ == "__main__":
    main()
