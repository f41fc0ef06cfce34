"""The simulated network: it must fail the way real ones do, and always the same way."""

from __future__ import annotations

import pytest
import trio
from meshnode.dht.host import ConnectionEvent, Stream
from meshnode.errors import PeerError
from meshnode.node.transport.limits import HostLimits
from meshnode.node.transport.sim import (
    SimHost,
    SimLink,
    SimNetwork,
    deterministic_schedule,
    open_sim_network,
)
from trio.testing import MockClock

ECHO = "/test/echo/1"
LIMITS = HostLimits()


async def echo(stream: Stream) -> None:
    while data := await stream.read_some():
        await stream.write(data)


def two_hosts(network: SimNetwork) -> tuple[SimHost, SimHost]:
    one, other = network.add_host(), network.add_host()
    network.introduce()
    other.set_handler(ECHO, echo)
    return one, other


async def read_all(stream: Stream) -> bytes:
    parts = []
    while data := await stream.read_some():
        parts.append(data)
    return b"".join(parts)


async def test_bytes_come_back_in_order_and_the_stream_ends(autojump_clock: MockClock) -> None:
    async with open_sim_network(1, link=SimLink(jitter=0.01)) as network:
        one, other = two_hosts(network)
        stream = await one.open_stream(other.peer_id, ECHO)
        sent = bytes(range(256)) * 2000
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.write(sent)
                await stream.close()

            nursery.start_soon(send)
            assert await read_all(stream) == sent


async def test_time_passes_as_latency_and_bandwidth_say(autojump_clock: MockClock) -> None:
    async with open_sim_network(1, link=SimLink(latency=0.1, bandwidth=1e6)) as network:
        one, other = two_hosts(network)
        stream = await one.open_stream(other.peer_id, ECHO)
        start = trio.current_time()
        await stream.write(bytes(100_000))
        got = 0
        while got < 100_000:
            got += len(await stream.read_some())
        # Out: 0.1 s for the bytes and 0.1 s latency; back the same, less what overlaps.
        assert 0.3 <= trio.current_time() - start <= 0.45


async def test_streams_share_the_bandwidth_of_their_link(autojump_clock: MockClock) -> None:
    async with open_sim_network(1, link=SimLink(bandwidth=1e6)) as network:
        one, other = two_hosts(network)
        streams = [await one.open_stream(other.peer_id, ECHO) for _ in range(4)]
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for stream in streams:

                async def use(stream: Stream = stream) -> None:
                    await stream.write(bytes(250_000))
                    await stream.close()
                    await read_all(stream)

                nursery.start_soon(use)
        assert 1.0 <= trio.current_time() - start <= 2.1


async def test_a_stalled_reader_blocks_the_writer_and_then_fails_it(
    autojump_clock: MockClock,
) -> None:
    async with open_sim_network(1) as network:
        one, other = two_hosts(network)

        async def never_read(stream: Stream) -> None:
            await trio.sleep_forever()

        other.set_handler("/test/stalled/1", never_read)
        stream = await one.open_stream(other.peer_id, "/test/stalled/1")
        window = SimLink().window
        start = trio.current_time()
        await stream.write(bytes(window))
        assert trio.current_time() - start < 0.1
        with pytest.raises(PeerError, match="took nothing"):
            await stream.write(b"x")
        assert trio.current_time() - start >= LIMITS.stall_timeout
        assert other.peer_id in one.connected_peers()


async def test_a_dropped_connection_is_an_error_on_both_sides_and_can_be_redialled(
    autojump_clock: MockClock,
) -> None:
    failures: list[PeerError] = []

    async def wait_for_bytes(stream: Stream) -> None:
        try:
            await stream.read_some()
        except PeerError as error:
            failures.append(error)

    async with open_sim_network(1) as network:
        one, other = two_hosts(network)
        other.set_handler("/test/wait/1", wait_for_bytes)
        async with other.events() as events:
            stream = await one.open_stream(other.peer_id, "/test/wait/1")
            assert await events.receive() == ConnectionEvent(one.peer_id, connected=True)
            network.drop(one.peer_id, other.peer_id)
            assert await events.receive() == ConnectionEvent(one.peer_id, connected=False)
        with pytest.raises(PeerError, match="lost"):
            await stream.read_some()
        await trio.testing.wait_all_tasks_blocked()
        assert len(failures) == 1
        assert not one.connected_peers()
        await one.connect(other.peer_id)
        assert one.connected_peers() == {other.peer_id}


async def test_a_frozen_peer_costs_one_deadline_and_is_then_disconnected(
    autojump_clock: MockClock,
) -> None:
    async with open_sim_network(1) as network:
        one, other = two_hosts(network)
        stream = await one.open_stream(other.peer_id, ECHO)
        network.freeze(other.peer_id)
        start = trio.current_time()
        with pytest.raises(PeerError, match="did not answer"):
            await one.open_stream(other.peer_id, ECHO)
        assert trio.current_time() - start == pytest.approx(LIMITS.negotiation_timeout)
        await stream.write(b"into the void")
        with pytest.raises(PeerError, match="lost"):
            await stream.read_some()
        assert 2 * LIMITS.keepalive <= trio.current_time() - start <= 3 * LIMITS.keepalive
        with pytest.raises(PeerError, match="silent"):
            await one.connect(other.peer_id)


async def test_a_peer_thawed_in_time_answers_what_it_was_asked(autojump_clock: MockClock) -> None:
    async with open_sim_network(1) as network:
        one, other = two_hosts(network)
        stream = await one.open_stream(other.peer_id, ECHO)
        network.freeze(other.peer_id)
        await stream.write(b"hello")
        await trio.sleep(3)
        network.thaw(other.peer_id)
        assert await stream.read_some() == b"hello"
        await trio.sleep(60)
        assert one.connected_peers() == {other.peer_id}


async def test_a_partition_separates_and_heals(autojump_clock: MockClock) -> None:
    async with open_sim_network(1) as network:
        one, other = two_hosts(network)
        third = network.add_host()
        network.introduce()
        await one.connect(other.peer_id)
        await one.connect(third.peer_id)
        network.partition({one.peer_id, third.peer_id}, {other.peer_id})
        await trio.sleep(20)
        assert one.connected_peers() == {third.peer_id}
        with pytest.raises(PeerError):
            await one.connect(other.peer_id)
        network.heal()
        await trio.sleep(LIMITS.backoff_cap)
        await one.connect(other.peer_id)


async def test_a_killed_host_refuses_and_a_restarted_one_is_found_at_its_new_address(
    autojump_clock: MockClock,
) -> None:
    async with open_sim_network(1) as network:
        one, other = two_hosts(network)
        await one.connect(other.peer_id)
        network.kill(other.peer_id)
        assert not one.connected_peers()
        with pytest.raises(PeerError, match="refused"):
            await one.connect(other.peer_id)
        with pytest.raises(PeerError, match="Next attempt"):
            await one.connect(other.peer_id)
        again = network.add_host(other.peer_id)
        one.add_addresses(again.peer_id, again.addresses())
        await one.connect(again.peer_id)


async def test_unknown_protocols_and_full_connections_are_peer_errors(
    autojump_clock: MockClock,
) -> None:
    limits = HostLimits(max_streams_per_peer=3)
    async with open_sim_network(1, limits=limits) as network:
        one, other = two_hosts(network)
        with pytest.raises(PeerError, match="does not speak"):
            await one.open_stream(other.peer_id, "/test/unknown/1")
        streams = [await one.open_stream(other.peer_id, ECHO) for _ in range(3)]
        with pytest.raises(PeerError, match="3 streams"):
            await one.open_stream(other.peer_id, ECHO)
        await streams[0].reset()
        await one.open_stream(other.peer_id, ECHO)


async def test_a_failing_handler_ends_its_stream_alone(autojump_clock: MockClock) -> None:
    async with open_sim_network(1) as network:
        one, other = two_hosts(network)

        async def fail(stream: Stream) -> None:
            raise ValueError("a bug in a handler")

        other.set_handler("/test/fail/1", fail)
        good = await one.open_stream(other.peer_id, ECHO)
        bad = await one.open_stream(other.peer_id, "/test/fail/1")
        with pytest.raises(PeerError, match="reset"):
            await bad.read_some()
        await good.write(b"still here")
        assert await good.read_some() == b"still here"
        assert other.handler_failures == 1


async def test_a_cancelled_read_resets_the_stream_not_the_connection(
    autojump_clock: MockClock,
) -> None:
    async with open_sim_network(1) as network:
        one, other = two_hosts(network)
        stream = await one.open_stream(other.peer_id, ECHO)
        with trio.move_on_after(1):
            await stream.read_some()
        with pytest.raises(PeerError, match="reset"):
            await stream.read_some()
        assert one.connected_peers() == {other.peer_id}


async def test_a_thousand_hosts_fit_in_one_process(autojump_clock: MockClock) -> None:
    async with open_sim_network(1) as network:
        hosts = [network.add_host() for _ in range(1000)]
        for left, right in zip(hosts, hosts[1:] + hosts[:1], strict=True):
            right.set_handler(ECHO, echo)
            left.add_addresses(right.peer_id, right.addresses())
        async with trio.open_nursery() as nursery:
            for left, right in zip(hosts, hosts[1:] + hosts[:1], strict=True):
                nursery.start_soon(left.connect, right.peer_id)
        assert {len(host.connected_peers()) for host in hosts} == {2}
        assert trio.lowlevel.current_statistics().tasks_living < 20


def transcript(seed: int) -> list[tuple[float, int]]:
    """Arrival times and sizes of some concurrent traffic."""
    seen: list[tuple[float, int]] = []

    async def main() -> None:
        link = SimLink(latency=0.01, bandwidth=1e6, jitter=0.02)
        async with open_sim_network(seed, link=link) as network:
            hosts = [network.add_host() for _ in range(5)]
            network.introduce()
            start = trio.current_time()

            async def note(stream: Stream) -> None:
                while data := await stream.read_some():
                    seen.append((round(trio.current_time() - start, 9), len(data)))

            for host in hosts:
                host.set_handler(ECHO, note)
            async with trio.open_nursery() as nursery:
                for left in hosts:
                    for right in hosts:
                        if left is not right:
                            nursery.start_soon(talk, left, right)
            await trio.sleep(10)

    async def talk(left: SimHost, right: SimHost) -> None:
        stream = await left.open_stream(right.peer_id, ECHO)
        await stream.write(bytes(10_000))
        await stream.close()

    with deterministic_schedule(seed):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    return seen


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    assert transcript(5) == transcript(5)
    assert transcript(5) != transcript(6)
