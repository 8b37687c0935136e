"""Starts the kernels of tutorials as forks of one process that has imported what they import.

Importing takes longer than much of what a tutorial computes. Each kernel is still a process of its
own, which has only the libraries in common with the others.
"""

import gc
import multiprocessing
import os
from importlib.metadata import EntryPoint
from multiprocessing.context import ForkServerProcess
from typing import Any

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner
from sphinx.application import Sphinx

LIBRARIES = [
    "__main__",  # Sphinx's: otherwise each process imports it
    "captum.attr",
    "pytorch_lightning.loggers",
    "sklearn.datasets",
    "timm",
    "transformers.generation",
    "transformers.modeling_utils",
    "ipykernel.kernelapp",  # the last: some of the others draw progress bars where they find it
]


class Process(ForkServerProcess):
    """A forked kernel, with what its manager asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, connection_file: str, folder: str, environment: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self._given = connection_file, folder, environment

    def run(self) -> None:
        from ipykernel.kernelapp import IPKernelApp

        connection_file, folder, environment = self._given
        gc.freeze()  # the libraries, which would be looked through again and again
        os.setsid()  # a signal reaches the kernel and the processes that it starts
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        # It ends when the process ends that it was forked from.
        IPKernelApp.launch_instance(argv=["-f", connection_file], parent_handle=os.getppid())

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int | None:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class Forked(LocalProvisioner):
    """Manages a kernel that is a fork."""

    async def launch_kernel(self, cmd: list[str], **options: Any) -> dict[str, Any]:  # noqa: ARG002
        self.cwd = options["cwd"]
        self.process = Process(self.parent.connection_file, self.cwd, options["env"])
        self.process.start()
        self.pid = self.pgid = self.process.pid
        return self.connection_info


def setup(app: Sphinx) -> dict[str, Any]:  # noqa: ARG001
    # As IPython sets it, which is too late where Matplotlib has been imported.
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    multiprocessing.set_forkserver_preload(LIBRARIES)
    factory = KernelProvisionerFactory.instance()
    factory.provisioners["forked"] = EntryPoint("forked", f"{__name__}:Forked", factory.GROUP_NAME)
    factory.default_provisioner_name = "forked"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
