"""NVIDIA's tritonserver as PyPI has it, in nvidia-pytriton: with the Python backend only, and without a GPU.

The benchmark and the tests start it, with the Python of an environment that has it (`make .venv-triton/installed`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60  # that the server may take to start
SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps shared memory by name
# Importing pytriton would need packages that the server does not.
_FIND = (
    "import importlib.util, sys; print(importlib.util.find_spec('pytriton').submodule_search_locations[0]); "
    "print('{}.{}'.format(*sys.version_info))"
)


@dataclass(frozen=True)
class Installed:
    """Where a Python has the server.

    Attributes:
        python: the interpreter, in the folder of its environment.
        package: the folder of pytriton.
        version: of the interpreter, such as 3.11.
    """

    python: Path
    package: Path
    version: str

    @property
    def stub(self) -> Path:
        """The program that runs models in this version of Python."""
        return self.package / "tritonserver" / "python_backend_stubs" / self.version / "triton_python_backend_stub"


@dataclass(frozen=True)
class Started:
    """A server in a process of its own, and its ports on 127.0.0.1.

    Attributes:
        process: the server; the processes of its models are in its process group.
        http, grpc, metrics: its ports.
        shared: how the names of its files of shared memory begin.
    """

    process: subprocess.Popen[bytes]
    http: int
    grpc: int
    metrics: int
    shared: str

    def shared_files(self) -> list[Path]:
        """The files of shared memory, 8 MB and more for each model, that it has now or left behind."""
        return sorted(SHARED_MEMORY.glob(f"{self.shared}*"))

    def kill(self) -> None:
        """End it at once, with the processes of its models, which may outlive it, and remove its shared memory.

        A server that is killed leaves its shared memory, and so does one whose model was killed.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for file in self.shared_files():
            file.unlink()


def find_server(python: str) -> Installed:
    """The server that a Python has.

    Raises:
        LookupError: it has none, or none that runs models here; the message has the reason.
    """
    found = subprocess.run([python, "-c", _FIND], capture_output=True, text=True)
    if found.returncode:
        raise LookupError(f"{python} has no nvidia-pytriton, which has the server: make .venv-triton/installed")
    package, version = found.stdout.split("\n")[:2]
    installed = Installed(Path(python), Path(package), version)
    if not installed.stub.is_file():
        raise LookupError(f"nvidia-pytriton runs no models in Python {version}")
    missing = re.findall(
        r"(\S+) => not found", subprocess.run(["ldd", installed.stub], capture_output=True).stdout.decode()
    )
    if missing:
        raise LookupError(f"{missing[0]} is not installed: apt-get install libpython{version}")
    return installed


def copy_backends(installed: Installed, folder: Path) -> Path:
    """The folder of the server's backends: that of Python, with the stub for this version of it."""
    shutil.copytree(installed.package / "tritonserver" / "backends" / "python", folder / "python")
    shutil.copy(installed.stub, folder / "python")
    return folder


def start_server(
    installed: Installed, repository: Path, backends: Path, log: Path, flags: Sequence[str] = ()
) -> Started:
    """Start a server at free ports, and wait until it answers.

    Args:
        installed: where it is.
        repository: the model repository.
        backends: as `copy_backends` makes it.
        log: file for what the server prints.
        flags: more of its flags.

    Raises:
        RuntimeError: it ended or does not answer; the message has the end of its log.
    """
    shared = f"chan-triton-{uuid.uuid4().hex}-"
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    listening = [
        f"--{name}-{flag}"
        for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)
        for flag in ("address=127.0.0.1", f"port={port}")
    ]
    command = [
        installed.package / "tritonserver" / "bin" / "tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--backend-config=python,shm-default-byte-size=8388608",
        f"--backend-config=python,shm-region-prefix-name={shared}",
        "--allow-gpu-metrics=false",
        *listening,
        *flags,
    ]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(installed.package.parent / "nvidia_pytriton.libs"),
        "PATH": f"{installed.python.absolute().parent}{os.pathsep}{os.environ['PATH']}",
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=file, stderr=file, env=environment, start_new_session=True
        )
    http, grpc, metrics = ports
    started = Started(process, http, grpc, metrics, shared)
    deadline = time.monotonic() + SECONDS
    while b"Started Metrics Service" not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            started.kill()
            raise RuntimeError(f"tritonserver does not answer:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.02)
    return started
