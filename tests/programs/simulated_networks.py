"""Networks of several kinds, for tests in simulated time."""

from bigbatch.comm.simulation.network import Network, wire

ALPHA, BETA, GAMMA = 5e-6, 1 / 12.5e9, 1 / 40e9
ONE_SWITCH = Network("one switch", wire(ALPHA, 1 / BETA), GAMMA)
SHARED_NICS = Network("shared NICs", wire(ALPHA, 1e9), 1e-10, node_size=4, inside=wire(1e-6, 8e9))
LEAVES = Network(
    "leaves", wire(ALPHA, 1e9), 3e-10, node_size=2, nics=2, inside=wire(1e-6, 8e9), leaf_size=2, oversubscription=4
)
LOCAL, NODES = 4, 3
TWO_LEVELS = Network("two levels", wire(ALPHA, 1 / BETA), GAMMA, node_size=LOCAL, nics=LOCAL, inside=wire(1e-6, 1e11))
