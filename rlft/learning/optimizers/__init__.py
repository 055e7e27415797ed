"""Optimizers of `learner.optimizer`: one class a file, and its file name is its short name."""
