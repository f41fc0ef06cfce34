"""What meshnode is measured against, on the same files in the same run: cp, HTTP, nginx."""

from __future__ import annotations

import contextlib
import functools
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from .measure import Result, recycle_pages, repeat


def copy(name: str, source: Path, target: Path, size: int, times: int) -> Result:
    """`cp -r`: the page cache moved once; no program that moves files can be faster."""

    def work(number: int) -> None:
        subprocess.run(["cp", "-r", source, target / f"{source.name}-{number}"], check=True)

    def clean(number: int) -> None:
        remove(target / f"{source.name}-{number - 1}")
        recycle_pages(target, size)

    # The last one stays: a file system may be slow to create files after many were deleted.
    return repeat(name, size, times, {}, work, clean)


def python_http(source: Path, target: Path, size: int, times: int) -> Result:
    """python -m http.server to curl (or to this Python where there is no curl)."""
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1"]
    with _server(command, source.parent) as (port, pid):
        fetch = functools.partial(_fetch, f"http://127.0.0.1:{port}/{source.name}", target)
        result = repeat("python http.server -> client", size, times, {"source": [pid]}, fetch)
    remove(target / "http")
    return result


@dataclass(frozen=True)
class Fetched:
    """A server that runs, and how to fetch the file from it."""

    pid: int
    fetch: Callable[[], None]


@contextlib.contextmanager
def nginx(source: Path, target: Path, *, tls: bool) -> Iterator[Fetched | None]:
    """nginx to curl, over TLS 1.3 if asked; None where either program is missing.

    curl believes the certificate it is given and no other: both sides do what they do in earnest.
    """
    program = shutil.which("nginx")
    if program is None or shutil.which("curl") is None:
        yield None
        return
    port = _free_port()
    listen = f"127.0.0.1:{port}"
    trusted: list[str] = []
    if tls:
        certificate, key = _self_signed(target)
        listen += f" ssl; ssl_certificate {certificate}; ssl_certificate_key {key}"
        listen += "; ssl_protocols TLSv1.3"
        trusted = ["--cacert", str(certificate)]
    config = target / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {target}/nginx.pid; error_log stderr error;\n"
        "events { worker_connections 64; }\n"
        f"http {{ access_log off; sendfile on; client_body_temp_path {target}/nb;\n"
        f" server {{ listen {listen}; root {source.parent}; }} }}\n"
    )
    url = f"http{'s' if tls else ''}://127.0.0.1:{port}/{source.name}"
    out = target / "http"
    command = ["curl", "--silent", "--fail", *trusted, "--output", str(out), url]
    with _running([program, "-c", str(config)], target, port) as pid:
        yield Fetched(pid, lambda: _run(command))
    remove(out)


def _self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, good for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, SHA256())
    )
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    pem = serialization.Encoding.PEM
    certificate_path, key_path = folder / "tls.pem", folder / "tls-key.pem"
    certificate_path.write_bytes(certificate.public_bytes(pem))
    key_path.write_bytes(key.private_bytes(pem, form, plain))
    return certificate_path, key_path


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True)


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
