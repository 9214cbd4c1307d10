"""Lists as Slurm writes them: of machines, and of what there is on each."""

import re

from bigbatch.comm.errors import LaunchError


def tasks_here(listed: str, machine: str) -> str:
    """The entry for one machine of a list of tasks as Slurm writes it: machine 2 of "4(x2),3" has 3."""
    before = int(machine) if re.fullmatch(r"[0-9]{1,10}", machine) else 0
    entries = re.findall(r"([^,(]+)(?:\(x([0-9]{1,10})\))?", listed)
    for count, times in entries:
        before -= int(times or 1)
        if before < 0:
            return str(count)
    return listed


def first_host(nodelist: str) -> str:
    """The first host of a list as Slurm writes it: "node[03-05,9],gpu1" is node03."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodelist)
    if match is None:
        raise LaunchError(f"Slurm's list of nodes, SLURM_STEP_NODELIST={nodelist!r}, names no host: start with srun.")
    return match[1] + (match[2] or "") + (match[3] or "")
