"""What `srft-ray analyze` computes from a run: one module for each question, and `study`, which asks all."""
