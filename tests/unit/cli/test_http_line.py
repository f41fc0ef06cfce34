"""One request on a socket: what comes in pieces, early, cut off, or not at all."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from meshnode.cli.http_line import CutAnswerError, HttpLine, LineError, SilentLineError

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OnLine = tuple[HttpLine, socket.socket]


@pytest.fixture
def connected() -> Iterator[OnLine]:
    """A line, and the socket of the node on its other side."""
    ours, theirs = socket.socketpair()
    line = HttpLine(ours, silence=20)
    yield line, theirs
    line.close()
    theirs.close()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_a_line_that_comes_in_pieces_is_one_line(connected: OnLine) -> None:
    line, node = connected
    pieces = [b"one\ntw", b"o", b"\nthree\nfo", b"ur"]
    node.sendall(HEAD + b"".join(chunk(piece) for piece in pieces) + chunk(b""))
    assert line.ask("GET", "/v1/x") == 200
    assert list(line.lines()) == [b"one", b"two", b"three", b"four"]


def test_an_answer_that_comes_before_the_request_is_whole_is_read(connected: OnLine) -> None:
    line, node = connected
    node.sendall(b"HTTP/1.1 507 Full\r\nContent-Length: 4\r\n\r\nfull")
    node.shutdown(socket.SHUT_RD)
    assert line.ask("POST", "/v1/put-stream", [b"x" * 1000] * 3) == 507
    assert line.read() == b"full"


@pytest.mark.parametrize("body", [b"abc", [b"a", b"bc"]])
def test_a_body_is_sent_whole_and_nothing_after_it(
    connected: OnLine, body: bytes | list[bytes]
) -> None:
    line, node = connected
    node.sendall(HEAD + chunk(b""))
    line.ask("POST", "/v1/put", body)
    line.close()
    with node.makefile("rb") as sent:
        head, _, rest = sent.read().partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/put HTTP/1.1\r\nHost: meshnode\r\n")
    whole = isinstance(body, bytes)
    assert (b"Content-Length: 3" if whole else b"Transfer-Encoding: chunked") in head
    assert rest == (b"abc" if whole else chunk(b"a") + chunk(b"bc") + chunk(b""))


def test_an_answer_that_is_cut_off_gives_what_came_and_says_so(connected: OnLine) -> None:
    line, node = connected
    node.sendall(HEAD + chunk(b"first") + b"64\r\nno hundred bytes")
    node.close()
    line.ask("GET", "/v1/cat")
    pieces = line.pieces()
    assert [next(pieces), next(pieces)] == [b"first", b"no hundred bytes"]
    with pytest.raises(CutAnswerError, match="incomplete"):
        next(pieces)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", b"SSH-2.0-OpenSSH_9.9\r\n\r\n"])
def test_what_is_no_answer_is_told_as_cut_off(connected: OnLine, answer: bytes) -> None:
    line, node = connected
    node.sendall(answer)
    node.close()
    with pytest.raises(CutAnswerError, match=r"."):
        line.ask("GET", "/v1/status")


@pytest.mark.parametrize("body", [None, [bytes(1 << 16)] * 100])
def test_a_node_that_moves_nothing_is_not_waited_for(body: list[bytes] | None) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        line = HttpLine(ours, silence=0.05)
        with pytest.raises(SilentLineError):
            line.ask("POST", "/v1/put-stream", body)
        line.close()


def test_a_connection_that_is_reset_is_no_silence_and_no_cut(connected: OnLine) -> None:
    line, node = connected

    def body() -> Iterator[bytes]:
        yield b"never read, which makes of the close a reset"
        node.close()

    with pytest.raises(LineError, match="reset") as told:
        line.ask("POST", "/v1/put-stream", body())
    assert type(told.value) is LineError


def test_after_cancelling_the_node_sees_the_end_and_what_it_still_says_is_read(
    connected: OnLine,
) -> None:
    line, node = connected
    node.sendall(HEAD + chunk(b"an event"))
    line.ask("GET", "/v1/get")
    node.sendall(chunk(b"another event"))
    node.shutdown(socket.SHUT_WR)
    line.cancel()
    with node.makefile("rb") as sent:
        assert sent.read().endswith(b"\r\n\r\n")
