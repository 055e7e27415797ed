"""Credit: who earned what. Pure functions from rewards to advantages; nothing here is reduced."""

from rlft.credit.group import group_relative, leave_one_out

__all__ = ["group_relative", "leave_one_out"]
