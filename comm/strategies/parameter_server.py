"""A synchronous parameter server: the workers send gradients, the server makes the update and sends parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bigbatch.comm.errors import CommunicationError
from bigbatch.comm.parameters import Bucket, FlatParameters, OnHost, OptimizerFactory
from bigbatch.comm.strategy import StepReport, Strategy
from bigbatch.comm.transport import ANY, Request, Transport

Result = TypeVar("Result")


@dataclass(frozen=True)
class Tallies:
    """What the workers say of one update, each array (workers,).

    Attributes:
        weight: tokens behind the gradients.
        loss: the loss summed over them, in nats.
        arrival: when the server heard it, in seconds on its clock.
    """

    weight: NDArray[np.float64]
    loss: NDArray[np.float64]
    arrival: NDArray[np.float64]


TALLY_TAG, GRADIENT_TAG, REPORT_TAG, VALUE_TAG = 1, 2, 3, 4


class ParameterServer(Strategy):
    """One server, the last rank; every update waits for the gradients of all workers.

    A worker sends its gradients (n bytes) and receives the new parameters (n bytes); the server receives and
    sends W·n bytes each, one worker after the other through its one port, which is what limits it. Cost,
    contention-free, γ ≤ β: 2α + 2nβW + nγ seconds.

    Source: Li et al., "Scaling distributed machine learning with the parameter server" (2014).
    """

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self._server = self.workers
        self._sending: list[Request] = []
        self._announced = 0

    @classmethod
    def ranks_for(cls, workers: int) -> int:
        """One more than there are workers."""
        return workers + 1

    def start(self, parameters: FlatParameters, optimizer: OptimizerFactory) -> None:
        """Agree on the parameters; the server's optimiser is the one that will be used."""
        super().start(parameters, optimizer)
        self._values = OnHost(parameters.values)

    def run(self, work: Callable[[], Result]) -> Result | None:
        """Work, or serve those who do."""
        if self.worker is None:
            self._serve()
            return None
        result = work()
        self.transport.isend(np.array([0.0, 0.0, 1.0]), self._server, TALLY_TAG).wait()
        return result

    # A worker's side.

    def push(self, bucket: Bucket) -> None:
        """Begin to send the bucket to the server."""
        self._sending.append(self.transport.isend(OnHost(bucket.gradients).fetch(), self._server, GRADIENT_TAG))

    def step(self, weight: float, loss: float) -> StepReport:
        """Send the weight, and wait until the server has made the update."""
        ready = self.transport.now()
        self._sending.append(self.transport.isend(np.array([weight, loss, 0.0]), self._server, TALLY_TAG))
        report = np.empty(5)
        self.transport.irecv(report, self._server, REPORT_TAG).wait()
        for request in self._sending:
            request.wait()
        self._sending.clear()
        version, applied, weight, loss, waited = report.tolist()
        self._announced = int(version)
        self.waiting_seconds += waited
        self._communicated(self.transport.now() - ready - waited)
        return StepReport(self._announced, bool(applied), weight, loss)

    def pull(self) -> int:
        """Fetch the parameters that the server's last report announced, unless they are here already."""
        if self.version == self._announced:
            return self.version
        started = self.transport.now()
        self.transport.irecv(self._values.array, self._server, VALUE_TAG).wait()
        self._values.deliver()
        self.version = self._announced
        self._communicated(self.transport.now() - started)
        return self.version

    def _communicated(self, seconds: float) -> None:
        """Messages move when somebody waits for them, so that all communication is exposed."""
        self.communication_seconds += seconds
        self.total_communication_seconds += seconds

    # The server's side.

    def _serve(self) -> None:
        """Make one update after another until the workers are done."""
        sums = [OnHost(bucket.gradients) for bucket in self.buckets]
        largest = max(len(host.array) for host in sums)
        landings = np.empty((self.workers - 1, largest), dtype=sums[0].array.dtype)
        while (tallies := self._gather_tallies()) is not None:
            for host in sums:
                self._gather(host, landings[:, : len(host.array)])
            self._update(tallies)

    def _gather_tallies(self) -> Tallies | None:
        """Hear from every worker that its gradients are on their way; None once all say they are done."""
        tallies = Tallies(np.empty(self.workers), np.empty(self.workers), np.empty(self.workers))
        done = []
        for _ in range(self.workers):
            message = np.empty(3)
            worker = self.transport.irecv(message, ANY, TALLY_TAG).wait()
            tallies.weight[worker], tallies.loss[worker], finished = message.tolist()
            tallies.arrival[worker] = self.transport.now()
            if finished:
                done.append(worker)
        if done and len(done) < self.workers:
            raise CommunicationError(
                f"Workers {done} are done after update {self.version}, but the others are not: a synchronous server "
                "needs the same number of updates from everyone."
            )
        return None if done else tallies

    def _gather(self, total: OnHost, landings: NDArray[Any]) -> None:
        """Sum one bucket over the workers, in the order of their numbers however they arrive."""
        arriving = [total.array, *landings]
        requests = [self.transport.irecv(buffer, worker, GRADIENT_TAG) for worker, buffer in enumerate(arriving)]
        for worker, request in enumerate(requests):
            request.wait()
            if worker:
                np.add(total.array, arriving[worker], out=total.array)
        total.deliver()

    def _update(self, tallies: Tallies) -> None:
        """Make the update, tell every worker, and send the new parameters if there are any."""
        weight, loss = float(tallies.weight.sum()), float(tallies.loss.sum())
        applied = self.parameters.apply(self.optimizer, weight)
        self.version += applied
        waited = tallies.arrival.max() - tallies.arrival
        values = self._values.fetch()
        sending = []
        for worker in range(self.workers):
            report = np.array([self.version, applied, weight, loss, waited[worker]])
            sending.append(self.transport.isend(report, worker, REPORT_TAG))
            if applied:
                sending.append(self.transport.isend(values, worker, VALUE_TAG))
        for request in sending:
            request.wait()
