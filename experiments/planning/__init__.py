"""Planning a training: simulated updates of large models, and the trade-off of time against cost."""
