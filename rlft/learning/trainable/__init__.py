"""Ways to choose what is trained: one class a file, and its file name is its short name."""
