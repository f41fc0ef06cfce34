from collections.abc import Callable

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.dht.peer_id import PeerId
from meshnode.errors import FormatError, MembershipError
from meshnode.node.identity import (
    MAX_MESSAGE_BYTES,
    REFUSAL,
    Identity,
    Initiator,
    MemberInfo,
    Mesh,
    Responder,
)
from meshnode.node.identity.handshake import MAX_ADDRESSES

MESH = Mesh("home", bytes(range(32)))
ANNA, BERT, EVE = (Identity.from_seed(bytes([n]) * 32).peer_id for n in range(3))
ANNA_INFO = MemberInfo("anna", "attic", "meshnode/0.1.0", ("/ip4/192.0.2.7/tcp/4710",))
BERT_INFO = MemberInfo("bert", "cellar", "meshnode/0.1.0")


def anna(mesh: Mesh = MESH, me: PeerId = ANNA, to: PeerId = BERT) -> Initiator:
    return Initiator(mesh, me, to, ANNA_INFO)


def bert(mesh: Mesh = MESH, me: PeerId = BERT, to: PeerId = ANNA) -> Responder:
    return Responder(mesh, me, to, BERT_INFO)


def run(initiator: Initiator, responder: Responder) -> list[bytes]:
    messages = [initiator.hello()]
    messages.append(responder.receive_hello(messages[-1]))
    messages.append(initiator.receive_answer(messages[-1]))
    messages.append(responder.receive_proof(messages[-1]))
    initiator.receive_verdict(messages[-1])
    return messages


@pytest.mark.parametrize("is_open", [False, True])
def test_members_meet_and_learn_about_each_other(is_open: bool) -> None:
    mesh = Mesh("home", bytes(32), is_open)
    initiator, responder = anna(mesh), bert(mesh)
    messages = run(initiator, responder)
    assert initiator.remote_info == BERT_INFO
    assert responder.remote_info == ANNA_INFO
    assert all(len(message) <= MAX_MESSAGE_BYTES for message in messages)


def test_the_largest_info_fits_into_a_message() -> None:
    widest = "\U0001f980" * 64
    addresses = tuple(f"/dns/{n:03}{'a' * 248}"[:256] for n in range(MAX_ADDRESSES + 3))
    info = MemberInfo(widest, widest, widest, (*addresses, "x" * 300, "ü"))
    initiator, responder = Initiator(MESH, ANNA, BERT, info), Responder(MESH, BERT, ANNA, info)
    assert max(len(message) for message in run(initiator, responder)) <= MAX_MESSAGE_BYTES
    assert responder.remote_info.addresses == addresses[:MAX_ADDRESSES]


@pytest.mark.parametrize("other", [Mesh("home", bytes(32)), Mesh("home", bytes(range(32)), True)])
def test_members_of_two_meshes_refuse_each_other(other: Mesh) -> None:
    with pytest.raises(MembershipError, match="not a member of this mesh"):
        bert().receive_hello(anna(other).hello())
    initiator = anna()
    initiator.hello()

    fields = [1, other.id, b"\1" * 32, b"sealed", b"\2" * 32]
    with pytest.raises(MembershipError, match="another mesh"):
        initiator.receive_answer(msgpack.packb(fields))


class _Knower(Mesh):
    """Somebody who has heard the id of a mesh, and not its secret."""

    @property
    def id(self) -> bytes:
        return MESH.id


def test_knowing_the_mesh_id_is_not_enough_in_either_role() -> None:
    thief = _Knower("home", b"\7" * 32)
    with pytest.raises(MembershipError, match="knows no mesh secret"):
        bert().receive_hello(anna(thief).hello())
    initiator = anna()
    initiator.hello()
    own = Responder(thief, BERT, ANNA, BERT_INFO)
    answer = own.receive_hello(anna(thief).hello())
    with pytest.raises(MembershipError):
        initiator.receive_answer(answer)


def test_in_an_open_mesh_the_id_is_enough() -> None:
    opened = Mesh("square", bytes(32), open=True)

    class Visitor(Mesh):
        @property
        def id(self) -> bytes:
            return opened.id

    run(anna(Visitor("square", b"\7" * 32, open=True)), bert(opened))


def test_a_stranger_learns_nothing_about_members() -> None:
    hello = anna().hello()
    for secret in (b"anna", b"attic", b"meshnode/", b"192.0.2.7", MESH.secret, MESH.membership_key):
        assert secret not in hello
    assert msgpack.unpackb(REFUSAL) == [1, False]


def test_a_refused_initiator_is_told_so_at_both_steps() -> None:
    early, late, responder = anna(), anna(), bert()
    early.hello()
    with pytest.raises(MembershipError, match=r"refused us.*meshnode status"):
        early.receive_answer(REFUSAL)
    late.receive_answer(responder.receive_hello(late.hello()))
    with pytest.raises(MembershipError, match="refused us"):
        late.receive_verdict(REFUSAL)
    with pytest.raises(RuntimeError):
        _ = late.remote_info


def test_a_hello_reflected_to_its_sender_is_refused() -> None:
    initiator = anna()
    hello = initiator.hello()
    with pytest.raises(MembershipError, match="knows no mesh secret"):
        initiator.receive_answer(msgpack.packb([*msgpack.unpackb(hello), bytes(32)]))
    with pytest.raises(MembershipError):
        bert(me=ANNA, to=BERT).receive_hello(hello)


def test_a_proof_reflected_to_its_maker_is_refused() -> None:
    initiator, responder = anna(), bert()
    answer = responder.receive_hello(initiator.hello())
    proof = msgpack.unpackb(answer)[-1]
    with pytest.raises(MembershipError, match="wrong proof"):
        responder.receive_proof(msgpack.packb([1, proof]))


def test_a_recorded_conversation_cannot_be_replayed_to_the_responder() -> None:
    hello, _, proof, _ = run(anna(), bert())
    fresh = bert()
    fresh.receive_hello(hello)
    with pytest.raises(MembershipError, match="wrong proof"):
        fresh.receive_proof(proof)


def test_a_recorded_conversation_cannot_be_replayed_to_the_initiator() -> None:
    _, answer, _, _ = run(anna(), bert())
    fresh = anna()
    fresh.hello()
    with pytest.raises(MembershipError, match="wrong proof"):
        fresh.receive_answer(answer)


def test_a_conversation_relayed_through_a_third_peer_is_refused() -> None:
    # Eve stands between: her channels are authenticated as hers on both sides.
    to_eve, from_eve = anna(to=EVE), bert(to=EVE)
    with pytest.raises(MembershipError):
        from_eve.receive_hello(to_eve.hello())
    initiator = anna(to=EVE)
    initiator.hello()
    with pytest.raises(MembershipError):
        initiator.receive_answer(bert().receive_hello(anna().hello()))


def test_any_changed_byte_of_the_answer_or_the_proof_is_refused() -> None:
    for _ in range(3):
        initiator, responder = anna(), bert()
        answer = responder.receive_hello(initiator.hello())
        proof = initiator.receive_answer(answer)
        for place in range(len(proof)):
            clone = bert()
            clone.__dict__.update(responder.__dict__)
            with pytest.raises((MembershipError, FormatError)):
                clone.receive_proof(_flipped(proof, place))


def _flipped(message: bytes, place: int) -> bytes:
    return message[:place] + bytes([message[place] ^ 1]) + message[place + 1 :]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_hello_or_answer_never_ends_in_membership(place: int, change: int) -> None:
    def changed(message: bytes) -> bytes:
        at = place % len(message)
        return message[:at] + bytes([message[at] ^ change]) + message[at + 1 :]

    initiator, responder = anna(), bert()
    with pytest.raises((MembershipError, FormatError)):
        responder.receive_hello(changed(initiator.hello()))
    initiator, responder = anna(), bert()
    answer = responder.receive_hello(initiator.hello())
    with pytest.raises((MembershipError, FormatError)):
        initiator.receive_answer(changed(answer))


def test_steps_out_of_order_or_after_a_failure_are_impossible() -> None:
    with pytest.raises(RuntimeError):
        bert().receive_proof(msgpack.packb([1, bytes(32)]))
    with pytest.raises(RuntimeError):
        anna().receive_verdict(msgpack.packb([1, True]))
    failed = bert()
    with pytest.raises(FormatError):
        failed.receive_hello(b"")
    with pytest.raises(RuntimeError):
        failed.receive_hello(anna().hello())
    proved = bert()
    initiator = anna()
    proof = initiator.receive_answer(proved.receive_hello(initiator.hello()))
    with pytest.raises(RuntimeError):
        _ = proved.remote_info
    proved.receive_proof(proof)
    with pytest.raises(RuntimeError):
        proved.receive_proof(proof)


def step_hello(message: bytes) -> None:
    bert().receive_hello(message)


def step_answer(message: bytes) -> None:
    initiator = anna()
    initiator.hello()
    initiator.receive_answer(message)


def step_proof(message: bytes) -> None:
    responder = bert()
    responder.receive_hello(anna().hello())
    responder.receive_proof(message)


def step_verdict(message: bytes) -> None:
    initiator = anna()
    initiator.receive_answer(bert().receive_hello(initiator.hello()))
    initiator.receive_verdict(message)


STEPS = pytest.mark.parametrize("step", [step_hello, step_answer, step_proof, step_verdict])
PLAIN = st.none() | st.booleans() | st.integers(-5, 5) | st.binary(max_size=40) | st.text()
VALUES = st.recursive(PLAIN, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=8)


@STEPS
@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=200) | VALUES.map(msgpack.packb))
def test_hostile_messages_raise_only_our_errors(
    step: Callable[[bytes], None], message: bytes
) -> None:
    if message == msgpack.packb([1, True]) and step is step_verdict:
        return
    with pytest.raises((FormatError, MembershipError)):
        step(message)


@STEPS
@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.sampled_from([MESH.id, bytes(32), b"\1" * 32, b"", b"\2" * 60, 1, "x", None, [1], True]),
        max_size=6,
    )
)
def test_nearly_right_messages_raise_only_our_errors(
    step: Callable[[bytes], None], fields: list[object]
) -> None:
    if fields == [True] and step is step_verdict:
        return
    with pytest.raises((FormatError, MembershipError)):
        step(msgpack.packb([1, *fields]))


@STEPS
@pytest.mark.parametrize(
    "message",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 3000,
        b"\x94\x01" + b"\xc4\xff" + bytes(MAX_MESSAGE_BYTES),
        b"\x91\xd4\x01\x00",
        b"\x91\xd6\xff\x00\x00\x00\x00",
        b"\x81\x91\x01\x01",
        msgpack.packb([1, True]) * 2,
        msgpack.packb([2, bytes(16)]),
        msgpack.packb([True, False]),
    ],
)
def test_messages_made_to_exhaust_are_format_errors(
    step: Callable[[bytes], None], message: bytes
) -> None:
    with pytest.raises(FormatError):
        step(message)


TOLD = {"name": "anna", "zone": "attic", "software": "m/1", "addresses": ["/ip4/1.2.3.4/tcp/1"]}


def tell(monkeypatch: pytest.MonkeyPatch, told: object) -> Initiator:
    """A member that tells `told` about itself."""
    with monkeypatch.context() as patch:
        patch.setattr(
            "meshnode.node.identity.handshake._encode_info", lambda _: msgpack.packb(told)
        )
        return anna()


@pytest.mark.parametrize(
    "told",
    [
        None,
        [],
        {},
        TOLD | {"name": b"anna"},
        TOLD | {"name": ""},
        TOLD | {"zone": "\x1b[2J"},
        TOLD | {"software": "x" * 65},
        TOLD | {"addresses": "x"},
        TOLD | {"addresses": [1]},
        TOLD | {"addresses": ["a"] * (MAX_ADDRESSES + 1)},
        TOLD | {"addresses": ["a" * 257]},
        TOLD | {"addresses": ["a\n"]},
    ],
)
def test_a_member_that_tells_nonsense_is_a_format_error(
    monkeypatch: pytest.MonkeyPatch, told: object
) -> None:
    with pytest.raises(FormatError):
        bert().receive_hello(tell(monkeypatch, told).hello())


def test_what_a_later_version_tells_beside_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    responder = bert()
    run(tell(monkeypatch, TOLD | {"mood": [1, None]}), responder)
    assert responder.remote_info.name == "anna"


@pytest.mark.parametrize("info", [("", "z", "s"), ("a\n", "z", "s"), ("a", "z" * 65, "s")])
def test_info_that_cannot_be_shown_cannot_be_made(info: tuple[str, str, str]) -> None:
    with pytest.raises(FormatError):
        MemberInfo(*info)
