"""An S3 server on loopback that keeps objects as files (s3s-fs), behind a proxy that delays and counts requests (`bench/delay`)."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request

from measure import as_user

KEY, SECRET, REGION = "bench", "not-a-secret-in-a-benchmark", "us-east-1"


class Server:
    bucket = "bench"

    def __init__(self, setup, program, delay_program, delay_ms):
        self.setup = setup
        self.folder = setup.fresh_folder(os.path.join(setup.folder, "s3"))
        self.root = setup.fresh_folder(os.path.join(self.folder, "objects"))
        setup.fresh_folder(os.path.join(self.root, self.bucket))
        server, self.http, self.https, self.control = free_ports(4)
        certificate, key = self.make_certificate()
        keys = ["--access-key", KEY, "--secret-key", SECRET]
        self.processes = [
            self.start([program, "--host", "127.0.0.1", "--port", str(server), *keys, self.root], "server"),
            self.start([delay_program, *map(str, (server, self.http, self.https, self.control, delay_ms)), certificate, key], "delay"),
        ]
        for port in (server, self.control):
            wait_for_port(port)

    def start(self, command, name):
        with open(os.path.join(self.folder, f"{name}.log"), "w") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, env=self.setup.environment, **as_user(self.setup.user)
            )

    def make_certificate(self):
        certificate, key = os.path.join(self.folder, "certificate.pem"), os.path.join(self.folder, "key.pem")
        self.setup.call(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=127.0.0.1",
             "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", certificate]
        )  # fmt: skip
        return certificate, key

    def stop(self):
        for process in self.processes:
            process.terminate()
            process.wait()

    def folder_of(self, prefix):
        return os.path.join(self.root, self.bucket, prefix)

    def fresh_prefix(self, folder):
        """Empties a prefix, which is a folder here, and returns its name."""
        shutil.rmtree(folder, ignore_errors=True)
        return os.path.basename(folder)

    def reset(self):
        self.ask("reset")

    def counts(self):
        return self.ask("counts")

    def ask(self, what):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.control}/{what}", timeout=10) as answer:
            return json.load(answer)

    def pgkeep_section(self):
        return (
            f'[s3]\nendpoint = "http://127.0.0.1:{self.http}"\nregion = "{REGION}"\naddressing = "path"\n'
            f'access_key_id = "{KEY}"\nsecret_access_key = "{SECRET}"\n'
        )

    def pgbackrest_lines(self):
        return [
            "repo1-type=s3", f"repo1-s3-bucket={self.bucket}", "repo1-s3-endpoint=127.0.0.1", f"repo1-storage-port={self.https}",
            f"repo1-s3-region={REGION}", f"repo1-s3-key={KEY}", f"repo1-s3-key-secret={SECRET}", "repo1-s3-uri-style=path",
            "repo1-storage-verify-tls=n",
        ]  # fmt: skip


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_for_port(port, seconds=20):
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise RuntimeError(f"nothing listens on port {port}") from None
            time.sleep(0.05)
