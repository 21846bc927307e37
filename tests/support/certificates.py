"""Certificates for tests of TLS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.redis_server import missing


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return the files of a certificate for localhost, signed by itself, and of its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        missing("openssl")
    certificate, key = folder / "ca.pem", folder / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key
