"""How weights travel from learner to engines, and the proofs that they arrived."""
