"""Sums by parameter servers, to be measured beside all-reduces, and what their wires allow."""

from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bigbatch.comm.buffers import Buffer
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.reducers.measure import Operation
from bigbatch.comm.server.report import Report
from bigbatch.comm.strategies.parameter_server import ParameterServer
from bigbatch.comm.strategies.service import GRADIENT_TAG, REPORT_TAG, REQUEST_TAG, VALUE_TAG, Service
from bigbatch.comm.wires.transport import Transport


def incast_bound(workers: int, servers: int, port_seconds: float) -> float:
    """Seconds below which no synchronous update gets, if every rank has one port.

    Every server's port has W·n/K bytes to take in and as many to give out, every worker's n each way.

    Args:
        workers: W, the number of workers, who all send at the same time.
        servers: K, the number of servers among which the buffer is split evenly.
        port_seconds: seconds that a port takes for n bytes in and n bytes out.

    Source: Li et al., "Scaling distributed machine learning with the parameter server" (2014), for the messages;
    Nagle, Serenyi and Matthews, "The Panasas ActiveScale storage cluster" (2004), for the word incast.
    """
    return max(1.0, workers / servers) * port_seconds


class Assigning(Optimizer):
    """An optimiser that sets every parameter to its gradient, so that an update only sums."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]]) -> None:
        super().__init__([parameter for _, parameter in named], {"lr": 1.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Sets every parameter to its gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.copy_(parameter.grad)


class Served(Operation):
    """A synchronous update as in training, through servers whose optimiser makes the values the summed gradients.

    Only worker 0 says that there are tokens behind its gradients, and says one, so that the division changes nothing.

    Args:
        transport: the transport, with the workers first and then the servers.
        servers: the number of servers.
    """

    def __init__(self, transport: Transport, servers: int) -> None:
        super().__init__(transport.size - servers)
        self._transport = transport
        self._strategy = ParameterServer.configured({"consistency": "sync", "servers": servers})
        self._updates: list[ParameterServer] = []
        self._services: list[Service] = []

    def prepare(self, parts: Sequence[Tensor]) -> None:
        """Starts one training per part, of a single parameter that has the part as its gradient."""
        self._updates = []
        for part in parts:
            module = nn.Module()
            module.register_parameter("values", nn.Parameter(torch.zeros_like(part)))
            parameters = FlatParameters(module)
            parameters.place_gradients(part)
            strategy = self._strategy(self._transport)
            strategy.start(parameters, Assigning)
            self._updates.append(strategy)
        if self._transport.rank < self.workers:
            self.inputs = parts
            self.results = [strategy.parameters.values for strategy in self._updates]
        else:
            self._services = [strategy.service(self._transport) for strategy in self._updates]

    def run(self, number: int) -> None:
        """Pushes, steps and pulls on a worker; on a server, answers every worker once."""
        if self._services:
            for _ in range(self.workers):
                self._services[number].serve()
            return
        update = self._updates[number]
        for bucket in update.buckets:
            update.push(bucket)
        update.step(weight=float(update.worker == 0), loss=0.0)
        update.pull()


class PlainMessages(Operation):
    """The messages of one worker's update through one server, and nothing else: its own values come back.

    Args:
        transport: the transport of the worker and the server.
    """

    def __init__(self, transport: Transport) -> None:
        super().__init__(workers=1)
        self._transport = transport
        self._request, self._report = np.zeros(4), np.zeros(len(fields(Report)))
        self._landing: Buffer = np.empty(0)

    def prepare(self, parts: Sequence[Tensor]) -> None:
        """Gives what comes back memory of its own, as a worker's parameters have."""
        if self._transport.rank == 0:
            self.inputs = parts
            self.results = [torch.zeros_like(part) for part in parts]
        else:
            self._landing = torch.zeros_like(parts[0]).numpy()

    def run(self, number: int) -> None:
        """Sends the gradient and receives the values on the worker; on the server, sends back what arrives."""
        wires = self._transport
        if wires.rank == 0:
            gradient, values = self.inputs[number].numpy(), self.results[number].numpy()
            sending = [wires.isend(self._request, 1, REQUEST_TAG), wires.isend(gradient, 1, GRADIENT_TAG)]
            wires.irecv(self._report, 1, REPORT_TAG).wait()
            wires.irecv(values, 1, VALUE_TAG).wait()
        else:
            wires.irecv(self._request, 0, REQUEST_TAG).wait()
            wires.irecv(self._landing, 0, GRADIENT_TAG).wait()
            sending = [wires.isend(self._report, 0, REPORT_TAG), wires.isend(self._landing, 0, VALUE_TAG)]
        for request in sending:
            request.wait()
