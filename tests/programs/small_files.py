"""`bigbatch-exp` on a disk that is too small for files of more than so many bytes: `small_files.py BYTES WORD ...`."""

import resource
import signal
import sys

from bigbatch.experiments.commands.main import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main()
