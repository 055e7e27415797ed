"""Processes that Ctrl-C reaches, wherever the tests were started."""

import signal


def interruptible() -> None:
    """For `preexec_fn`. A shell's background job ignores SIGINT, and so would everything below it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
