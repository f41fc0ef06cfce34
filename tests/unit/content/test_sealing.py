from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.errors import FormatError, IntegrityError, WrongKeyError
from meshnode.node.content import (
    MAX_PLAIN_BYTES,
    MAX_STORED_BYTES,
    ChunkTable,
    Codec,
    DirectoryManifest,
    Entry,
    Packer,
    Sealer,
    Slice,
    encode_manifest,
    open_chunk,
    sealing,
)
from meshnode.node.store.protocol import MAX_CHUNK_BYTES

SECRET = bytes(range(32))
TEXT = b"a line of text that zstd likes\n" * 300
NOISE = blake3(b"sealing").digest(length=5000)
PLAINS = st.binary(min_size=1, max_size=2000) | st.sampled_from([TEXT, NOISE, TEXT + NOISE])
SEALERS = st.builds(
    Sealer,
    st.none() | st.binary(min_size=32, max_size=32),
    st.sampled_from(["auto", "zstd", "none"]),
    st.integers(1, 5),
)


class Recorder:
    """Stands in for AESGCM and notes which key met which message."""

    met: dict[bytes, set[tuple[bytes, bytes, bytes | None]]]

    def __init__(self, key: bytes) -> None:
        self._key, self._aead = key, AESGCM(key)

    def encrypt(self, nonce: bytes, data: bytes, associated: bytes | None) -> bytes:
        self.met.setdefault(self._key, set()).add((nonce, bytes(data), associated))
        return self._aead.encrypt(nonce, data, associated)

    def encrypt_into(
        self, nonce: bytes, data: bytes, associated: bytes | None, buf: memoryview
    ) -> int:
        self.met.setdefault(self._key, set()).add((nonce, bytes(data), associated))
        return self._aead.encrypt_into(nonce, data, associated, buf)


@pytest.fixture
def met(
    monkeypatch: pytest.MonkeyPatch,
) -> dict[bytes, set[tuple[bytes, bytes, bytes | None]]]:
    Recorder.met = {}
    monkeypatch.setattr(sealing, "AESGCM", Recorder)
    return Recorder.met


def seal_a_session() -> None:
    """Everything that gets sealed in practice, with all settings, some of it twice."""
    for mode, level in [("auto", 1), ("auto", 3), ("zstd", 19), ("none", 3), ("auto", 3)]:
        sealer = Sealer(SECRET, mode, level)  # type: ignore[arg-type]
        for plain in (TEXT, TEXT + b"!", NOISE, NOISE[1:], b"x", bytes(9000), TEXT + NOISE):
            sealer.seal(plain)
            sealer.seal_own(memoryview(plain), memoryview(bytearray(len(plain) + 16)))
            sealer.seal_as_is(plain)
        packer, table = Packer(sealer, 4096), ChunkTable()
        contents = [b"small file %d\n" % i * (i + 1) for i in range(60)]
        slots = [packer.add(content) for content in contents]
        packer.flush()
        entries = tuple(
            Entry(
                path=b"f%d" % i,
                kind="file",
                mode=0o644,
                mtime_ns=level,
                size=slot.length,
                digest=blake3(contents[i]).digest(),
                slices=(Slice(table.add(slot.ref), slot.offset, slot.length),),
            )
            for i, slot in enumerate(slots)
        )
        for name in (b"one", b"two"):
            encode_manifest(DirectoryManifest(name, table.refs, entries), sealer)


def test_a_key_never_meets_two_messages(
    met: dict[bytes, set[tuple[bytes, bytes, bytes | None]]],
) -> None:
    seal_a_session()
    assert len(met) > 30
    for messages in met.values():
        [(nonce, _, associated)] = messages
        assert nonce == bytes(12)
        assert associated is None


def test_a_message_always_has_the_same_key(
    met: dict[bytes, set[tuple[bytes, bytes, bytes | None]]],
) -> None:
    seal_a_session()
    messages = [message for met_by_key in met.values() for _, message, _ in met_by_key]
    assert len(messages) == len(set(messages))


def test_the_key_is_that_of_the_specification() -> None:
    chunk = Sealer(SECRET, "none").seal(NOISE)
    key = blake3(blake3(NOISE).digest(), key=SECRET).digest()
    assert chunk.ref.key == key
    assert chunk.data == AESGCM(key).encrypt(bytes(12), NOISE, None)
    assert chunk.ref.digest == blake3(chunk.data).digest()


def test_another_compression_level_gives_another_key_when_it_gives_other_bytes() -> None:
    text = b"".join(b"%d squared is %d\n" % (i, i * i) for i in range(5000))
    one, two = Sealer(SECRET, "zstd", 1).seal(text), Sealer(SECRET, "zstd", 19).seal(text)
    assert one.data != two.data
    assert one.ref.key != two.ref.key
    assert open_chunk(one.ref, one.data) == open_chunk(two.ref, two.data) == text


def test_the_same_bytes_under_two_codecs_are_one_message() -> None:
    compressed = Sealer(SECRET, "zstd").seal(TEXT)
    frame = open_chunk(
        replace(compressed.ref, codec=Codec.RAW, plain_size=compressed.ref.size - 16),
        compressed.data,
    )
    literal = Sealer(SECRET, "none").seal(frame)
    assert (literal.data, literal.ref.key) == (compressed.data, compressed.ref.key)
    assert open_chunk(literal.ref, literal.data) == frame
    assert open_chunk(compressed.ref, compressed.data) == TEXT


def test_a_buffer_that_changes_while_it_is_sealed_does_not_lend_its_key_to_other_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer = bytearray(NOISE)
    real = sealing.derive_key

    def derive_then_change(secret: bytes, message: bytes) -> bytes:
        key = real(secret, message)
        buffer[:4] = b"EVIL"
        return key

    monkeypatch.setattr(sealing, "derive_key", derive_then_change)
    chunk = Sealer(SECRET, "none").seal(memoryview(buffer))
    assert buffer[:4] == b"EVIL"
    assert chunk.ref.key == real(SECRET, NOISE)
    assert open_chunk(chunk.ref, chunk.data) == NOISE


@settings(deadline=None, max_examples=80)
@given(SEALERS, PLAINS, st.integers(0, 20))
def test_memory_of_ones_own_is_sealed_to_the_same_chunk_where_it_is_wanted(
    sealer: Sealer, plain: bytes, spare: int
) -> None:
    buffer, memory = bytearray(plain), bytearray(len(plain) + sealer.overhead + spare)
    chunk = sealer.seal_own(memoryview(buffer), memoryview(memory))
    assert chunk == sealer.seal(plain) == sealer.seal_own(memoryview(buffer))
    assert memory[: chunk.ref.size] == chunk.data
    assert memory[chunk.ref.size :] == bytes(len(memory) - chunk.ref.size)
    assert buffer == plain


@settings(deadline=None, max_examples=80)
@given(SEALERS, PLAINS)
def test_what_is_sealed_opens_and_is_named_by_its_stored_bytes(
    sealer: Sealer, plain: bytes
) -> None:
    chunk = sealer.seal(bytearray(plain))
    assert chunk == sealer.seal(memoryview(plain))
    assert blake3(chunk.data).digest() == chunk.ref.digest
    assert (chunk.ref.size, chunk.ref.plain_size) == (len(chunk.data), len(plain))
    assert (chunk.ref.key is None) is sealer.public
    assert open_chunk(chunk.ref, memoryview(chunk.data)) == plain
    assert open_chunk(chunk.ref, chunk.data, verified=True) == plain
    for room in (len(chunk.data), len(chunk.data) + 100, 0):
        memory = memoryview(bytearray(room))
        opened = open_chunk(chunk.ref, chunk.data, memory=memory)
        assert opened == plain
        assert len(opened) == len(plain)


def test_a_chunk_is_opened_in_the_memory_that_is_offered() -> None:
    chunk = Sealer(SECRET, "none").seal(NOISE)
    memory = memoryview(bytearray(len(chunk.data)))
    opened = open_chunk(chunk.ref, chunk.data, memory=memory)
    assert isinstance(opened, memoryview)
    assert opened.obj is memory.obj
    assert memory[: len(NOISE)] == NOISE


def test_equal_chunks_dedupe_within_a_mesh_and_not_across_meshes() -> None:
    here, there = Sealer(SECRET), Sealer(bytes(32))
    assert here.seal(NOISE) == Sealer(SECRET).seal(NOISE)
    assert here.seal(NOISE).ref.digest != there.seal(NOISE).ref.digest


def test_a_sealed_chunk_does_not_show_its_content_and_a_public_one_does() -> None:
    assert NOISE[:16] not in Sealer(SECRET).seal(NOISE).data
    public = Sealer(None, "none").seal(memoryview(NOISE))
    assert public.data == NOISE
    assert public.ref.key is None


def test_no_repr_shows_a_key() -> None:
    chunk = Sealer(SECRET).seal(NOISE)
    assert chunk.ref.key is not None
    for thing in (chunk, chunk.ref, [chunk]):
        assert repr(chunk.ref.key) not in repr(thing)
        assert chunk.ref.key.hex() not in repr(thing)


def test_one_sealer_serves_many_threads() -> None:
    sealer = Sealer(SECRET)
    plains = [TEXT * (i % 7 + 1) + NOISE[i:] for i in range(64)]
    expected = [sealer.seal(plain) for plain in plains]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(sealer.seal, plains)) == expected
        opened = pool.map(open_chunk, [c.ref for c in expected], [c.data for c in expected])
        assert list(opened) == plains


@pytest.mark.parametrize("secret", [SECRET, None])
def test_every_flipped_bit_is_noticed(secret: bytes | None) -> None:
    chunk = Sealer(secret).seal(NOISE)
    for place in (0, 1, len(chunk.data) // 2, len(chunk.data) - 1):
        damaged = bytearray(chunk.data)
        damaged[place] ^= 1
        with pytest.raises(IntegrityError, match="digest"):
            open_chunk(chunk.ref, damaged)
    for other in (chunk.data[:-1], chunk.data + b"x", b""):
        with pytest.raises(IntegrityError, match="should have"):
            open_chunk(chunk.ref, other)


@pytest.mark.parametrize("key", [bytes(32), b"short", b""])
def test_a_wrong_key_is_told_from_damage(key: bytes) -> None:
    chunk = Sealer(SECRET).seal(NOISE)
    for memory in (None, memoryview(bytearray(len(chunk.data)))):
        with pytest.raises(WrongKeyError):
            open_chunk(replace(chunk.ref, key=key), chunk.data, memory=memory)


def test_a_public_chunk_does_not_open_with_a_key() -> None:
    for plain in (NOISE, b"tiny"):
        chunk = Sealer(None).seal(plain)
        with pytest.raises(WrongKeyError):
            open_chunk(replace(chunk.ref, key=SECRET), chunk.data)


@pytest.mark.parametrize("plain", [TEXT, NOISE])
@pytest.mark.parametrize(
    "lie",
    [{"plain_size": 1}, {"plain_size": MAX_PLAIN_BYTES}, {"plain_size": 0}, {"plain_size": 2**60}],
)
def test_a_reference_that_lies_about_the_size_is_refused(plain: bytes, lie: dict[str, int]) -> None:
    chunk = Sealer(SECRET, "zstd").seal(plain)
    with pytest.raises(FormatError):
        open_chunk(replace(chunk.ref, plain_size=lie["plain_size"]), chunk.data)


@pytest.mark.parametrize("plain", [TEXT, NOISE])
def test_a_reference_with_the_other_codec_is_refused(plain: bytes) -> None:
    chunk = Sealer(SECRET).seal(plain)
    other = Codec.RAW if chunk.ref.codec is Codec.ZSTD else Codec.ZSTD
    with pytest.raises(FormatError):
        open_chunk(replace(chunk.ref, codec=other), chunk.data)


def test_a_chunk_of_the_largest_size_fits_the_store() -> None:
    assert MAX_STORED_BYTES == MAX_CHUNK_BYTES
    sealer = Sealer(SECRET, "none")
    assert sealer.seal(bytes(MAX_PLAIN_BYTES)).ref.size <= MAX_CHUNK_BYTES
    for size in (0, MAX_PLAIN_BYTES + 1):
        with pytest.raises(ValueError, match="a chunk holds"):
            sealer.seal(bytes(size))
    with pytest.raises(ValueError, match="secret"):
        Sealer(b"short")
