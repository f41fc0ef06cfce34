import os
import stat
from pathlib import Path

import pytest
from meshnode.config.durable import create_file, read_private_file, replace_file
from meshnode.errors import FormatError, RefusedError, StoreError


def test_a_file_is_created_once_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key"
    assert create_file(path, b"one")
    assert not create_file(path, b"two")
    assert path.read_bytes() == b"one"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["key"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    replace_file(path, b"old")

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(StoreError, match="No space left"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["key"]


def test_file_and_folder_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[bool] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        flushed.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        real(descriptor)

    monkeypatch.setattr("os.fsync", record)
    replace_file(tmp_path / "a", b"x")
    create_file(tmp_path / "b", b"x")
    assert flushed == [False, True, False, True]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_secret_that_others_can_get_at_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    replace_file(path, b"x")
    path.chmod(mode)
    with pytest.raises(RefusedError, match=f"mode 0{mode:o}.*chmod 600"):
        read_private_file(path, max_bytes=10, what="a secret")


def test_what_is_missing_is_none_and_what_is_no_file_or_too_large_is_refused(
    tmp_path: Path,
) -> None:
    assert read_private_file(tmp_path / "no", max_bytes=9, what="a secret") is None
    replace_file(tmp_path / "big", b"x" * 10)
    with pytest.raises(FormatError, match="larger than 9"):
        read_private_file(tmp_path / "big", max_bytes=9, what="a secret")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(FormatError, match="regular"):
        read_private_file(tmp_path / "pipe", max_bytes=9, what="a secret")
    with pytest.raises((StoreError, FormatError)):
        read_private_file(tmp_path, max_bytes=9, what="a secret")
