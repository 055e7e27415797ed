"""Retention: terms that keep what a start policy knows, a list that any algorithm takes from YAML.

`retention: [{name: behavioural_cloning, coef: 1.0, path: far.npz}]`. The framework appends them to the
algorithm's own terms; no algorithm knows of them. Each is a frozen dataclass whose fields are its YAML
keys (`term.py` says what it owes); what runs in a learner rank is in rlft/learning/retained.py. None of
them touches a critic.
"""

from rlft.retention.cloning import BehaviouralCloning
from rlft.retention.ewc import EWC, L2
from rlft.retention.kickstarting import Kickstarting
from rlft.retention.language import Language
from rlft.retention.reference import Reference
from rlft.retention.text_replay import TextReplay

__all__ = ["EWC", "L2", "BehaviouralCloning", "Kickstarting", "Language", "Reference", "TextReplay"]
