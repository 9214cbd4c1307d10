"""The server's side of a parameter server between ranks: hears requests, and answers when the shard lets it."""

from collections.abc import Sequence

import numpy as np

from bigbatch.comm.parameters import OnHost
from bigbatch.comm.server.report import Report, Waiting
from bigbatch.comm.server.shard import Shard
from bigbatch.comm.wires.format import WHOLE, WireFormat
from bigbatch.comm.wires.recording import REDUCE
from bigbatch.comm.wires.request import ANY
from bigbatch.comm.wires.transport import Transport

REQUEST_TAG, GRADIENT_TAG, REPORT_TAG, VALUE_TAG = 1, 2, 3, 4

PUSH, LOOK, REST = 0.0, 1.0, 2.0
"""What a worker wants: to hand in a gradient and read when it may; to look at the values, which counts as nothing; to
rest, because its work has ended."""


class Service:
    """One server at work: hears the workers' requests, and answers each as soon as the shard lets it.

    A worker that rests may go on in another service, of the same shard or of one with its state; until then the shard
    remembers where it stands. Only if all others wait does the shard go on without those who rest.

    Args:
        shard: the shard that is served.
        transport: this rank's transport, or an end of its own for a service beside the rank's work.
        workers: the number of workers. Those who do not take part yet join, having read the values.
        number: this server's number among the servers.
        parts: the part of a gradient that each of its messages holds, in the order in which they are sent.
        wire: the format of gradients that arrive; values are sent in that precision, too.
    """

    def __init__(
        self,
        shard: Shard,
        transport: Transport,
        workers: int,
        number: int,
        parts: Sequence[slice],
        wire: WireFormat = WHOLE,
    ) -> None:
        self._shard = shard
        self._transport = transport
        self._workers = workers
        self._number = number
        self._parts = parts
        self._wire = wire
        values = OnHost(shard.values).array
        self._arriving, self._leaving = wire.room(values), wire.of_values.room(values)
        self._waiting: dict[int, Waiting] = {}
        self._resting: set[int] = set()
        for worker in range(workers):
            if worker not in shard.workers:
                shard.join(worker)
                shard.read(worker)

    def run(self) -> None:
        """Serves one request after the other until every worker rests."""
        while len(self._resting) < self._workers:
            self.serve()

    def serve(self) -> None:
        """Receives one request, and answers every worker that may read because of it."""
        request = np.empty(4)
        worker = self._transport.irecv(request, ANY, REQUEST_TAG).wait()
        want, weight, loss, finite = request.tolist()
        if want == LOOK:
            self._transport.isend(OnHost(self._shard.values).fetch(), worker, VALUE_TAG).wait()
            return
        if want == PUSH:
            self._take(worker, weight, loss, bool(finite))
        else:
            self._resting.add(worker)
        self._let_read()
        self._go_on_without_resting()

    def _take(self, worker: int, weight: float, loss: float, finite: bool) -> None:
        values = self._shard.landing()
        gradient = OnHost(values).array
        landing = gradient if self._wire.whole else self._arriving
        for request in [self._transport.irecv(landing[part], worker, GRADIENT_TAG) for part in self._parts]:
            request.wait()
        with self._transport.span(REDUCE, "take in", gradient.nbytes):
            self._transport.spend(gradient.nbytes * self._transport.gamma)
            if not self._wire.whole:
                self._wire.decode(landing, gradient)
            arrived = self._transport.now()
            outcome = self._shard.push(worker, values, weight, loss, finite=finite)
            self._waiting[worker] = Waiting(arrived, weight, loss, outcome)

    def _let_read(self) -> None:
        readers = [(w, self._waiting.pop(w)) for w in list(self._waiting) if self._shard.readable(w)]
        turn = self._number % max(1, len(readers))
        self._answer(readers[turn:] + readers[:turn])  # not every server to the same worker first

    def _go_on_without_resting(self) -> None:
        """Have those who rest leave the shard, if all others wait for what only they could bring."""
        while self._waiting and set(self._shard.workers) <= self._resting | self._waiting.keys():
            absent = self._resting.intersection(self._shard.workers)
            if not absent:
                return
            for worker in absent:
                self._shard.leave(worker)
            self._let_read()

    def _answer(self, readers: list[tuple[int, Waiting]]) -> None:
        """Let them read; all of them before anything changes the values."""
        sending, values = [], OnHost(self._shard.values).fetch()
        if not self._wire.whole and readers:
            self._wire.of_values.encode(values, self._leaving)
            self._transport.convert(values)
            values = self._leaving
        for worker, since in readers:
            fresh = self._shard.read(worker)
            report = Report.on(self._shard, worker, since, self._transport.now(), fresh=fresh)
            sending.append(self._transport.isend(report.row(), worker, REPORT_TAG))
            if fresh:
                sending.append(self._transport.isend(values, worker, VALUE_TAG))
        for request in sending:
            request.wait()
