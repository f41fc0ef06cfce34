from __future__ import annotations

import contextlib
import tracemalloc

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.errors import FormatError, UsageError
from meshnode.node.content.compression import Codec, Compressor, decompress

NOISE = blake3(b"compression").digest(length=256 * 1024)
TEXT = b"the same line again and again\n" * 8000


def raw_frame(content: bytes, window_descriptor: int, announced: int) -> bytes:
    """A hand-made frame (RFC 8878 section 3.1.1): one raw block, window and size as wanted."""
    head = b"\x28\xb5\x2f\xfd\x80" + bytes([window_descriptor]) + announced.to_bytes(4, "little")
    return head + (len(content) << 3 | 1).to_bytes(3, "little") + content


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=1, max_size=3000), st.sampled_from(["auto", "zstd", "none"]))
def test_what_is_compressed_comes_back(plain: bytes, mode: str) -> None:
    codec, packed = Compressor(mode).compress(plain)  # type: ignore[arg-type]
    assert len(packed) <= len(plain)
    if codec is Codec.ZSTD:
        assert decompress(packed, len(plain)) == plain
    else:
        assert packed == plain


def test_auto_compresses_text_and_leaves_noise_alone() -> None:
    assert Compressor("auto").compress(TEXT)[0] is Codec.ZSTD
    codec, packed = Compressor("auto").compress(NOISE)
    assert codec is Codec.RAW
    assert packed is NOISE


def test_auto_judges_by_a_sample_and_zstd_by_the_whole() -> None:
    noisy_start = NOISE + TEXT
    assert Compressor("auto").compress(noisy_start)[0] is Codec.RAW
    assert Compressor("zstd").compress(noisy_start)[0] is Codec.ZSTD
    # A promising sample does not suffice: the whole must shrink by 5 % too.
    hopeful = bytes(64 * 1024) + blake3(b"rest").digest(length=4 * 1024 * 1024)
    assert Compressor("auto").compress(hopeful)[0] is Codec.RAW
    assert Compressor("zstd").compress(hopeful)[0] is Codec.ZSTD


def test_none_never_compresses_and_zstd_never_grows() -> None:
    assert Compressor("none").compress(TEXT) == (Codec.RAW, TEXT)
    assert Compressor("zstd").compress(NOISE) == (Codec.RAW, NOISE)


def test_the_level_is_used() -> None:
    text = b"".join(b"%d squared is %d\n" % (i, i * i) for i in range(20000))
    packed = [Compressor("zstd", level).compress(text)[1] for level in (1, 3, 9)]
    assert len(set(map(bytes, packed))) == 3
    for level, made in zip((1, 3, 9), packed, strict=True):
        assert made == zstandard.ZstdCompressor(level=level).compress(text)


def test_an_unknown_mode_or_level_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="auto, zstd, none"):
        Compressor("brotli")  # type: ignore[arg-type]
    for level in (0, 20):
        with pytest.raises(UsageError, match="level"):
            Compressor("auto", level)


def test_the_hand_made_frame_is_sound_before_it_is_spoiled() -> None:
    assert decompress(raw_frame(b"x" * 500, 0, 500), 500) == b"x" * 500


PACKED = zstandard.ZstdCompressor().compress(TEXT)
UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
SKIPPABLE = b"\x50\x2a\x4d\x18" + (1000).to_bytes(4, "little") + bytes(1000)


@pytest.mark.parametrize(
    ("packed", "size"),
    [
        pytest.param(PACKED, len(TEXT) - 1, id="larger than announced"),
        pytest.param(PACKED, len(TEXT) + 1, id="smaller than announced"),
        pytest.param(PACKED[:-1], len(TEXT), id="cut short"),
        pytest.param(PACKED + b"x", len(TEXT), id="trailing byte"),
        pytest.param(PACKED + PACKED, 2 * len(TEXT), id="two frames"),
        pytest.param(UNSIZED, len(TEXT), id="no content size"),
        pytest.param(SKIPPABLE, 1000, id="skippable frame"),
        pytest.param(SKIPPABLE + PACKED, len(TEXT), id="skippable frame first"),
        pytest.param(raw_frame(b"x" * 500, 17 << 3, 500), 500, id="window of 128 MiB"),
        pytest.param(raw_frame(b"x" * 500, 0, 501), 501, id="less than its header says"),
        pytest.param(raw_frame(b"x" * 500, 0, 499), 499, id="more than its header says"),
        pytest.param(b"", 1, id="empty"),
        pytest.param(b"\x28\xb5\x2f\xfd", 1, id="magic only"),
        pytest.param(TEXT, len(TEXT), id="not compressed"),
    ],
)
def test_an_unsound_frame_is_refused(packed: bytes, size: int) -> None:
    with pytest.raises(FormatError):
        decompress(packed, size)


def test_a_bomb_costs_no_more_memory_than_was_announced() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 * 1024 * 1024))
    liar = raw_frame(b"x", 0, 64 * 1024 * 1024)
    tracemalloc.start()
    try:
        for packed in (bomb, liar):
            with pytest.raises(FormatError):
                decompress(packed, 1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_damage_raises_anything_but_our_error(data: st.DataObject) -> None:
    damaged = bytearray(PACKED)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        assert len(decompress(damaged, len(TEXT))) == len(TEXT)
