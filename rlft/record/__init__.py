"""What a run leaves behind: metrics, samples, checkpoints, and what it shows while it runs."""
