"""Starts a program on some ranks as mpirun does, waits for all, and ends with the worst status; loads nothing heavy."""

import os
import subprocess
import sys

size, program = int(sys.argv[1]), sys.argv[2:]
processes = [
    subprocess.Popen(
        [sys.executable, *program],
        env={**os.environ, "PMI_RANK": str(rank), "PMI_SIZE": str(size), "MPI_LOCALRANKID": str(rank),
             "MPI_LOCALNRANKS": str(size)},
    )
    for rank in range(size)
]  # fmt: skip
sys.exit(max(abs(process.wait()) for process in processes))
