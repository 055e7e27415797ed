"""rlft: fine-tune policies with reward. See `docs/architecture.md`."""

from rlft.errors import Invalid
from rlft.types import Group, Task, Trajectory

__version__ = "0.1.0"
__all__ = ["Group", "Invalid", "Task", "Trajectory", "__version__"]
