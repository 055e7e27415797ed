"""`rlft merge`: models mixed weight by weight after training, one tensor in memory at a time."""
