"""What runs in learner ranks."""
