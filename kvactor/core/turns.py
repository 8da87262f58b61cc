"""Turns: whose message the owner handles next, while more messages wait than one drain takes.

The rule: clients share the owner's time, not its messages. This is deficit round robin (Shreedhar and
Varghese, "Efficient Fair Queueing using Deficit Round Robin", 1995). Each flow gets a quantum of work a
round, and is served while it has credit. A message is charged once it is known what it has walked, so a
flow may get into debt, and then waits. A client's long messages are a flow of their own: its short
messages do not wait for them.
"""

from collections import deque
from typing import Final, Generic, TypeVar

from kvactor.core.memory import Client

E = TypeVar("E")

#: Units of work that each flow gets a round.
QUANTUM: Final = 1000

#: A client, and whether these are its long messages.
FlowKey = tuple[Client, bool]


class _Flow(Generic[E]):
    __slots__ = ("credit", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[E] = deque()
        self.credit = 0


class Turns(Generic[E]):
    """The messages that wait for their turn. Debts, and flows, last as long as anything waits."""

    def __init__(self) -> None:
        self._flows: dict[FlowKey, _Flow[E]] = {}
        #: flows with messages; the first one's turn it is
        self._round: deque[_Flow[E]] = deque()
        #: how many messages wait
        self.size = 0

    def add(self, key: FlowKey, message: E) -> None:
        """Let a message wait at the end of its flow."""
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow()
        if not flow.waiting:
            self._round.append(flow)
        flow.waiting.append(message)
        self.size += 1

    def next(self) -> E:
        """Take out the message whose turn it is. Raises `IndexError` if none waits.

        Costs O(f + d / QUANTUM * f) for f flows, the smallest debt of which is d.
        """
        turn = self._round
        while turn[0].credit <= 0:
            turn.rotate(-1)
            turn[0].credit += QUANTUM
        flow = turn[0]
        message = flow.waiting.popleft()
        if not flow.waiting:
            turn.popleft()
        self.size -= 1
        if not self.size:
            self._flows.clear()
        return message

    def charge(self, key: FlowKey, units: int) -> None:
        """Charge a flow for what its message has walked. While nothing waits, there are no debts."""
        flow = self._flows.get(key)
        if flow is not None:
            flow.credit -= units

    def take_all(self) -> list[E]:
        """Take out all messages, in no particular order."""
        messages = [message for flow in self._round for message in flow.waiting]
        self._flows.clear()
        self._round.clear()
        self.size = 0
        return messages
