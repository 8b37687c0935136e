"""Trainings of several processes, in a process of their own that can be given up.

Lightning forks the process that it runs in. That of the tests is none to be forked. Once it has
computed on several OpenMP threads, a fork that does the same waits for threads that it hasn't got.
And Lightning leaves the port of its first training in the environment: when somebody else listens
there by the next one, its first process can't, and the others wait for it.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import socket
import traceback

import pytest

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can fork")

LIMIT_S = 240

PRELOADED = ["tests.lightning_callbacks.explained", "tests.lightning_callbacks.strategies"]
"""Imported once, by the process that is forked; they start no threads."""


class Failed(RuntimeError):
    """What was run has raised; the message is its traceback."""


def alone(function, *arguments, limit_s=LIMIT_S):
    """Runs a function of a module in a fresh process, from which Lightning may fork.

    Args:
        function: The function.
        arguments: What it is called with, to be pickled like what it returns.
        limit_s: After how many seconds it and all processes that it has started are killed.

    Returns:
        What it returns.

    Raises:
        Failed: If it raises, or dies.
        TimeoutError: If it takes too long.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, its = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(its, function, arguments))
    process.start()
    its.close()
    try:
        if not ours.poll(limit_s):
            raise TimeoutError(f"{_name(function)} has not ended after {limit_s} seconds.")
        done, answer = ours.recv()
    except EOFError:
        done, answer = False, f"{_name(function)} has died."
    finally:
        _end(process)
    if not done:
        raise Failed(answer)
    return answer


def _name(function):
    return getattr(function, "__name__", str(function))


def side_by_side(function, count, *arguments):
    """Runs a function in several forks of this process, which PyTorch's launchers would start.

    Args:
        function: It is called with its process's number and the arguments.
        count: How many processes.
        arguments: What it is called with.

    Raises:
        Exception: If one of them fails; the others are ended.
    """
    from torch.multiprocessing import start_processes

    everyone = (function, _meeting(count), arguments)
    start_processes(_launched, everyone, nprocs=count, start_method="fork")


def on_nodes(function, nodes, of_each, *arguments):
    """Runs a function in forks of this process, as ``torchrun`` does on several nodes.

    Args:
        function: It is called with its process's number and the arguments.
        nodes: How many nodes.
        of_each: How many processes each of them has.
        arguments: What it is called with.

    Returns:
        The exit codes of all processes; nobody ends one because another has failed.
    """
    from torch.multiprocessing import start_processes

    meeting = _meeting(nodes * of_each)
    meeting |= {"TORCHELASTIC_RUN_ID": "here", "LOCAL_WORLD_SIZE": str(of_each)}
    everyone = (function, meeting, arguments)
    started = start_processes(
        _launched, everyone, nprocs=nodes * of_each, join=False, start_method="fork"
    )
    for process in started.processes:
        process.join()
    return [process.exitcode for process in started.processes]


def _meeting(count):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}


def _launched(rank, function, meeting, arguments):
    of_each = int(meeting.get("LOCAL_WORLD_SIZE", meeting["WORLD_SIZE"]))
    node, local = divmod(rank, of_each)
    os.environ.update(meeting, RANK=str(rank), LOCAL_RANK=str(local), GROUP_RANK=str(node))
    import torch

    # Makes PyTorch's pool of threads anew, which a fork lacks. Two threads of autograd that meet at
    # the missing one would end the process.
    torch.set_num_threads(1)
    function(rank, *arguments)


def _answer(connection, function, arguments):
    # A group of its own, so that all of it can be killed.
    os.setsid()
    os.environ.pop("MASTER_PORT", None)
    gc.freeze()  # what was imported is not looked through again and again
    import torch

    torch.set_num_threads(1)
    try:
        answer = True, function(*arguments)
    except BaseException:
        answer = False, traceback.format_exc()
    connection.send(answer)


def _end(process):
    process.join(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    process.close()
