from __future__ import annotations

import contextlib
import json
from itertools import pairwise
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode.errors import FormatError, UsageError
from meshnode.node.content import CHUNKER_KINDS, MAX_PLAIN_BYTES, ChunkerProfile, cut

CUTS = json.loads((Path(__file__).parent / "golden" / "cuts.json").read_text())
SMALL = [ChunkerProfile.named(kind, 1024) for kind in CHUNKER_KINDS]
SMALL.append(ChunkerProfile("lines", 1, 1024, 1024))


def noise(seed: object, size: int) -> bytes:
    return blake3(repr(seed).encode()).digest(length=size)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Noise, runs of one byte, and lines of all lengths, mixed."""
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        kind, size = draw(st.sampled_from(["noise", "run", "lines"])), draw(st.integers(0, 9000))
        if kind == "noise":
            parts.append(noise(draw(st.integers(0, 1000)), size))
        elif kind == "run":
            parts.append(draw(st.sampled_from([b"\0", b"\n", b"x"])) * size)
        else:
            width = draw(st.integers(1, 3000))
            parts.append((b"l" * (width - 1) + b"\n") * (size // width + 1))
    return b"".join(parts)


def cut_in_windows(profile: ChunkerProfile, data: bytes, sizes: list[int]) -> list[int]:
    """Cut `data` while it arrives in pieces of `sizes`, then the rest."""
    ends: list[int] = []
    start = arrived = 0
    for size in [*sizes, len(data)]:
        arrived = min(arrived + size, len(data))
        final = arrived == len(data)
        found = cut(profile, memoryview(bytearray(data))[start:arrived], final)
        ends += [start + end for end in found]
        start = ends[-1] if ends else 0
        if final:
            return ends
    raise AssertionError("unreachable")


@pytest.mark.parametrize("profile", SMALL, ids=str)
@settings(max_examples=60, deadline=None)
@given(data=contents(), sizes=st.lists(st.integers(0, 9000), max_size=12))
def test_cuts_do_not_depend_on_how_the_bytes_arrive(
    profile: ChunkerProfile, data: bytes, sizes: list[int]
) -> None:
    whole = cut(profile, data, True)
    assert cut_in_windows(profile, data, sizes) == whole
    lengths = [end - start for start, end in pairwise([0, *whole])]
    assert sum(lengths) == len(data)
    assert all(0 < length <= profile.max_size for length in lengths)
    assert all(length >= profile.min_size for length in lengths[:-1])


@pytest.mark.parametrize("kind", ["cdc", "fixed"])
def test_a_window_gives_every_cut_that_lies_before_its_end(kind: str) -> None:
    profile = ChunkerProfile.named(kind, 1024)
    data = noise("windows", 40_000) + bytes(9_000)  # the zeros: chunks of the largest size
    whole = cut(profile, data, True)
    sizes = {*whole, *(end + 1 for end in whole[:-1]), *range(0, len(data), 997)}
    for size in sizes:
        certain = [
            end
            for start, end in pairwise([0, *whole])
            if end < size or (end == size and end - start == profile.max_size)
        ]
        assert cut(profile, data[:size], False) == certain


@pytest.mark.parametrize("profile", SMALL, ids=str)
def test_a_cut_at_the_end_of_a_window_is_not_believed(profile: ChunkerProfile) -> None:
    data = b"x" * (profile.max_size - 1)
    assert cut(profile, data, False) == []
    assert cut(profile, data, True) == [len(data)]
    assert cut(profile, data + b"x", False) == [profile.max_size]
    assert cut(profile, b"", True) == cut(profile, b"", False) == []


@pytest.mark.parametrize("name", sorted(CUTS))
def test_cut_points_are_those_of_the_first_release(name: str) -> None:
    # Another version of the FastCDC package that cuts elsewhere would undo all deduplication.
    data = noise("cuts", 12 * 1024 * 1024)
    assert cut(ChunkerProfile.parse(name), data, True) == CUTS[name]


def test_an_insertion_moves_only_the_cuts_near_it() -> None:
    profile = ChunkerProfile.named("cdc", 4096)
    data = noise("insert", 400_000)
    changed = data[:200_000] + b"inserted" + data[200_000:]

    def chunks(of: bytes) -> set[bytes]:
        return {of[start:end] for start, end in pairwise([0, *cut(profile, of, True)])}

    assert len(chunks(data) - chunks(changed)) <= 3
    assert len(chunks(data)) > 40


def test_lines_are_whole_unless_longer_than_the_maximum() -> None:
    profile = ChunkerProfile.named("lines", 1024)
    data = b"".join(noise(i, i % 300).replace(b"\n", b" ") + b"\n" for i in range(500))
    ends = cut(profile, data, True)
    assert len(ends) > 50
    assert all(data[end - 1 : end] == b"\n" for end in ends)
    assert all(end - start <= 1024 for start, end in pairwise([0, *ends]))

    long = b"a" * 10 + b"\n" + b"b" * 2000 + b"\n" + b"c" * 9000
    assert cut(profile, long, True) == [11, 2012, 6108, 10204, 11012]


def test_a_line_end_is_sought_even_when_the_window_ends_with_the_chunk() -> None:
    profile = ChunkerProfile("lines", 1, 1024, 1024)
    data = b"a" * 500 + b"\n" + b"b" * 523 + b"c" * 3000
    assert cut(profile, data[:1024], False) == [501]
    assert cut(profile, data, False)[0] == 501


def test_appending_lines_keeps_all_chunks_but_the_last() -> None:
    profile = ChunkerProfile.named("lines", 1024)
    log = b"".join(b"event %d happened\n" % i for i in range(3000))
    before, after = cut(profile, log, True), cut(profile, log + b"one more\n" * 200, True)
    assert after[: len(before) - 1] == before[:-1]


def test_fixed_chunks_have_the_target_size() -> None:
    assert cut(ChunkerProfile.named("fixed", 1024), bytes(2500), True) == [1024, 2048, 2500]


def test_the_default_cdc_profile_is_the_documented_one() -> None:
    profile = ChunkerProfile.named("cdc")
    assert str(profile) == "cdc:262144:1048576:4194304:v1"
    assert profile.max_size == 4 * 1024 * 1024


@given(st.sampled_from(CHUNKER_KINDS), st.integers(1024, 4 * 1024 * 1024))
def test_every_named_profile_survives_the_round_trip(kind: str, target: int) -> None:
    profile = ChunkerProfile.named(kind, target)
    assert ChunkerProfile.parse(str(profile)) == profile
    assert profile.max_size <= MAX_PLAIN_BYTES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cdc",
        "cdc:262144:1048576:4194304",
        "cdc:262144:1048576:4194304:v2",
        "cdc:0262144:1048576:4194304:v1",
        "cdc:262144:1048576:v1",
        "cdc:1:1048576:4194304:v1",
        "cdc:1048576:262144:4194304:v1",
        "cdc:262144:1048576:99999999:v1",
        "fixed:1048576:1048576:v1",
        "fixed:1:v1",
        "fixed:+1048576:v1",
        "fixed:1048576:v1\n",
        "fixed:١٠٤٨٥٧٦:v1",
        "lines:1048576:v1",
        "rabin:1048576:v1",
        "fixed:" + "9" * 100_000 + ":v1",
    ],
)
def test_a_profile_in_any_other_spelling_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        ChunkerProfile.parse(text)


@given(st.text(max_size=80) | st.from_regex(r"(cdc|fixed|lines)(:[0-9]{1,10}){0,4}:v1"))
def test_no_profile_text_raises_anything_but_our_error(text: str) -> None:
    with contextlib.suppress(FormatError):
        assert str(ChunkerProfile.parse(text)) == text


@pytest.mark.parametrize(("kind", "target"), [("cdc", 10), ("cdc", 2**30), ("rabin", 2**20)])
def test_an_unknown_chunker_or_size_is_a_usage_error(kind: str, target: int) -> None:
    with pytest.raises(UsageError):
        ChunkerProfile.named(kind, target)
