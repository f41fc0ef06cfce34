"""What other nodes pass on to this one, and what they ask before they believe others about us.

Chunk records come as hints, which their publisher must confirm; values are checked like any other,
and keep no more time than they had left. So nothing that was withdrawn comes back by moving, and
nobody is believed about somebody else.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import IntegrityError, RefusedError
from .budget import Budgets
from .confirmations import Confirmations
from .context import DhtContext
from .handover_wire import (
    HandoverAnswer,
    HandoverRequest,
    Hint,
    Hints,
    HintsTaken,
    Holding,
    MovedValue,
    MovedValues,
    StillHeld,
    ValuesKept,
)
from .kad_answers import keys_of_value
from .kad_wire import PeerAddresses
from .keyspace import chunk_position
from .locator import Locator
from .mailboxes import Mailboxes, check_notice
from .notices import NOTICE_NAMESPACE
from .peer_id import PeerId
from .records import ChunkRecords
from .records_wire import BUSY, Refused, Verdict
from .validators import namespace_of
from .values import ValueStore


class HandoverAnswers:
    """The answering side of `/meshnode/handover/1`."""

    def __init__(
        self,
        context: DhtContext,
        locator: Locator,
        budgets: Budgets,
        confirmations: Confirmations,
        chunks: ChunkRecords,
        values: ValueStore,
        mailboxes: Mailboxes,
    ) -> None:
        self._own = context.own
        self._contacts = context.contacts
        self._settings = context.settings
        self._counters = context.counters
        self._wall_clock = context.wall_clock
        self._validators = context.validators
        self._locator = locator
        self._budgets = budgets
        self._confirmations = confirmations
        self._chunks = chunks
        self._values = values
        self._mailboxes = mailboxes

    def answer(self, sender: PeerId, request: HandoverRequest) -> HandoverAnswer:
        """The answer to `request`, from memory and without waiting.

        Raises:
            FormatError: a value under a key that no value has.
            IntegrityError: a forged value.
        """
        match request:
            case StillHeld(digests):
                if wait := self._budgets.ask(sender, len(digests)):
                    return Refused(BUSY, wait)
                return Holding(self._settings.zone, self._chunks.own_sizes(digests))
            case Hints(hints):
                return self._take_hints(sender, hints)
            case MovedValues(moved):
                if wait := self._budgets.write(sender, sum(keys_of_value(m.value) for m in moved)):
                    return Refused(BUSY, wait)
                return ValuesKept(tuple(self._keep(sender, one) for one in moved))

    def _take_hints(self, sender: PeerId, hints: Sequence[Hint]) -> HandoverAnswer:
        if wait := self._confirmations.ignored_for(sender):
            return Refused("hints proved false", wait)
        if wait := self._budgets.write(sender, sum(1 + len(hint.digests) for hint in hints)):
            return Refused(BUSY, wait)
        # A node that leaves is still among the k nearest itself, and views of the mesh differ.
        index, near_enough = self._locator.index(), 2 * self._settings.k
        taken = 0
        for hint in hints:
            if hint.publisher == self._own:
                continue
            wanted = [
                digest
                for digest in hint.digests
                if not self._chunks.knows(hint.publisher, digest)
                and index.is_among_closest(self._own, chunk_position(digest), near_enough)
            ]
            if wanted:
                self._contacts.learn([PeerAddresses(hint.publisher, hint.addresses)])
                taken += self._confirmations.add(sender, hint.publisher, wanted)
        self._counters.add("hints_received", taken)
        return HintsTaken(taken)

    def _keep(self, sender: PeerId, moved: MovedValue) -> Verdict:
        now = self._wall_clock()
        until = now + min(moved.ttl, self._settings.record_ttl)
        try:
            if namespace_of(moved.key) == NOTICE_NAMESPACE:
                notice = check_notice(moved.key, moved.value, now)
                return self._mailboxes.put(sender, notice, until)
            checked = self._validators.check(moved.key, moved.value, now)
        except IntegrityError:
            self._counters.add("values_forged")
            raise
        except RefusedError:
            return Verdict.INVALID
        return self._values.put(sender, moved.key, moved.value, checked, until)
