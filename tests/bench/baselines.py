"""What meshnode is measured against, on the same files in the same run: cp and plain HTTP."""

from __future__ import annotations

import contextlib
import functools
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .measure import Result, repeat


def copy(name: str, source: Path, target: Path, size: int, times: int) -> Result:
    """`cp -r`: the page cache moved once; no program that moves files can be faster."""

    def work(number: int) -> None:
        subprocess.run(["cp", "-r", source, target / f"cp-{number}"], check=True)

    def clean(number: int) -> None:
        remove(target / f"cp-{number - 1}")

    result = repeat(name, size, times, {}, work, clean)
    remove(target / f"cp-{times - 1}")
    return result


def python_http(source: Path, target: Path, size: int, times: int) -> Result:
    """python -m http.server to curl (or to this Python where there is no curl)."""
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1"]
    with _server(command, source.parent) as (port, pid):
        fetch = functools.partial(_fetch, f"http://127.0.0.1:{port}/{source.name}", target)
        result = repeat("python http.server -> client", size, times, {"source": pid}, fetch)
    remove(target / "http")
    return result


def nginx(source: Path, target: Path, size: int, times: int) -> Result | None:
    """nginx without TLS to curl; None where either is missing."""
    program = shutil.which("nginx")
    if program is None or shutil.which("curl") is None:
        return None
    port = _free_port()
    config = target / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {target}/nginx.pid; error_log stderr error;\n"
        "events { worker_connections 64; }\n"
        f"http {{ access_log off; sendfile on; client_body_temp_path {target}/nb;\n"
        f" server {{ listen 127.0.0.1:{port}; root {source.parent}; }} }}\n"
    )
    with _running([program, "-c", str(config)], target, port) as pid:
        fetch = functools.partial(_fetch, f"http://127.0.0.1:{port}/{source.name}", target)
        result = repeat("nginx -> curl", size, times, {"source": pid}, fetch)
    remove(target / "http")
    return result


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fetch(url: str, target: Path, _number: int) -> None:
    out = target / "http"
    if shutil.which("curl"):
        command = ["curl", "--silent", "--fail", "--output", str(out), url]
    else:
        script = "import shutil,sys,urllib.request as r;"
        script += "shutil.copyfileobj(r.urlopen(sys.argv[1]),open(sys.argv[2],'wb'),1<<20)"
        command = [sys.executable, "-c", script, url, str(out)]
    subprocess.run(command, check=True)


@contextlib.contextmanager
def _server(command: list[str], folder: Path) -> Iterator[tuple[int, int]]:
    port = _free_port()
    with _running([*command, str(port)], folder, port) as pid:
        yield port, pid


@contextlib.contextmanager
def _running(command: list[str], folder: Path, port: int) -> Iterator[int]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet)
    try:
        _wait_listening(process, port)
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


def _wait_listening(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} does not listen on port {port}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
