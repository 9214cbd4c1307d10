"""Who started a process, decided over a table of environments; and what the processes that it starts inherit.

Values are those that the launchers were seen to set (MPICH 5.0.2, Open MPI 5.0.11, torch 2.13), or that users showed.
"""

import pytest

from bigbatch.comm.errors import LaunchError
from bigbatch.comm.transports.families import UNCONNECTED, Launcher
from bigbatch.comm.transports.inherited import Above, without_launchers
from bigbatch.comm.transports.launch import Launch, decide
from bigbatch.comm.transports.nodelists import first_host, tasks_here

HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "PMI_FD": "9"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "6",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "3",
    "PMIX_RANK": "3",
}
MVAPICH = {
    "MV2_COMM_WORLD_RANK": "2",
    "MV2_COMM_WORLD_SIZE": "4",
    "MV2_COMM_WORLD_LOCAL_RANK": "0",
    "MV2_COMM_WORLD_LOCAL_SIZE": "2",
}
MVAPICH_3 = {name.replace("MV2", "MVP"): value for name, value in MVAPICH.items()}
CRAY = {"PMI_RANK": "5", "PMI_SIZE": "8", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "4", "PALS_RANKID": "5"}
PLATFORM = {"MPI_RANKID": "1", "MPI_NRANKS": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
JSRUN = {
    "JSM_NAMESPACE_RANK": "3",
    "JSM_NAMESPACE_SIZE": "6",
    "JSM_NAMESPACE_LOCAL_RANK": "0",
    "JSM_NAMESPACE_LOCAL_SIZE": "3",
    "PMIX_RANK": "3",
}
FLUX = {"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "4", "FLUX_TASK_LOCAL_ID": "1", "FLUX_JOB_ID": "f2WkpFQ"}
PRUN = {"PMIX_RANK": "1", "PMIX_NAMESPACE": "prterun-vm-26265@1", "PRTE_LAUNCHED": "1"}  # PRRTE of Open MPI 5.0.11
BY_HAND = {"RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "44957",
    "GROUP_RANK": "0",
    "GROUP_WORLD_SIZE": "1",
    "TORCHELASTIC_RUN_ID": "0f21",
    "TORCHELASTIC_RESTART_COUNT": "0",
}
DEEPSPEED = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "2",
    "CROSS_RANK": "1",
    "CROSS_SIZE": "2",
    "MASTER_ADDR": "n07",
    "MASTER_PORT": "29500",
}
AGAIN = {**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"}
SRUN = {
    "SLURM_PROCID": "2",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "6",
    "SLURM_STEP_NODELIST": "n[07-09]",
    "SLURM_JOB_ID": "40001",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_STEP_ID": "0",
}
SRUN_PMI2 = {**SRUN, "PMI_RANK": "2", "PMI_SIZE": "6", "PMI_FD": "12"}
BESIDE = {**SRUN, "SLURM_STEP_ID": "1", "SLURM_STEP_NODELIST": "n07", "SLURM_STEP_TASKS_PER_NODE": "6"}
ONE_TASK = {
    "SLURM_PROCID": "0",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n07",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_TASKS_PER_NODE": "1",
    "SLURM_NTASKS": "1",
}
PTY = {**ONE_TASK, "PMI_RANK": "0", "PMI_SIZE": "1", "SLURM_PTY_PORT": "34889"}  # TACC/remora 47, Lightning 19762
SALLOC = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "n[07-08]", "SLURM_JOB_NAME": "interactive"}
SALLOC_STEP = {**SALLOC, **ONE_TASK, "SLURM_STEP_ID": "4294967290", "SLURM_TASKS_PER_NODE": "8"}
SBATCH = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}
LEFT_OVER = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}  # a container's

HIDDEN = ({},)  # slurmstepd, another user's; or nothing further up is a launcher's

AS_HYDRA = Launch(Launcher.MPI, 1, 4, 1, 2)
AS_OPEN_MPI = Launch(Launcher.MPI, 3, 6, 0, 3)
AS_TORCHRUN = Launch(Launcher.TORCHRUN, 1, 2, 1, 2, "localhost:44957", one_machine=True, job="0f21")
AS_SRUN = Launch(Launcher.SLURM, 2, 6, 0, 2, "n07", job="40001.0.0")
AS_DEEPSPEED = Launch(Launcher.DEEPSPEED, 3, 4, 1, 2, "n07:29500")
AS_FLUX = Launch(Launcher.FLUX, 1, 4, 1, 4)
BY_ITSELF = Launch(Launcher.NONE)

DECIDED = {
    "a plain shell": ({}, (), BY_ITSELF),
    "mpirun of MPICH": (HYDRA, HIDDEN, AS_HYDRA),
    "mpirun of Open MPI": (OPEN_MPI, HIDDEN, AS_OPEN_MPI),
    "torchrun": (TORCHRUN, HIDDEN, AS_TORCHRUN),
    "torchrun, after two restarts": (AGAIN, HIDDEN, AS_TORCHRUN),
    "torchrun on several machines": (
        {**TORCHRUN, "WORLD_SIZE": "4", "MASTER_ADDR": "gpu1", "GROUP_WORLD_SIZE": "2"},
        HIDDEN,
        Launch(Launcher.TORCHRUN, 1, 4, 1, 2, "gpu1:44957", job="0f21"),
    ),
    "torch's variables by hand": (BY_HAND, (), Launch(Launcher.TORCHRUN, 2, 3, 2, 3, "10.0.0.1:29500")),
    "by hand, on one machine": (
        {**BY_HAND, "MASTER_ADDR": "127.0.0.1"},
        (),
        Launch(Launcher.TORCHRUN, 2, 3, 2, 3, "127.0.0.1:29500", one_machine=True),
    ),
    "srun of one task": (ONE_TASK, HIDDEN, Launch(Launcher.SLURM)),
    "srun of many tasks": (SRUN, HIDDEN, AS_SRUN),
    "srun with fewer tasks on the first node": (
        {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "1,2(x2),1", "SLURM_NODEID": "2", "SLURM_LOCALID": "1"},
        HIDDEN,
        Launch(Launcher.SLURM, 2, 6, 1, 2, "n07", job="40001.0.0"),
    ),
    "srun that serves PMI": (SRUN_PMI2, HIDDEN, AS_SRUN),
    "srun beside another, on one machine": (
        BESIDE,
        HIDDEN,
        Launch(Launcher.SLURM, 2, 6, 0, 6, "n07", one_machine=True, job="40001.1.0"),
    ),
    "srun in a job that was put back": (
        {**SRUN, "SLURM_RESTART_COUNT": "3"},
        HIDDEN,
        Launch(Launcher.SLURM, 2, 6, 0, 2, "n07", job="40001.0.3"),
    ),
    "srun --pty bash": (PTY, (PTY, {}), Launch(Launcher.SLURM)),
    "salloc": (SALLOC, (SALLOC, {}), BY_ITSELF),
    "salloc with its own step": (SALLOC_STEP, (SALLOC_STEP, {}), Launch(Launcher.SLURM)),
    "a batch script": (SBATCH, (SBATCH, {}), BY_ITSELF),
    "a container's variables": (LEFT_OVER, HIDDEN, BY_ITSELF),
    "WORLD_SIZE alone": ({"WORLD_SIZE": "8", "MASTER_PORT": "abc"}, HIDDEN, BY_ITSELF),
    "mpirun_rsh of MVAPICH2": (MVAPICH, HIDDEN, Launch(Launcher.MPI, 2, 4, 0, 2)),  # ROCm/rocHPL 37
    "mpirun_rsh of MVAPICH 3": (MVAPICH_3, HIDDEN, Launch(Launcher.MPI, 2, 4, 0, 2)),
    "MVAPICH's mpiexec, which is Hydra": (
        {**HYDRA, **MVAPICH, "MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_LOCAL_RANK": "1"},
        HIDDEN,
        AS_HYDRA,
    ),
    "mpiexec of Cray": (CRAY, HIDDEN, Launch(Launcher.MPI, 5, 8, 1, 4)),
    "mpirun of Platform MPI": (PLATFORM, HIDDEN, AS_HYDRA),
    "jsrun": (JSRUN, HIDDEN, AS_OPEN_MPI),
    "jsrun with Open MPI's names": ({**JSRUN, **OPEN_MPI}, HIDDEN, AS_OPEN_MPI),
    "flux run without PMI": (FLUX, HIDDEN, AS_FLUX),  # flux-framework/flux-core 669
    "flux run that serves PMI": ({**FLUX, "PMI_RANK": "1", "PMI_SIZE": "4"}, HIDDEN, AS_FLUX),
    "flux run that serves PMIx": ({**FLUX, "PMIX_RANK": "1"}, HIDDEN, AS_FLUX),
    "deepspeed": (DEEPSPEED, HIDDEN, AS_DEEPSPEED),
    "prun with Open MPI's names": ({**PRUN, **OPEN_MPI}, HIDDEN, AS_OPEN_MPI),
    "horovodrun -np 1": ({"HOROVOD_RANK": "0", "HOROVOD_SIZE": "1"}, HIDDEN, BY_ITSELF),
    "PMI left over": ({"PMI_RANK": "0", "PMI_SIZE": "1"}, HIDDEN, Launch(Launcher.MPI)),
    # One inside another.
    "torchrun in srun": ({**SRUN, **TORCHRUN}, (SRUN, SRUN, {}), AS_TORCHRUN),
    "torchrun in srun, unseen": ({**SRUN, **TORCHRUN}, (), AS_TORCHRUN),
    "torchrun in mpirun": ({**HYDRA, **TORCHRUN}, (HYDRA, {}), AS_TORCHRUN),
    "torchrun in mpirun, unseen": (
        {**HYDRA, **TORCHRUN, "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "4"},
        (),
        AS_TORCHRUN,
    ),
    "torchrun in an interactive shell": ({**PTY, **TORCHRUN}, (PTY, PTY, {}), AS_TORCHRUN),
    "accelerate launch in a step of one task, through a shell": (
        {**ONE_TASK, **TORCHRUN},
        ({**ONE_TASK, **TORCHRUN}, ONE_TASK, {}),
        AS_TORCHRUN,
    ),
    "deepspeed on each machine of a step": (  # deepspeedai/DeepSpeed 2025
        {**SRUN, **DEEPSPEED, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
        ({**SRUN, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, {}),
        AS_DEEPSPEED,
    ),
    "deepspeed on each machine of a step, unseen": (
        {**SRUN, **DEEPSPEED, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
        (),
        AS_DEEPSPEED,
    ),
    "deepspeed on each machine of mpirun, unseen": (
        {**HYDRA, **DEEPSPEED, "PMI_SIZE": "2"},
        (),
        AS_DEEPSPEED,
    ),
    "torchrun in deepspeed": ({**DEEPSPEED, **TORCHRUN}, (DEEPSPEED, {}), AS_TORCHRUN),
    "torchrun in flux run": ({**FLUX, **TORCHRUN}, (), AS_TORCHRUN),
    "mpirun in a shell of prun": ({**PRUN, **HYDRA}, (PRUN, {}), AS_HYDRA),
    "mpirun in torchrun": ({**TORCHRUN, **HYDRA}, (TORCHRUN, TORCHRUN, {}), AS_HYDRA),
    "mpirun in salloc": ({**SALLOC, **HYDRA}, (SALLOC, {}), AS_HYDRA),
    "mpirun in salloc's own step": ({**SALLOC_STEP, **HYDRA}, (SALLOC_STEP, {}), AS_HYDRA),
    "mpirun in a step of srun": ({**SRUN, **HYDRA}, (SRUN, {}), AS_HYDRA),
    "mpirun in a step of srun, unseen": ({**SRUN, **HYDRA}, (), AS_HYDRA),
    "mpirun with the step's own numbers": (
        {**SRUN_PMI2, "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"},
        (SRUN_PMI2, {}),
        Launch(Launcher.MPI, 2, 6, 0, 1),
    ),
    "mpirun -n 1 in each task of srun": (
        {**SRUN, "PMI_RANK": "0", "PMI_SIZE": "1"},
        (SRUN, {}),
        Launch(Launcher.MPI),
    ),
    "srun in mpirun -n 1": ({**SRUN, "PMI_RANK": "0", "PMI_SIZE": "1"}, HIDDEN, AS_SRUN),
    "Open MPI in MPICH": ({**HYDRA, **OPEN_MPI}, (HYDRA, HYDRA, {}), AS_OPEN_MPI),
    "mpirun in a container": ({**LEFT_OVER, **HYDRA}, (), AS_HYDRA),
    "srun in a container": ({**LEFT_OVER, **SRUN}, (), AS_SRUN),
    "by hand from srun's variables": (
        {**SRUN, **BY_HAND, "RANK": "2", "WORLD_SIZE": "6"},
        HIDDEN,
        Launch(Launcher.TORCHRUN, 2, 6, 2, 6, "10.0.0.1:29500"),
    ),
    "by hand in an interactive shell": (
        {**PTY, **BY_HAND},
        (PTY, {}),
        Launch(Launcher.TORCHRUN, 2, 3, 2, 3, "10.0.0.1:29500"),
    ),
    "an exported address and size in srun": (
        {**SRUN, "WORLD_SIZE": "6", "MASTER_ADDR": "n07", "MASTER_PORT": "29500"},
        HIDDEN,
        AS_SRUN,
    ),
    "rank and size by hand in srun, no address": ({**SRUN, "RANK": "2", "WORLD_SIZE": "6"}, HIDDEN, AS_SRUN),
}


@pytest.mark.parametrize("name", DECIDED)
def test_the_innermost_launcher_that_fits_wins(name):
    environment, above, expected = DECIDED[name]
    decision = decide(environment, map(Above, above))
    assert decision.launch == expected
    assert decision.why.endswith(".")
    assert expected.launcher.value in decision.why.lower() or "by hand" in decision.why
    assert decision.variables.items() <= environment.items()


REFUSED = {
    "left over and another size": ({**BY_HAND, **HYDRA}, ("RANK=2", "WORLD_SIZE=3", "PMI_RANK=1", "PMI_SIZE=4")),
    "one rank for all tasks": (
        {**SRUN, **BY_HAND, "RANK": "0", "WORLD_SIZE": "6"},
        ("RANK=0", "WORLD_SIZE=6", "SLURM_PROCID=2", "SLURM_STEP_NUM_TASKS=6"),
    ),
    "prun, which tells no size": (PRUN, ("PMIX_RANK='1'", "--personality ompi")),  # open-mpi/ompi 6875
    "aprun": ({"ALPS_APP_PE": "3"}, ("ALPS_APP_PE='3'",)),
    "horovodrun with gloo": ({"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2"}, ("HOROVOD_RANK='1'",)),
    "OSC's mpiexec": ({"MPIEXEC_RANK": "0"}, ("MPIEXEC_RANK='0'",)),
    "blaunch": ({"LSF_PM_TASKID": "1", "LSB_DJOB_NUMPROC": "2"}, ("LSF_PM_TASKID='1'",)),
    "mpirun of MVAPICH 1": ({"MPIRUN_RANK": "1", "MPIRUN_NPROCS": "2"}, ("MPIRUN_RANK='1'",)),
    "a rank of unknown many": ({"OMPI_COMM_WORLD_RANK": "1"}, ("OMPI_COMM_WORLD_RANK='1'",)),
    "two of MPI": ({**HYDRA, **OPEN_MPI}, ("PMI_RANK=1", "OMPI_COMM_WORLD_SIZE=6")),
    "torchrun and mpirun, unseen": ({**TORCHRUN, **HYDRA}, ("RANK=1", "WORLD_SIZE=2", "PMI_SIZE=4")),
    "nowhere to meet": ({"RANK": "1", "WORLD_SIZE": "3"}, ("RANK=1", "WORLD_SIZE=3", "MASTER_ADDR", "MASTER_PORT")),
    "nowhere to meet in a shell": ({**PTY, "RANK": "1", "WORLD_SIZE": "3"}, ("MASTER_ADDR and MASTER_PORT",)),
    "torchrun, no address": ({k: v for k, v in TORCHRUN.items() if k != "MASTER_ADDR"}, ("MASTER_ADDR",)),
    "a job's number": ({**SRUN, "SLURM_JOB_ID": "12_3a"}, ("SLURM_JOB_ID='12_3a'",)),
    "digits with a line": ({**SRUN, "SLURM_JOB_ID": "12_3"}, ("SLURM_JOB_ID='12_3'",)),
    "a step's number": ({**SRUN, "SLURM_STEP_ID": "batch"}, ("SLURM_STEP_ID='batch'",)),
    "no number of tasks": ({k: v for k, v in SRUN.items() if k != "SLURM_STEP_NUM_TASKS"}, ("SLURM_STEP_NUM_TASKS",)),
    "no node": ({**SRUN, "SLURM_STEP_NODELIST": ""}, ("SLURM_STEP_NODELIST=''",)),
    "a word for a port": ({**BY_HAND, "MASTER_PORT": "abc"}, ("MASTER_PORT='abc'", "65535")),
    "a URL for a host": ({**BY_HAND, "MASTER_ADDR": "tcp://n1"}, ("MASTER_ADDR='tcp://n1'",)),
    "brackets": ({**BY_HAND, "MASTER_ADDR": "[::1]"}, ("MASTER_ADDR='[::1]'",)),
    "several hosts": ({**BY_HAND, "MASTER_ADDR": "n[01-02]"}, ("MASTER_ADDR='n[01-02]'",)),
    "a host and a line's end": ({**BY_HAND, "MASTER_ADDR": "n1\n"}, ("MASTER_ADDR='n1\\n'",)),
    "an empty label, which Python cannot encode": ({**BY_HAND, "MASTER_ADDR": "a..b"}, ("MASTER_ADDR='a..b'",)),
    "a label that is too long": ({**BY_HAND, "MASTER_ADDR": "x" * 70}, ("MASTER_ADDR='xxx",)),
    "port 0": ({**BY_HAND, "MASTER_PORT": "0"}, ("MASTER_PORT='0'",)),
    "port 70000": ({**BY_HAND, "MASTER_PORT": "70000"}, ("MASTER_PORT='70000'",)),
    "an empty port": ({**BY_HAND, "MASTER_PORT": ""}, ("MASTER_PORT",)),
    "a rank that is too large": ({**HYDRA, "PMI_RANK": "4"}, ("PMI_RANK='4'", "PMI_SIZE=4")),
    "a negative rank": ({**HYDRA, "PMI_RANK": "-1"}, ("PMI_RANK='-1'",)),
    "no process": ({**HYDRA, "PMI_RANK": "0", "PMI_SIZE": "0"}, ("PMI_SIZE='0'",)),
    "a word": ({**HYDRA, "PMI_RANK": "x"}, ("PMI_RANK='x'", "mpirun")),
    "an empty rank": ({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": ""}, ("OMPI_COMM_WORLD_RANK=''",)),
    "another script's digits": ({**BY_HAND, "RANK": "٢"}, ("RANK='٢'",)),
    "a space": ({**BY_HAND, "RANK": " 2"}, ("RANK=' 2'",)),
    "a plus": ({**BY_HAND, "WORLD_SIZE": "+3"}, ("WORLD_SIZE='+3'",)),
    "many digits": ({**BY_HAND, "WORLD_SIZE": "9" * 5000}, ("WORLD_SIZE=",)),
    "a local rank that is too large": ({**TORCHRUN, "LOCAL_RANK": "2"}, ("LOCAL_RANK='2'", "LOCAL_WORLD_SIZE=2")),
    "more here than in all": ({**TORCHRUN, "LOCAL_WORLD_SIZE": "8"}, ("LOCAL_WORLD_SIZE='8'",)),
    "a local rank": ({**TORCHRUN, "LOCAL_RANK": "one"}, ("LOCAL_RANK='one'",)),
    "tasks of a node": ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "(x3)"}, ("SLURM_STEP_TASKS_PER_NODE",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_contradictions_and_bad_values_are_refused_in_a_sentence_with_the_variables(name):
    environment, parts = REFUSED[name]
    with pytest.raises(LaunchError) as refused:
        decide(environment)
    sentence = str(refused.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence, sentence


LAUNCHER = Above({}, launches=True)  # such as hydra_pmi_proxy or slurmstepd
BELOW = {
    "mpirun env -i": ({}, (LAUNCHER,), False),
    "mpirun env -i bash, a script of it": ({}, (Above({}), LAUNCHER), False),
    "mpirun sudo": ({}, (Above(HYDRA), LAUNCHER), False),
    "srun apptainer --cleanenv": ({"MASTER_ADDR": "n1"}, (Above(SRUN), Above(SRUN), LAUNCHER), False),
    "unset PMI_RANK PMI_SIZE in a rank's shell": ({"MPI_LOCALRANKID": "1"}, (Above(HYDRA), LAUNCHER), False),
    "sudo in a shell of one task": ({}, (Above(PTY), LAUNCHER), True),
    "sudo in a batch script": ({}, (Above(SBATCH), LAUNCHER), True),
    "a batch script's exec": (SBATCH, (LAUNCHER,), True),
    "said to be alone": ({"RANK": "0", "WORLD_SIZE": "1"}, (LAUNCHER,), True),
    "started by one that is said to be alone": ({}, (Above({"RANK": "0", "WORLD_SIZE": "1"}), LAUNCHER), True),
    "unset RANK in a container's shell": ({}, (Above(BY_HAND), Above({})), True),
    "a program beside the job": ({}, (Above({}), Above({})), True),
}


@pytest.mark.parametrize("name", BELOW)
def test_a_process_that_has_lost_its_launchers_variables_does_not_work_alone(name):
    environment, above, works = BELOW[name]
    if works:
        assert decide(environment, above).launch == BY_ITSELF
        return
    with pytest.raises(LaunchError, match=r"variables with its rank are gone.* RANK=0 and WORLD_SIZE=1"):
        decide(environment, above)


def test_processes_that_are_started_inherit_no_launchers_variables():
    everything = {
        **HYDRA,
        **OPEN_MPI,
        **TORCHRUN,
        **SRUN,
        **PTY,
        **SALLOC,
        **MVAPICH,
        **MVAPICH_3,
        **CRAY,
        **JSRUN,
        **PLATFORM,
        **FLUX,
        **DEEPSPEED,
        **PRUN,
        **dict.fromkeys(UNCONNECTED, "3"),
        "OMPI_MCA_orte_ess_jobid": "1",
        "PET_NNODES": "2",
    }
    kept = {
        "PATH": "/bin",
        "HOME": "/home/ada",
        "GLOO_SOCKET_IFNAME": "eth0",
        "OMPI_MCA_btl": "tcp,self",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "RANKINE": "1",
    }
    assert without_launchers({**everything, **kept}) == kept
    assert decide(without_launchers({**everything, **kept})).launch == BY_ITSELF


OTHER_MACHINES = {
    "PBS_NODEFILE": "/var/spool/nodes",
    "PBS_ENVIRONMENT": "PBS_BATCH",
    "LSB_MCPU_HOSTS": "n1 2 n2 2",
    "PE_HOSTFILE": "/var/spool/hosts",
    "COBALT_NODEFILE": "/var/spool/nodes",
    "HYDRA_HOST_FILE": "hosts",
    "HYDRA_RMK": "pbs",
    "I_MPI_HYDRA_HOST_FILE": "hosts",
    "PRTE_MCA_prte_default_hostfile": "hosts",
    "PRTE_MCA_ras": "tm",
}


def test_processes_that_are_started_hear_of_no_other_machine():
    kept = {"PBS_O_WORKDIR": "/home/ada", "HYDRA_DEBUG": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    assert without_launchers({**OTHER_MACHINES, **kept}) == kept


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu1,gpu2", "gpu1"), ("node[03-05,9]", "node03"), ("n07", "n07"), ("r[1-2]n.site.org,x", "r1n.site.org")],
)
def test_the_first_host_of_a_list_is_found(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("tasks", "machine", "here"),
    [("4(x2),3", "2", "3"), ("4(x2),3", "1", "4"), ("1,2(x3),1", "3", "2"), ("6", "", "6"), ("2", "9", "2")],
)
def test_the_tasks_of_one_machine_are_found(tasks, machine, here):
    assert tasks_here(tasks, machine) == here
