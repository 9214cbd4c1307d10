"""Transports, one file each: alone, in-process cluster, MPI, torch.distributed."""
