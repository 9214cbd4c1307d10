"""Reducing tensors over ranks: by a schedule, through shared memory, or by a library; and which is fastest here."""
