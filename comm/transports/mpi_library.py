"""The MPI library: loaded and initialised through mpi4py, whichever library that finds."""

import ctypes
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from bigbatch.comm.errors import LaunchError

PMIX = ("PMIX_NAMESPACE", "PMIX_RANK", "PMIX_VERSION")
"""The variables by which MPICH recognises a launcher that serves PMIx."""


def library_version() -> str:
    """The name and the version of the MPI library, in one line.

    Raises:
        LaunchError: there is none.
    """
    return " ".join(str(load_mpi().Get_library_version()).splitlines()[0].strip("\0").split())


def load_mpi() -> ModuleType:
    """Import mpi4py's MPI, which loads and initialises the MPI library.

    Raises:
        LaunchError: no MPI library could be loaded.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = False  # else the import does it, and meanwhile lets no other thread work
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            "No MPI library could be loaded. Install one with: pip install 'bigbatch[mpich]' "
            f"(or load your cluster's MPI module). mpi4py said: {str(error).strip().splitlines()[0]}"
        ) from error
    module: ModuleType = MPI
    if not MPI.Is_initialized():
        with _without_foreign_pmix(str(MPI.Get_library_version())):
            _initialize(module)
    return module


@contextmanager
def _without_foreign_pmix(library: str) -> Iterator[None]:
    """Hides the variables of PMIx from an MPICH that would end this process for them, without a word that helps.

    Open MPI's mpirun and srun --mpi=pmix set them for all that they start, also for the shells in which somebody then
    uses MPICH's mpirun. MPICH wants them neither beside PMI's own variables nor if it was built without PMIx. Without
    them it sees the ranks that its own mpirun started, or this one alone, which `MPITransport` compares with what the
    launcher says.

    Args:
        library: the MPI library's version, whole, with the words that it was configured with.
    """
    foreign = library.startswith("MPICH") and ("PMI_SIZE" in os.environ or "pmix" not in library)
    hidden = {name: os.environ.pop(name) for name in PMIX if foreign and name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _initialize(mpi: ModuleType) -> None:
    """Initialise MPI, and see to its end, so that other threads of this process work while it waits for other ranks.

    mpi4py's own calls keep Python's lock. ctypes gives it up, and finds the library that mpi4py was loaded with.
    """
    import mpi4py

    library = ctypes.CDLL(mpi.__file__)
    if not hasattr(library, "MPI_Init_thread"):  # an MPI that was linked into mpi4py itself
        mpi.Init_thread()
        weakref.finalize(mpi, _finalize, mpi.Finalize, mpi.Is_finalized)
        return
    levels = {name: getattr(mpi, f"THREAD_{name.upper()}") for name in ("single", "funneled", "serialized", "multiple")}
    level = levels.get(str(mpi4py.rc.thread_level), mpi.THREAD_MULTIPLE) if mpi4py.rc.threads else mpi.THREAD_SINGLE
    status = library.MPI_Init_thread(None, None, ctypes.c_int(level), ctypes.byref(ctypes.c_int()))
    if status != mpi.SUCCESS:
        raise LaunchError(
            f"MPI could not be initialised (MPI_Init_thread returned {status}): start the ranks with the mpirun that "
            "belongs to the MPI library."
        )
    for communicator in (mpi.COMM_WORLD, mpi.COMM_SELF):
        communicator.Set_errhandler(mpi.ERRORS_RETURN)
    weakref.finalize(mpi, _finalize, library.MPI_Finalize, mpi.Is_finalized)


def _finalize(finalize: Callable[[], object], finalized: Callable[[], bool]) -> None:
    if not finalized():
        finalize()
