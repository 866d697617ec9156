"""Attempts carried out on the model of the kernel."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from connectx._connect.attempt import Attempt
from connectx._connect.strategies import Action, Outcome, Verdict
from connectx.addresses import Endpoint
from connectx.lab.model_sockets import ModelSocket, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx.lab.kernel_model import KernelModel
    from tests._connect.plans import Terms


class Driven(NamedTuple):
    """What came of an attempt.

    Attributes:
        socket: The connected socket; None if the attempt failed.
        verdict: Why it failed; None if it did not.
        actions: What it did, in order.
        probes: All ports that the kernel looked at.
    """

    socket: ModelSocket | None
    verdict: Verdict | None
    actions: list[Action]
    probes: list[int]


class _Driver:
    """Does what an attempt says, as connectx._connect.connection does it with real sockets."""

    def __init__(
        self, kernel: KernelModel, plan: Terms, destination: Endpoint, host: str, *, stream: bool
    ) -> None:
        self.kernel = kernel
        self.plan = plan
        self.destination = destination
        self.host = host
        self.sock = kernel.socket(stream=stream)
        self.probes: list[int] = []

    def act(self, action: Action, low: int, high: int) -> Outcome | None:
        """Carry out an action, and return its outcome; None if it connected the socket."""
        if action is Action.LOOK:
            return self._look(low)
        if action is Action.SURVEY:
            return self._survey()
        if action is Action.RETRY:
            return Outcome.SOME_FREE if self.plan.ledger.retry() else Outcome.NONE_FREE
        if self.sock.source.port:
            # bind() got the port: only a new socket gets rid of it.
            self.kernel.close(self.sock)
            self.sock = self.kernel.socket(stream=self.sock.stream)
        if action is Action.CLAIM:
            return self._claim(low)
        try:
            if action in (Action.SHARED_BIND, Action.EXCLUSIVE_BIND):
                self.sock.reuseaddr = action is Action.SHARED_BIND
                self.kernel.bind(self.sock, self.host, low)
            else:
                if action is Action.WINDOW:
                    self.sock.reuseaddr = True
                    self.sock.local_port_range = low, high
                if self.host:
                    self.sock.bind_address_no_port = True
                    self.kernel.bind(self.sock, self.host, 0)
            self.kernel.connect(self.sock, self.destination)
        except OSError as error:
            return Outcome.IN_USE if error.errno == errno.EADDRINUSE else Outcome.UNAVAILABLE
        finally:
            self.probes += self.kernel.probes
        return None

    def _look(self, port: int) -> Outcome:
        source = Endpoint(self.host or self.kernel.address, port)
        found = self.kernel.lookup(source, self.destination, stream=self.sock.stream)
        if found is None or found.destination is None:
            return Outcome.NOTHING
        return Outcome.OCCUPIED if found.state is State.ESTABLISHED else Outcome.TIME_WAIT

    def _survey(self) -> Outcome:
        host = self.host or self.kernel.address
        in_use = [
            sock.source.port
            for sock in self.kernel.sockets(stream=self.sock.stream)
            if sock.source.host == host
            and sock.destination == self.destination
            and sock.state is not State.TIME_WAIT
        ]
        return Outcome.SOME_FREE if self.plan.ledger.survey(in_use) else Outcome.NONE_FREE

    def _claim(self, port: int) -> Outcome | None:
        # As connectx._connect.udp_connect; here nothing comes in between.
        source = Endpoint(self.host or self.kernel.address, port)
        self.sock.reuseaddr = True
        try:
            self.kernel.bind(self.sock, *source[:2])
        except OSError:
            return Outcome.IN_USE
        self.sock.reuseaddr = False
        found = self.kernel.lookup(source, self.destination, stream=False)
        if found is not self.sock:
            return Outcome.OVERTAKEN if found and found.destination is None else Outcome.OCCUPIED
        self.kernel.connect(self.sock, self.destination)
        self.sock.reuseaddr = True
        return None


def drive(
    kernel: KernelModel,
    plan: Terms,
    destination: Endpoint,
    *,
    stream: bool = True,
    host: str = "",
    meanwhile: Callable[[], object] = lambda: None,
) -> Driven:
    """Carry out an attempt on a model.

    Args:
        kernel: The model.
        plan: What the attempt has to know.
        destination: Where to connect to.
        stream: Whether it is TCP, and not UDP.
        host: The source address to connect from; "" for routing's choice.
        meanwhile: What other programs do before each action.
    """
    attempt = Attempt(plan, plan.ledger)
    driver = _Driver(kernel, plan, destination, host, stream=stream)
    actions: list[Action] = []
    while True:
        action = attempt.action
        if isinstance(action, Verdict):
            kernel.close(driver.sock)
            return Driven(None, action, actions, driver.probes)
        meanwhile()
        actions.append(action)
        outcome = driver.act(action, attempt.low, attempt.high)
        if outcome is None:
            return Driven(driver.sock, None, actions, driver.probes)
        if not attempt.feed(outcome):
            raise RuntimeError(f"the program has no row for {outcome} of {action}")
