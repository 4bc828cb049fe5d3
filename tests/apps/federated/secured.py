"""A Flower link with TLS and node keys on this machine, and a way to cut a client's connection: for the tests of deployments."""

import contextlib
import datetime
import ipaddress
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from apps.federated import engines, watchdog
from distill.records import write_whole


def certificates(place: Path) -> None:
    """A certificate authority of one server, 127.0.0.1: ca.crt, server.crt, server.key."""
    now = datetime.datetime.now(datetime.UTC)

    def made(name: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey, ca: bool) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        )
        return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)

    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    (place / "ca.crt").write_bytes(made("authority", authority, "authority", authority, True))
    (place / "server.crt").write_bytes(made("server", server, "authority", authority, False))
    (place / "server.key").write_bytes(server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def key_pair(path: Path) -> str:
    """A node's key in ssh-keygen's formats: the private one at ``path``; gives the line of the public one, also at ``path``.pub."""
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    path.with_suffix(".pub").write_text(line + "\n")
    return line


class Proxy:
    """Passes a client's connections on to ``port`` and counts the bytes; once ``left`` is a number, so many more go up, then none ever."""

    def __init__(self, port: int) -> None:
        self.to, self.left = port, float("inf")
        self.up = self.down = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                if self.left <= 0:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self.to))
                except OSError:  # the link has ended
                    near.close()
                    continue
                self.open += [near, far]
                threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(1 << 16):
                if up:
                    self.left -= len(data)
                    self.up += len(data)
                else:
                    self.down += len(data)
                if self.left <= 0:
                    return
                sink.sendall(data)

    def close(self) -> None:
        for one in [self.listener, *self.open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def wait_for(port: int, authority: Path, link: subprocess.Popen[bytes], log: Path) -> None:
    """Until a SuperLink with TLS answers."""
    context, end = ssl.create_default_context(cafile=str(authority)), time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"https://127.0.0.1:{port}/health", timeout=5, context=context):
            return
        assert time.monotonic() < end
        assert link.poll() is None, log.read_text()
        time.sleep(0.3)


class Secured:
    """The link and its nodes; ``keys`` is the server's file of node keys."""

    def __init__(self, running: engines.Flower, place: Path) -> None:
        self.running, self.place, self.keys = running, place, place / "keys"

    def register(self, name: str, client: int | None = None) -> None:
        """A key that the link knows; bound to a client number where one is given."""
        line = key_pair(self.place / name)
        self.running._flwr(["supernode", "register", str(self.place / f"{name}.pub"), "here"], self.running.logs / "register.log")
        if client is not None:
            with self.keys.open("a") as file:
                file.write(f"{client} {line} {name}\n")

    def node(self, name: str, says: int, clients: int, port: int | None = None) -> int:
        """Start a node with a registered key, which says that it is client ``says``; gives its place in ``running.nodes``."""
        arguments = ["--superlink", f"127.0.0.1:{port or self.running.port}", "--root-certificates", str(self.place / "ca.crt")]
        arguments += ["--auth-supernode-private-key", str(self.place / name), "--host", "127.0.0.1", "--port", str(engines.free_port())]
        arguments += ["--node-config", f"partition-id={says} num-partitions={clients}"]
        log = self.running.logs / f"{name}.log"
        self.running.nodes.append(engines._start("flower-supernode", arguments, log, self.running.environment))
        return len(self.running.nodes) - 1


@contextlib.contextmanager
def secured(place: Path, app: Path) -> Iterator[Secured]:
    """A SuperLink with TLS that lets registered nodes in only; all is gone at the end."""
    place.mkdir(parents=True)
    certificates(place)
    home, lock = watchdog.new_home()
    guard, port = watchdog.watch(home), engines.free_port()
    write_whole(
        home / "config.toml",
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\nroot-certificates = "{place / "ca.crt"}"\n',
    )
    running = engines.Flower(app, home, port, place, engines.offline(home, 1))
    arguments = ["--ssl-certfile", str(place / "server.crt"), "--ssl-keyfile", str(place / "server.key")]
    arguments += ["--ssl-ca-certfile", str(place / "ca.crt"), "--enable-supernode-auth", "--host", "127.0.0.1", "--port", str(port)]
    link = engines._start(
        "flower-superlink", [*arguments, "--disable-runtime-dependency-installation"], place / "link.log", running.environment
    )
    try:
        wait_for(port, place / "ca.crt", link, place / "link.log")
        yield Secured(running, place)
    finally:
        watchdog.end_all(home, [link, *running.nodes])
        watchdog.remove(home)
        lock.close()
        guard.communicate()
