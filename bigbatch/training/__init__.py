"""Training: how batches are divided, the training loop, and what is measured during it."""
