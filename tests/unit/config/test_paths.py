import os
import socket as socketlib
import stat
from pathlib import Path

import pytest
from meshnode.config import find_paths, load_config
from meshnode.config.paths import MAX_SOCKET_PATH_BYTES
from meshnode.errors import ConfigError


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short, private runtime folder, and no other that could be used instead."""
    folder = tmp_path_factory.mktemp("r")
    folder.chmod(0o700)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def deep(folder: Path) -> Path:
    return folder / ("d" * 60) / ("e" * 60)


def test_everything_lives_under_a_given_home(tmp_path: Path) -> None:
    paths = find_paths(tmp_path, {})
    inside = [paths.config_file, paths.data_dir, paths.identity_file, paths.mesh_file]
    inside += [paths.socket, paths.log_file, paths.lock_file]
    assert all(path.parent == paths.home == tmp_path.resolve() for path in inside)
    assert len(set(inside)) == 7


def test_the_flag_wins_over_the_variable(tmp_path: Path) -> None:
    env = {"MESHNODE_HOME": str(tmp_path / "env")}
    assert load_config(env=env).paths.home == (tmp_path / "env").resolve()
    assert load_config(tmp_path / "flag", env=env).paths.home == (tmp_path / "flag").resolve()


def test_without_a_home_the_platform_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "d"))
    monkeypatch.setattr("sys.platform", "linux")
    paths = find_paths(None, {"MESHNODE_HOME": ""})
    assert paths.config_file == (tmp_path / "c/meshnode/config.toml").resolve()
    assert paths.home == (tmp_path / "d/meshnode").resolve()
    assert paths.data_dir == paths.home / "data"


def test_a_relative_home_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_paths(Path("here"), {}).home == tmp_path.resolve() / "here"


def test_a_deep_home_gets_a_short_private_socket_path(tmp_path: Path, runtime: Path) -> None:
    home = deep(tmp_path)
    env = {"XDG_RUNTIME_DIR": str(runtime)}
    socket = find_paths(home, env).socket
    assert len(os.fsencode(socket)) <= MAX_SOCKET_PATH_BYTES
    assert socket.parent == runtime / "meshnode"
    with socketlib.socket(socketlib.AF_UNIX) as listener:
        listener.bind(str(socket))
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert find_paths(home, env).socket == socket
    assert find_paths(home / "other", env).socket != socket
    assert not home.exists()


def test_a_home_reached_through_a_link_has_the_same_socket(tmp_path: Path, runtime: Path) -> None:
    home = deep(tmp_path)
    home.mkdir(parents=True)
    (tmp_path / "link").symlink_to(home)
    env = {"XDG_RUNTIME_DIR": str(runtime)}
    assert find_paths(tmp_path / "link", env).socket == find_paths(home, env).socket


def test_an_existing_socket_is_found_from_another_environment(
    tmp_path: Path, runtime: Path
) -> None:
    home = deep(tmp_path)
    other = runtime / "x"
    other.mkdir(mode=0o700)
    socket = find_paths(home, {"XDG_RUNTIME_DIR": ""}).socket
    socket.touch()
    assert find_paths(home, {"XDG_RUNTIME_DIR": str(other)}).socket == socket
    socket.unlink()


def test_a_runtime_folder_that_others_can_enter_or_that_is_a_link_is_not_used(
    tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.config.paths._runtime_folders", lambda env: iter([runtime / "m"]))
    (runtime / "m").mkdir()
    (runtime / "m").chmod(0o755)
    with pytest.raises(ConfigError, match="owned by this user and private"):
        find_paths(deep(tmp_path), {})
    (runtime / "m").rmdir()
    (runtime / "real").mkdir(mode=0o700)
    (runtime / "m").symlink_to(runtime / "real")
    with pytest.raises(ConfigError, match="shorter home"):
        find_paths(deep(tmp_path), {})


def test_a_runtime_folder_of_another_user_is_not_used(
    tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.config.paths._runtime_folders", lambda env: iter([runtime / "m"]))
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(ConfigError, match="owned by this user"):
        find_paths(deep(tmp_path), {})


def test_a_home_with_a_nul_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="home folder"):
        find_paths(Path("a\0b"), {})
