"""Policies: modules whose `forward` says how likely given actions are."""
