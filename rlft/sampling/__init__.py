"""What runs in sampler actors."""
