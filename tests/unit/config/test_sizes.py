import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode.config import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("65536", 65536),
        ("1 KB", 1000),
        ("1KiB", 1024),
        (" 50 GiB ", 50 * 1024**3),
        ("50gb", 50 * 10**9),
        ("1.5 MiB", 1024 * 1536),
        ("2 TiB", 2 * 1024**4),
        ("0.0001 KB", 0),
        ("2.01 KB", 2010),  # in floating point it is 2009
    ],
)
def test_a_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "1 G", "1 PiB", "1e3", "1 2", "0x10", "٣ KB", "1.", "9" * 99]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_size(text)


@given(st.integers(0, 2**60))
def test_a_written_size_reads_back_exactly(size: int) -> None:
    assert parse_size(format_size(size)) == size


def test_sizes_are_written_in_the_unit_that_fits() -> None:
    assert [format_size(size) for size in (0, 1, 1024, 10**9, 3 * 1024**3)] == [
        "0 B",
        "1 B",
        "1 KiB",
        "1 GB",
        "3 GiB",
    ]
