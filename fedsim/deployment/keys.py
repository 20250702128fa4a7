"""The keys of a deployment: an authority, the server's certificate, a pair for each node."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsim.errors import ConfigError
from fedsim.ledger.files import write_atomically

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397  # what clients of the web accept at most
CLOCK_SKEW = timedelta(minutes=5)
SECRET_BYTES = 32
# RFC 1123, 2.1; and underscores, which Compose's services may have.
HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*")
LONGEST_HOST = 253
LONGEST_COMMON_NAME = 64  # RFC 5280, appendix A.1
PRIVATE, PUBLIC = 0o600, 0o644


def make_authority(directory: Path, name: str) -> None:
    """Write ``ca.key`` and ``ca.crt``: who signs the server's certificate."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _named(f"authority of {name}")
    certificate = (
        _draft(subject, subject, key, AUTHORITY_DAYS)
        .add_extension(_identifies(key), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    write(directory / "ca.key", _pem(key), PRIVATE)
    write(directory / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM), PUBLIC)


def make_server_certificate(authority: Path, directory: Path, hosts: Sequence[str]) -> None:
    """Write ``server.key`` and ``server.crt``, signed by an authority.

    Args:
        authority: the directory of :func:`make_authority`.
        directory: where they go.
        hosts: the names and addresses that the server is reached by (RFC 5280, 4.2.1.6).

    Raises:
        ConfigError: one is no name of a host.
    """
    signer = serialization.load_pem_private_key((authority / "ca.key").read_bytes(), None)
    issuer = x509.load_pem_x509_certificate((authority / "ca.crt").read_bytes())
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _named(hosts[0])
    certificate = (
        _draft(subject, issuer.subject, key, SERVER_DAYS)
        .add_extension(_identifies(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName([alternative_name(host) for host in hosts]),
            critical=False,
        )
        .sign(signer, hashes.SHA384())  # type: ignore[arg-type]
    )
    write(directory / "server.key", _pem(key), PRIVATE)
    write(directory / "server.crt", certificate.public_bytes(serialization.Encoding.PEM), PUBLIC)


def make_node_key(directory: Path) -> None:
    """Write ``key`` and ``key.pub`` in OpenSSH's format: who a node is.

    Flower takes keys on the NIST curves alone.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    write(directory / "key", private, PRIVATE)
    write(directory / "key.pub", public + b"\n", PUBLIC)


def make_secret(path: Path) -> None:
    """Write what a SuperLink and its SuperExec share, so that nobody else is given server tasks."""
    write(path, secrets.token_bytes(SECRET_BYTES), PRIVATE)


def alternative_name(host: str) -> x509.GeneralName:
    """Return a host as a certificate names it: by address, or by name.

    Raises:
        ConfigError: it is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if len(host) > LONGEST_HOST or not HOST.fullmatch(host):
        raise ConfigError([f"--host {host!r}: is neither a host's name nor an address"])
    return x509.DNSName(host)


def write(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is never readable by more than its mode says, and whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o777 & ~mode)
    try:
        write_atomically(path, content)
    finally:
        os.umask(before)
    path.chmod(mode)


def _named(name: str) -> x509.Name:
    short = name[:LONGEST_COMMON_NAME]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, short)])


def _draft(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _identifies(key: ec.EllipticCurvePrivateKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
