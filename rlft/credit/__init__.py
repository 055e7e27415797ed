"""Credit: who earned what. Pure functions from rewards to advantages; nothing here is reduced.

What is listed here gives one number a row, and is chosen by name (`algo.advantage`). A function says
what it reads by the names of its parameters without default; `rlft.credit.reads` knows them.
`rlft.credit.decision` holds credit per decision, `rlft.credit.token` what it is made of.
"""

from rlft.credit.gdpo import gdpo
from rlft.credit.group import group_relative, rloo
from rlft.credit.pass_at_k import pass_at_k
from rlft.credit.poly_epo import poly_epo
from rlft.credit.steps import process
from rlft.credit.whitened import reinforce_pp, reinforce_pp_baseline

__all__ = [
    "gdpo",
    "group_relative",
    "pass_at_k",
    "poly_epo",
    "process",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "rloo",
]
