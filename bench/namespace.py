"""A network namespace for the programs of the other host, and a link to it: 1 Gbit/s, 10 ms each way.

The kernel's netem makes the link slow; where there is none, a program of ours passes the packets on (`bench/relay`). The
server stays in the namespace that we are in and listens on `SERVER`. The addresses are of the range kept for benchmarks (RFC 2544).
"""

import contextlib
import os
import subprocess
import sys

import measure
from s3 import free_ports

SERVER, CLIENT = "198.18.53.1", "198.18.53.2"
DELAY_MS, GBIT = 10, 1
HERE = os.path.dirname(os.path.abspath(__file__))

SINK = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listens", flush=True)
link, _ = listener.accept()
while link.recv(1 << 20): pass
link.sendall(b"x")
"""
# Connecting takes one round trip.
PROBE = """
import socket, sys, time
began = time.monotonic()
link = socket.create_connection((sys.argv[1], int(sys.argv[2])))
connected = time.monotonic()
for _ in range(100): link.sendall(bytes(1000000))
link.shutdown(socket.SHUT_WR)
link.recv(1)
print(connected - began, 100e6 / (time.monotonic() - connected))
"""


class Link:
    def __init__(self, user):
        self.user = user
        self.name = f"pgkeep-{os.getpid()}"
        self.ours, self.theirs = f"pgk{os.getpid()}a", f"pgk{os.getpid()}b"
        self.relay = None

    def __enter__(self):
        try:
            ip("netns", "add", self.name)
            self.kind = self.slow_down()
            self.measured = self.probe()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.relay:
            self.relay.terminate()
            self.relay.wait()
        # With the namespace goes its end of the link, and with that ours.
        with contextlib.suppress(measure.Failed):
            ip("netns", "del", self.name)

    def slow_down(self):
        """Makes the link, and says of what kind."""
        ip("link", "add", self.ours, "type", "veth", "peer", "name", self.theirs, "netns", self.name)
        try:
            netem = ["root", "netem", "delay", f"{DELAY_MS}ms", "rate", f"{GBIT}gbit"]
            measure.run(["tc", "qdisc", "add", "dev", self.ours, *netem])
            measure.run(["ip", "netns", "exec", self.name, "tc", "qdisc", "add", "dev", self.theirs, *netem])
            kind = "netem"
        except measure.Failed as failure:
            print(f"WITHOUT netem, which this kernel does not have: {failure.args[0].splitlines()[-1]}", file=sys.stderr)
            kind = self.with_relay()
        self.give_addresses()
        return kind

    def with_relay(self):
        """Replaces the link by one whose packets a program delays; a plain link stays where that cannot be made either."""
        if not os.path.exists("/dev/net/tun"):
            print("WITHOUT a slow link: there is no /dev/net/tun either; the link is plain", file=sys.stderr)
            return "plain"
        ip("link", "del", self.ours)
        command = [os.path.join(HERE, "relay"), self.ours, self.theirs, str(DELAY_MS), str(GBIT)]
        self.relay = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        if not self.relay.stdout.readline():
            raise RuntimeError("the relay did not start")
        ip("link", "set", self.theirs, "netns", self.name)
        return "relay"

    def give_addresses(self):
        ip("address", "add", f"{SERVER}/30", "dev", self.ours)
        ip("link", "set", self.ours, "up")
        ip("-n", self.name, "address", "add", f"{CLIENT}/30", "dev", self.theirs)
        for device in ("lo", self.theirs):
            ip("-n", self.name, "link", "set", device, "up")

    def inside(self):
        """What stands before a command that is to run on the other host, as the unprivileged user, with the same process id."""
        user, group = str(self.user.pw_uid), str(self.user.pw_gid)
        return ["ip", "netns", "exec", self.name, "setpriv", "--reuid", user, "--regid", group, "--clear-groups"]

    def probe(self):
        """The round trip in seconds and the bytes each second that one connection from there to here passes."""
        (port,) = free_ports(1)
        sink = subprocess.Popen([sys.executable, "-c", SINK, SERVER, str(port)], stdout=subprocess.PIPE)
        sink.stdout.readline()
        try:
            found = measure.run([*self.inside(), "/usr/bin/python3", "-c", PROBE, SERVER, str(port)])["output"].split()
        finally:
            sink.terminate()
            sink.wait()
        return {"round_trip_s": float(found[0]), "bytes_per_s": float(found[1])}


def ip(*arguments):
    measure.run(["ip", *arguments])
