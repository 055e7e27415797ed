"""What runs in reward workers."""
