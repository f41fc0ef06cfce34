"""The list of what was put here, which is also the only place where its keys are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from meshnode.errors import FormatError, NotFoundError
from meshnode.node.content import Link
from meshnode.node.keeper import Catalogue, CatalogueEntry


def entry(number: int, name: str = "name") -> CatalogueEntry:
    link = Link(bytes([number]) * 32, b"k" * 32)
    return CatalogueEntry(link, name, "file", 1, 1, "stored", 3, float(number))


async def test_entries_come_newest_first_and_survive_a_new_catalogue(tmp_path: Path) -> None:
    first = Catalogue(tmp_path / "c")
    for number in (1, 3, 2):
        await first.add(entry(number))
    assert await Catalogue(tmp_path / "c").entries() == [entry(3), entry(2), entry(1)]


async def test_a_name_that_is_not_utf_8_comes_back_byte_for_byte(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    name = os.fsdecode(b"non\xffutf8\n")
    await catalogue.add(entry(1, name))
    (found,) = await catalogue.entries()
    assert os.fsencode(found.name) == b"non\xffutf8\n"


async def test_what_was_removed_is_not_found(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    await catalogue.add(entry(1))
    await catalogue.remove(entry(1).link.digest)
    await catalogue.remove(entry(1).link.digest)
    with pytest.raises(NotFoundError):
        await catalogue.find(entry(1).link.digest)


async def test_one_damaged_entry_hides_no_other(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    await catalogue.add(entry(1))
    (tmp_path / ("00" * 32 + ".entry")).write_bytes(b"\x93junk")
    assert await catalogue.entries() == [entry(1)]


async def test_only_the_owner_may_read_the_keys(tmp_path: Path) -> None:
    await Catalogue(tmp_path / "c").add(entry(1))
    (file,) = (tmp_path / "c").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    assert (tmp_path / "c").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("data", [b"", b"\xc0", b"\x80", b"\x81\xa1v\x02", b"\x90" * 100])
def test_bytes_that_are_no_entry_are_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        CatalogueEntry.from_bytes(data)


def test_version_1_entries_are_read_for_ever() -> None:
    golden = Path(__file__).parent / "golden" / "entry-1"
    found = CatalogueEntry.from_bytes(golden.read_bytes())
    assert found == entry(7, "holiday.tar")
