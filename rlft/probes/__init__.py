"""Probes: what a policy still knows, measured on a schedule while a run goes on.

`probes: {every: 10, fns: [{name: restart, env: {start: far}}]}`. A probe sees a saved policy, not the run;
it works in an actor of its own (`prober.py`), so that training waits only for the policy to be written.
Each is a frozen dataclass (`probe.py` says what it owes) whose fields are its YAML keys.
"""

from rlft.probes.benchmark import LMEval
from rlft.probes.likelihood import TeacherLikelihood
from rlft.probes.restart import Restart
from rlft.probes.text import TextForgetting

__all__ = ["LMEval", "Restart", "TeacherLikelihood", "TextForgetting"]
