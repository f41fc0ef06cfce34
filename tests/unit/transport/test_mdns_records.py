"""What is said on the local network, and what is believed of what others say."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.dht.peer_id import PeerId
from meshnode.node.identity import Mesh
from meshnode.node.transport.mdns import describe, mesh_tag, understand

PEER = PeerId.from_ed25519(bytes(range(32)))
MESH = Mesh.create("ours")
TAG = mesh_tag(MESH)


def test_members_understand_what_members_say() -> None:
    addresses = ["/ip4/192.0.2.1/tcp/4710", "/ip6/2001:db8::1/tcp/4710", "/dns/nas.example/tcp/1"]
    service = describe(PEER, addresses, TAG)
    assert service is not None
    assert understand(service.properties, TAG) == (PEER, addresses)


def test_another_mesh_is_not_reported() -> None:
    service = describe(PEER, ["/ip4/192.0.2.1/tcp/4710"], mesh_tag(Mesh.create("ours")))
    assert service is not None
    assert understand(service.properties, TAG) is None


def test_nothing_secret_or_telling_is_on_the_wire() -> None:
    service = describe(PEER, ["/ip4/192.0.2.1/tcp/4710"], TAG)
    assert service is not None
    said = service.text
    for hidden in (MESH.id, MESH.secret, MESH.membership_key):
        assert hidden[:8] not in said
        assert hidden.hex()[:16].encode() not in said
    assert b"ours" not in said


def test_a_host_that_listens_nowhere_announces_nothing() -> None:
    assert describe(PEER, [], TAG) is None


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([b"id", b"mesh", b"a0", b"a1", b"x"]),
        st.none() | st.binary(max_size=300) | st.just(TAG.encode()) | st.just(str(PEER).encode()),
    )
)
def test_no_properties_break_the_reader(properties: dict[bytes, bytes | None]) -> None:
    found = understand(properties, TAG)
    assert found is None or (found[0] == PEER and len(found[1]) <= 2)
