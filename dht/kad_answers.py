"""Answers on the standard wire, `/ipfs/kad/1.0.0`, from memory and without waiting."""

from __future__ import annotations

from ..errors import FormatError, IntegrityError, RefusedError
from .budget import Budgets, OverBudgetError
from .context import DhtContext
from .kad_wire import KadMessage, Kind, PeerAddresses
from .keyspace import digest_of_chunk_key, position
from .mailboxes import Mailboxes, check_notice
from .notices import NOTICE_NAMESPACE
from .peer_id import PeerId
from .records import ChunkRecords
from .records_wire import Verdict
from .validators import namespace_of
from .values import ValueStore

_KEYS_PER_QUESTION = 16
"""A question about one key costs what looking at the whole routing table does."""
_VALUE_BYTES_PER_KEY = 1024


def keys_of_value(value: bytes) -> int:
    """What keeping `value` costs of the budget of written keys."""
    return 1 + len(value) // _VALUE_BYTES_PER_KEY


class KadAnswers:
    """The answering side of the standard protocol."""

    def __init__(
        self,
        context: DhtContext,
        budgets: Budgets,
        chunks: ChunkRecords,
        values: ValueStore,
        mailboxes: Mailboxes,
    ) -> None:
        self._contacts = context.contacts
        self._settings = context.settings
        self._counters = context.counters
        self._wall_clock = context.wall_clock
        self._validators = context.validators
        self._budgets = budgets
        self._chunks = chunks
        self._values = values
        self._mailboxes = mailboxes

    def answer(self, sender: PeerId, request: KadMessage) -> KadMessage | None:
        """The answer to `request`, or None where the protocol gives none.

        Raises:
            FormatError: a request that breaks the rules of its kind.
            OverBudgetError: the sender asks more than its share.
        """
        if request.kind in (Kind.PUT_VALUE, Kind.ADD_PROVIDER):
            wait = self._budgets.write(sender, keys_of_value(request.value or b""))
        else:
            wait = self._budgets.ask(sender, _KEYS_PER_QUESTION)
        if wait and request.kind is Kind.PUT_VALUE:
            return KadMessage(Kind.PUT_VALUE, request.key)
        if wait:
            # The standard wire has no word for it, and an empty answer would be taken for one.
            raise OverBudgetError
        match request.kind:
            case Kind.PING:
                return KadMessage(Kind.PING)
            case Kind.FIND_NODE:
                return KadMessage(Kind.FIND_NODE, request.key, closer=self._closer(sender, request))
            case Kind.GET_VALUE:
                return self._get_value(sender, request)
            case Kind.PUT_VALUE:
                return self._put_value(sender, request)
            case Kind.GET_PROVIDERS:
                return self._get_providers(sender, request)
            case Kind.ADD_PROVIDER:
                self._add_provider(sender, request)
                return None

    def _closer(self, sender: PeerId, request: KadMessage) -> tuple[PeerAddresses, ...]:
        near = self._contacts.table.closest(position(request.key), self._settings.k + 1)
        # A peer asked for by its id is named even when nothing else is known to be near.
        return self._contacts.describe(peer for peer in near if peer != sender)[: self._settings.k]

    def _get_value(self, sender: PeerId, request: KadMessage) -> KadMessage:
        now = self._wall_clock()
        if namespace_of(request.key) == NOTICE_NAMESPACE:
            value = self._mailboxes.bundle(request.key, now)
        else:
            kept = self._values.get(request.key, now)
            value = None if kept is None else kept[0]
        closer = self._closer(sender, request)
        return KadMessage(Kind.GET_VALUE, request.key, value, closer=closer)

    def _put_value(self, sender: PeerId, request: KadMessage) -> KadMessage:
        """The value echoed when it is kept, the newer one when there is one, else none."""
        namespace = namespace_of(request.key)
        if request.value is None:
            raise FormatError("A request to keep a value, without a value.")
        now = self._wall_clock()
        until = now + self._settings.record_ttl
        try:
            if namespace == NOTICE_NAMESPACE:
                notice = check_notice(request.key, request.value, now)
                verdict = self._mailboxes.put(sender, notice, until)
            else:
                checked = self._validators.check(request.key, request.value, now)
                verdict = self._values.put(sender, request.key, request.value, checked, until)
        except IntegrityError:
            self._counters.add("values_forged")
            raise
        except RefusedError:
            # Sound, but not for us to keep: clocks may differ, so that is nobody's fault.
            self._counters.add("values_refused")
            verdict = Verdict.INVALID
        kept = request.value if verdict is Verdict.STORED else None
        if verdict is Verdict.OUTDATED and (newer := self._values.get(request.key, now)):
            kept = newer[0]
        return KadMessage(Kind.PUT_VALUE, request.key, kept)

    def _get_providers(self, sender: PeerId, request: KadMessage) -> KadMessage:
        digest = digest_of_chunk_key(request.key)
        records = self._chunks.holders(digest, self._wall_clock())[: self._settings.k]
        providers = self._contacts.describe(record.peer for record in records)
        closer = self._closer(sender, request)
        return KadMessage(Kind.GET_PROVIDERS, request.key, closer=closer, providers=providers)

    def _add_provider(self, sender: PeerId, request: KadMessage) -> None:
        digest = digest_of_chunk_key(request.key)
        for entry in request.providers:
            if entry.peer != sender:
                # Anybody could be made to look like a holder: only the peer itself may say so.
                self._counters.add("providers_forged")
                continue
            self._contacts.learn([entry])
            expires = self._wall_clock() + self._settings.record_ttl
            self._chunks.put(sender, None, digest, 0, expires)
