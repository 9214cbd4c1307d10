"""The cluster in simulated time: what messages take, deadlocks, and ranks that fail."""

import numpy as np
import pytest
from simulated_networks import ALPHA, BETA, ONE_SWITCH

from bigbatch.comm.buffers import phantom
from bigbatch.comm.collectives.ring import ring
from bigbatch.comm.errors import CommunicationError, ConfigurationError, DeadlineError, DeadlockError
from bigbatch.comm.reducers.execute import execute
from bigbatch.comm.simulation.network import Network, wire
from bigbatch.comm.simulation.replay import replay
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.request import ANY


def test_a_message_takes_alpha_and_beta_and_sends_do_not_block():
    def work(transport):
        buffer = np.zeros(1000, dtype=np.uint8)
        if transport.rank == 0:
            sent = transport.isend(buffer, 1)
            posted = transport.now()
            sent.wait()
            return posted, transport.now()
        transport.irecv(buffer, 0).wait()
        return transport.now()

    assert Cluster(2, network=ONE_SWITCH).run(work) == [(0.0, 1000 * BETA), ALPHA + 1000 * BETA]


def test_a_receive_from_any_takes_who_comes_first_in_simulated_time():
    def work(transport):
        if transport.rank:
            transport.spend((4 - transport.rank) * 1.0)
            transport.isend(np.array([transport.rank]), 0).wait()
            return None
        number, heard = np.zeros(1, dtype=np.int64), []
        transport.spend(2.5)
        for _ in range(3):
            transport.irecv(number, ANY).wait()
            heard.append((int(number[0]), round(transport.now(), 3)))
        return heard

    assert Cluster(4, network=ONE_SWITCH).run(work)[0] == [(3, 2.5), (2, 2.5), (1, 3.0)]


def test_what_is_sent_may_change_once_it_has_left():
    def work(transport):
        if transport.rank == 0:
            value = np.array([7.0])
            transport.isend(value, 1).wait()
            value[0] = 8.0
            return None
        transport.spend(1.0)
        value = np.zeros(1)
        transport.irecv(value, 0).wait()
        return value[0]

    assert Cluster(2, network=ONE_SWITCH).run(work)[1] == 7.0


def test_a_deadlock_says_what_each_did_last():
    def work(transport):
        buffer = np.zeros(1)
        if transport.rank == 0:
            transport.isend(buffer, 1, tag=5).wait()
        else:
            transport.irecv(buffer, 0, tag=5).wait()
        transport.irecv(buffer, 1 - transport.rank).wait()

    message = r"rank 1 waits to receive from rank 0 \(tag 0, 8 bytes\) \(the last thing .* receive from rank 0 \(tag 5"
    with pytest.raises(DeadlockError, match=message):
        Cluster(2, network=ONE_SWITCH).run(work)


def test_a_rank_that_fails_is_waited_for_in_vain_as_on_real_wires():
    def work(transport):
        for _ in range(10):
            transport.spend(1.0)
            execute(ring, transport, np.zeros(10))

    cluster = Cluster(3, network=ONE_SWITCH, failures={2: 4.5}, deadline=20.0)
    with pytest.raises(DeadlineError, match=r"Rank 0 waited 20 s to receive from rank 2 .*; rank 2 failed after 4.5 s"):
        cluster.run(work)
    assert 24 < cluster.now < 27
    with pytest.raises(CommunicationError, match="Rank 1 failed after 1 s of simulated time, at work"):
        Cluster(2, failures={1: 1.0}).run(lambda transport: transport.spend(3.0))


def test_phantoms_are_moved_and_take_no_memory():
    def work(transport):
        execute(ring, transport, phantom(10**10, np.float32))
        return transport.now()

    network = Network("n", wire(1e-6, 1e12), 1e-13)
    times = Cluster(2, network=network).run(work)
    assert times[0] == replay(ring, network, 2, 10**10).max()
    assert times[0] > 0.04


def test_memory_cannot_be_shared_round_a_network():
    with pytest.raises(ConfigurationError, match="Memory that ranks share has no messages"):
        Cluster(2, network=ONE_SWITCH).run(lambda transport: transport.windows(8))
