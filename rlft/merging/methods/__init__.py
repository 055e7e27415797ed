"""Ways to mix models: one class a file, and its file name is its short name."""
