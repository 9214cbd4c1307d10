"""A rank that is watched and does nothing but be in a phase: watched.py PHASE DEADLINE [SECONDS]."""

import os
import signal
import sys
import time

from bigbatch.comm.transports.launch import detect
from bigbatch.comm.transports.watchdog import watchdog
from bigbatch.comm.wires.life import doing

phase, deadline, seconds = sys.argv[1], float(sys.argv[2]), float((sys.argv[3:] or ["60"])[0])
last = os.environ.get("PMI_RANK", os.environ.get("RANK")) == "1"

if phase == "loading" and last:
    os.kill(os.getpid(), signal.SIGSTOP)
launch = detect()
launch.watch(deadline)
with doing(phase):
    print(phase, flush=True)
    if phase == "holding on" and last:  # computes, and lets no other thread of its process work
        sys.setswitchinterval(1000)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass
        sys.setswitchinterval(0.005)
    elif phase == "failing" and last:
        sys.exit(3)
    else:
        time.sleep(seconds)
watching = watchdog()
assert watching is not None or launch.alone, "one by itself may be left to process 1, and then nobody watches it"
if watching is not None:
    watching.finished()
