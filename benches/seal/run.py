#!/usr/bin/env python3
"""What the seal costs: CPU of a PostgreSQL backend for a transaction, by itself.

A private cluster, and a connection for each case, on which the bytes that pgtenant would send are sent again and again: a
change of tenant with the query behind it, or the query of a tenant that has the connection already. What a backend used is in
/proc/PID/schedstat, in nanoseconds, and so Linux only; what the client and the rest of the machine do is not in it, but for
what they take from the caches. Cases take turns; medians, lower quartiles and minima of all turns are printed.

    benches/seal/run.py [--rounds 31] [--transactions 200] [--bindir /usr/lib/postgresql/15/bin]
"""

import argparse
import glob
import hashlib
import hmac
import os
import pathlib
import shutil
import socket
import statistics
import struct
import subprocess
import tempfile

SEAL = pathlib.Path(__file__).parents[2] / "src/control/sql/seal.sql"
KEY_ID = "0123456789abcdef"
KEY = os.urandom(32)
TENANTS = 100
SINCE_2000 = 946_684_800

TABLES = f"""
CREATE ROLE app LOGIN;
CREATE TABLE plain (tenant_id text, id int, body text, PRIMARY KEY (tenant_id, id));
INSERT INTO plain SELECT 't' || t, i, 'body' FROM generate_series(1, {TENANTS}) t, generate_series(1, 100) i;
CREATE TABLE sealed (LIKE plain INCLUDING ALL);
INSERT INTO sealed SELECT * FROM plain;
ALTER TABLE plain ENABLE ROW LEVEL SECURITY;
ALTER TABLE sealed ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant ON plain USING (tenant_id = (SELECT current_setting('app.tenant_id', true)));
CREATE POLICY tenant ON sealed USING (tenant_id = (SELECT pgtenant.tenant_id()));
GRANT SELECT ON plain, sealed TO app;
VACUUM ANALYZE;
"""


class Cluster:
    """Ends with the with-block, and takes its directory away."""

    def __init__(self, bindir):
        self.bindir, self.port = bindir, free_port()
        self.as_user = []
        if os.geteuid() == 0:
            self.as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]

    def run(self, program, *arguments):
        command = [*self.as_user, f"{self.bindir}/{program}", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    def __enter__(self):
        self.dir = tempfile.mkdtemp(prefix="pgtenant-seal-")
        if self.as_user:
            shutil.chown(self.dir, "postgres", "postgres")
        self.run("initdb", "-D", f"{self.dir}/data", "-A", "trust", "-U", "postgres")
        options = f"-p {self.port} -k {self.dir} -c listen_addresses=127.0.0.1 -c autovacuum=off"
        self.run("pg_ctl", "-D", f"{self.dir}/data", "-o", options, "-l", f"{self.dir}/log", "-w", "start")
        return self

    def __exit__(self, *_):
        self.run("pg_ctl", "-D", f"{self.dir}/data", "-m", "immediate", "stop")
        shutil.rmtree(self.dir)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def message(tag, body=b""):
    return tag + struct.pack("!I", len(body) + 4) + body


def query(sql):
    return message(b"Q", sql.encode() + b"\0")


def extended(sql, *arguments):
    """Parse, Bind and Execute of the unnamed statement; no Sync, as ahead of a client's message."""
    bind = b"\0\0\0\0" + struct.pack("!H", len(arguments))
    for argument in map(str.encode, arguments):
        bind += struct.pack("!I", len(argument)) + argument
    parse = message(b"P", b"\0" + sql.encode() + b"\0\0\0")
    return parse + message(b"B", bind + b"\0\0") + message(b"E", b"\0\0\0\0\0")


class Connection:
    def __init__(self, port, user):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest, self.pid = b"", None
        startup = f"user\0{user}\0database\0postgres\0\0".encode()
        self.send(struct.pack("!II", len(startup) + 8, 196608) + startup)

    def send(self, data):
        """Returns the rows up to ReadyForQuery, each as its first value."""
        self.socket.sendall(data)
        rows, error = [], None
        while True:
            while len(self.rest) < 5 or len(self.rest) < 1 + struct.unpack("!I", self.rest[1:5])[0]:
                more = self.socket.recv(65536)
                if not more:
                    raise SystemExit(f"the server closed the connection: {error}")
                self.rest += more
            size = 1 + struct.unpack("!I", self.rest[1:5])[0]
            tag, body, self.rest = self.rest[:1], self.rest[5:size], self.rest[size:]
            if tag == b"K":
                self.pid = struct.unpack("!I", body[:4])[0]
            elif tag == b"D":
                length = struct.unpack("!i", body[2:6])[0]
                rows.append(body[6 : 6 + max(length, 0)].decode())
            elif tag == b"E":
                error = body
            elif tag == b"Z":
                if error:
                    raise SystemExit(f"the server says {error}")
                return rows

    def cpu(self):
        with open(f"/proc/{self.pid}/schedstat") as file:
            return int(file.read().split()[0])


def sealed(connection, tenant):
    """As src/backend/seal.rs makes it, but for an hour."""
    answer = connection.send(query(f"SELECT pgtenant.challenge(0, '{KEY_ID}')"))[0]
    version, pid, started, clock, known = map(int, answer.split("|"))
    assert (version, known) == (3, 1), answer
    one, two = struct.unpack("!qq", hashlib.sha256(tenant.encode()).digest()[:16])
    until = (clock + 3600 - SINCE_2000) * 1_000_000
    signed = f"{tenant}|{until}|{one}|{two}|{until}"
    bound_to = struct.pack("!iq", pid, started - SINCE_2000 * 1_000_000)
    return f"{signed}|{hmac.new(KEY, signed.encode() + bound_to, hashlib.sha256).hexdigest()}"


def change(connection, tenant, way):
    """A change of tenant, up to the client's message."""
    begin, calls, arguments = "BEGIN", [], []
    if way == "sealed":
        begin, calls = "BEGIN READ WRITE", [f"pgtenant.bind_{KEY_ID}($1) IS NOT NULL"]
        arguments = [sealed(connection, tenant)]
    n = len(arguments)
    calls.append(f"pg_catalog.set_config(${n + 1}, ${n + 2}, false)")
    arguments += ["app.tenant_id", tenant]
    return (
        extended("DISCARD ALL") + extended(begin) + extended("SELECT " + ", ".join(calls), *arguments) + extended("COMMIT")
    )


def cases(port):
    """Name, connection, messages to be sent in turn, rows that come."""
    for way in "plain", "sealed":
        select = query(f"SELECT tenant_id, body FROM {way} WHERE id = 7")
        changing, staying = Connection(port, "app"), Connection(port, "app")
        turns = [change(changing, f"t{n}", way) + select for n in range(1, TENANTS + 1)]
        yield f"{way}, a change of tenant and a query", changing, turns, 2
        staying.send(change(staying, "t1", way) + select)
        yield f"{way}, a query", staying, [select], 1
    yield "nothing: SELECT 1", Connection(port, "app"), [query("SELECT 1")], 1


def prepare(port):
    admin = Connection(port, "postgres")
    # VACUUM is nobody's transaction but its own.
    for sql in SEAL.read_text(), *TABLES.replace("VACUUM", ";;VACUUM").split(";;"):
        admin.send(query(sql))
    pads = [bytes(byte ^ pad for byte in KEY.ljust(64, b"\0")).hex() for pad in (0x36, 0x5C)]
    admin.send(query(f"SELECT pgtenant.put_key('{KEY_ID}', decode('{pads[0]}', 'hex'), decode('{pads[1]}', 'hex'))"))


def main():
    parser = argparse.ArgumentParser(description="What the seal costs a PostgreSQL backend.")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--transactions", type=int, default=200, help="of each case in a round")
    installed = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    bindir = os.environ.get("PGTENANT_PG_BINDIR") or (installed[-1] if installed else None)
    parser.add_argument("--bindir", default=bindir, help="where initdb is; $PGTENANT_PG_BINDIR")
    given = parser.parse_args()
    if not given.bindir:
        raise SystemExit("PostgreSQL's initdb was not found: give --bindir")
    with Cluster(given.bindir) as cluster:
        prepare(cluster.port)
        measured = [(case, []) for case in cases(cluster.port)]
        for turn in range(given.rounds + 1):
            for (_, connection, turns, rows), took in measured:
                before = connection.cpu()
                for n in range(given.transactions):
                    assert len(connection.send(turns[n % len(turns)])) == rows
                # The first is for the caches.
                if turn > 0:
                    took.append((connection.cpu() - before) / given.transactions / 1000)
        print("µs of a backend's CPU              median  quartile   minimum")
        for (name, *_), took in measured:
            took.sort()
            print(f"{name:38} {statistics.median(took):6.1f}    {took[len(took) // 4]:6.1f}    {took[0]:6.1f}")


if __name__ == "__main__":
    main()
