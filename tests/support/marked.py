"""Processes told apart by a variable of their environment."""

import psutil


def processes_with(name: str, mark: str) -> list[psutil.Process]:
    """Every process that inherited `name=mark`, at any depth: Ray detaches those that it starts."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue  # gone meanwhile, or another user's
    return found
