"""What can be known about a run before it starts."""

from rlft.check.installation import check_installation
from rlft.check.plugins import check_plugins, plugin_warnings, with_plugin_defaults
from rlft.check.report import report
from rlft.check.tasks import check_prompts, check_tasks

__all__ = [
    "check_installation",
    "check_plugins",
    "check_prompts",
    "check_tasks",
    "plugin_warnings",
    "report",
    "with_plugin_defaults",
]
