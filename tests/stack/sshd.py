"""OpenSSH's server, run by an unprivileged user; who may log in holds a key in an agent."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.loopback import free_port
from tests.stack import processes

PACKAGE = "openssh-server"
CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM yes
StrictModes no
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class Ssh:
    """A running server.

    Attributes:
        port: on loopback.
        user: whose account it is.
        folder: of that user, to keep things in.
        agent: the socket of the agent that holds the key.
        private: the key, which stands in no file any more.
    """

    port: int
    user: str
    folder: Path
    agent: str
    private: str

    def environment(self) -> dict[str, str]:
        """Return what every SSH client reads."""
        return {"SSH_AUTH_SOCK": self.agent}


def _key(path: Path) -> str:
    """Make a key pair without a passphrase and return the private half."""
    program = processes.needed("ssh-keygen", "openssh-client")
    subprocess.run([program, "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path.read_text()


@contextmanager
def _agent(key: Path, folder: Path) -> Iterator[str]:
    """Run an agent that holds a key, and remove the key's file."""
    socket = str(folder / "agent")
    command = [processes.needed("ssh-agent", "openssh-client"), "-D", "-a", socket]
    environment = {"PATH": os.environ["PATH"]}
    with processes.running(command, Path(socket).exists, folder / "agent.log", environment):
        add = processes.needed("ssh-add", "openssh-client")
        asking = {**environment, "SSH_AUTH_SOCK": socket}
        subprocess.run([add, "-q", str(key)], env=asking, check=True)
        key.unlink()
        yield socket


@contextmanager
def running(folder: Path, log: Path) -> Iterator[Ssh]:
    """Run a server that lets in one new key.

    Args:
        folder: of this process, for the agent.
        log: gets what the server says.
    """
    server = processes.needed("sshd", PACKAGE)
    port = free_port()
    user = processes.NOBODY if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    private = _key(folder / "key")
    with processes.own_folder() as place, _agent(folder / "key", folder) as agent:
        _key(place / "host_key")
        (place / "authorized_keys").write_text((folder / "key.pub").read_text())
        (place / "sshd_config").write_text(CONFIG.format(port=port, folder=place))
        (place / "dvc").mkdir()
        if os.geteuid() == 0:
            for path in place.iterdir():
                os.chown(path, pwd.getpwnam(user).pw_uid, -1)
        command = [server, "-D", "-e", "-f", str(place / "sshd_config")]
        with processes.running(
            command,
            lambda: processes.listens(port),
            log,
            {"PATH": os.environ["PATH"]},
            **processes.unprivileged(),
        ):
            yield Ssh(port, user, place / "dvc", agent, _secret_part(private))


def _secret_part(private: str) -> str:
    """Return a line of a key that is in no other key and not in its public half."""
    return re.sub(r"-----.*-----", "", private).split()[-1]
