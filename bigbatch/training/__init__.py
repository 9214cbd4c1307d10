"""Training: batches, the loop, and what is measured on the way."""
