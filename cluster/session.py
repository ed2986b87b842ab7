"""A Ray session: embedded in this process, or a running cluster. How its nodes are divided is in `division`."""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import ray
from ray._private import ray_constants, services, worker
from ray._private.grpc_utils import init_grpc_channel
from ray.data import DataContext, ExecutionResources

from cluster import autoscaling
from cluster.counting import counted
from cluster.division import GIB, Node
from cluster.errors import ClusterError, token_refused
from cluster.scratch import scratch_folder

log = logging.getLogger("retroscan.session")

MIB = 1 << 20
# Ray's default, 1800 s, is half an hour of silence; a model loads in seconds.
NO_PROGRESS_TIMEOUT_S = 900.0
BLOCK_BYTES = 64 * MIB
IDLE_WORKER = "RAY_idle_worker_killing_time_threshold_ms"
IDLE_WORKER_MS = 600_000
OOM_RETRIES = "RAY_task_oom_retries"
OOM_RETRIES_OF_A_TASK = 5
# Ray's own word for how much its C++ side may say; who sets it wants to hear it.
BACKEND_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
# A line of that side: [2026-11-27 16:52:23,424 I 2476 2476] logging.cc:303: ...
_BACKEND_LINE = re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,]+ [A-Z] \d+ \d+\] ")
# Of an embedded Ray: on a machine that is busy its own 30 s are short.
START_ATTEMPTS = 3
# Of the head of a running cluster, before anything is asked of it.
ANSWER_S = 30.0
_ROOT = Path(__file__).resolve().parent.parent
# Of every embedded Ray of this process, which keeps the first one it uses; handed down in the environment.
# Ray's own way is a file in the home folder that others may read.
_TOKEN = secrets.token_hex(32)


class Session(NamedTuple):
    """A connected Ray: its address, and the nodes it had when it was looked at."""

    address: str
    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """Logical CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """Logical GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)


def object_store_bytes(memory: int) -> int:
    """The object store of an embedded Ray on a machine with `memory` bytes: a quarter, 128 MiB to 2 GiB.

    A stream holds a few blocks at a time; Ray's own default, 30 % of everything, would be reserved for nothing.
    """
    return max(128 * MIB, min(2 * GIB, memory // 4))


@contextmanager
def session(address: str | None = None, *, num_cpus: int | None = None, grow: bool = True) -> Iterator[Session]:
    """A connected Ray for the block: embedded by default, or the running cluster at `address` or RAY_ADDRESS.

    An embedded one ends with the block and leaves nothing behind.
    Inside another `session` the outer one is lent.
    The workers see this process's AWS_* variables and import the packages from where this process does.
    A running cluster whose deployment asks for a size (`cluster.autoscaling`) is waited for, unless `grow` is false.

    Raises:
        ClusterError: no cluster answers at the address, or it does not grow.
    """
    if ray.is_initialized():
        yield Session("connected", _alive_nodes())
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        # It fails deep inside Ray otherwise: Ray Data does not run behind Ray's client (2.60).
        raise ClusterError(
            f"A scan or fit is driven from inside the cluster. Got: {address}, the address of Ray's client.",
            "Send it with `retroscan submit --address http://HEAD:8265 -- ...`, or run it on a node with "
            "--address auto.",
        )
    before = dict(os.environ)
    with scratch_folder() if address == "local" else nullcontext() as scratch:
        os.environ.update(_environment())
        try:
            options = _of_a_running_cluster() if scratch is None else _of_an_embedded_ray(scratch, num_cpus)
            _hush()
            with ExitStack() as quiet:
                if BACKEND_LOG_LEVEL not in before:
                    # Before its thread starts, which takes it from there.
                    worker.print_to_stdstream = _told_by_raylet
                    quiet.enter_context(_without_lines_of_the_backend())
                _connect(address, {"log_to_driver": False, "logging_level": logging.WARNING, **options})
            if scratch is None and grow:
                autoscaling.grow(autoscaling.asked())
            yield Session(address, _alive_nodes())
        finally:
            ray.shutdown()
            os.environ.clear()
            os.environ.update(before)


def _of_an_embedded_ray(scratch: Path, num_cpus: int | None) -> dict[str, Any]:
    """What Ray is started with; the rest of its settings it takes from the environment, set here."""
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ["RAY_AUTH_TOKEN"] = _TOKEN
    # Ray's C++ side writes to stderr what concerns only Ray; what concerns the job comes as exceptions.
    os.environ.setdefault(BACKEND_LOG_LEVEL, "fatal")
    # Ray's default is to begin a task again for ever whose worker it has ended for want of memory.
    os.environ.setdefault(OOM_RETRIES, str(OOM_RETRIES_OF_A_TASK))
    # Ray's default, 15, gives its workers what everyone else on the machine leaves: they are the job.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray ends workers that were idle for a second, and starts others a moment later: fifteen in a minute of scanning,
    # each of which imports for as long as hundreds of images take to decode.
    os.environ.setdefault(IDLE_WORKER, str(IDLE_WORKER_MS))
    return {
        "include_dashboard": False,
        "num_cpus": num_cpus,
        "object_store_memory": object_store_bytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "_temp_dir": str(scratch),
    }


def _of_a_running_cluster() -> dict[str, Any]:
    """What a cluster is told of this process, whose environment an embedded Ray's workers inherit.

    Where its nodes have roles of their own, no key is set here and none is sent.
    """
    told = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    told |= {name: os.environ[name] for name in ("PYTHONPATH", "OMP_WAIT_POLICY")}
    return {"runtime_env": {"env_vars": told}}


def _connect(address: str, options: dict[str, Any]) -> None:
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            if address != "local":
                _demand_answer(address)
            with _in_no_cluster() if address == "local" else nullcontext(), _named_in_unicode():
                ray.init(address=address, **options)
        except Exception as error:
            ray.shutdown()
            # Ray raises the bare class when its start takes over 30 s.
            if type(error) is Exception and attempt < START_ATTEMPTS:
                log.warning("Ray did not start in time (%s). Once more.", error)
                continue
            if reason := _token_refused(error):
                raise token_refused(address, reason) from error
            raise _unusable(address, f"{type(error).__name__}: {error}".rstrip(".")) from error
        return


def _demand_answer(address: str) -> None:
    """Raise TimeoutError unless the head of a running cluster answers at all.

    Ray waits without end for one that takes connections and says nothing, as one that hangs or is no head (2.60).
    """
    channel = init_grpc_channel(services.canonicalize_bootstrap_address(address))
    try:
        grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
    except grpc.FutureTimeoutError as error:
        raise TimeoutError(f"no answer within {ANSWER_S:g} s") from error
    finally:
        channel.close()


def _unusable(address: str, why: str) -> ClusterError:
    if address != "local":
        return ClusterError(
            f"No Ray answers at the address. Got: {address} ({why}).",
            "Check --address and RAY_ADDRESS, or leave both out for an embedded Ray.",
        )
    load, cpus = os.getloadavg()[0], len(os.sched_getaffinity(0))
    return ClusterError(
        f"Ray did not start on this machine. Got: {why}, at a load of {load:.0f} on {counted(cpus, 'CPU')}.",
        "Run the same command again, of a busy machine once it has less to do, or on a running cluster (--address).",
    )


@contextmanager
def _named_in_unicode() -> Iterator[None]:
    """A block in which Ray can note this process's command line, even if a path in it is no Unicode text."""
    told = ray._private.utils.get_entrypoint_name
    ray._private.utils.get_entrypoint_name = lambda: told().encode("utf-8", "replace").decode()
    try:
        yield
    finally:
        ray._private.utils.get_entrypoint_name = told


def _token_refused(error: BaseException | None) -> str | None:
    """Ray's reason if it was the token, and nothing else; it tells so in the text of some error on the way."""
    while error is not None:
        if found := re.search(r"\bAuthentication token [^.]+|Token authentication is enabled [^.]+", str(error)):
            return found.group()
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def _in_no_cluster() -> Iterator[None]:
    """A block in which Ray takes this machine for one that can be in no cluster, as it takes a Mac.

    What starts then listens on loopback alone.
    There is no option for that: Ray replaces a node address of 127.0.0.1 by one that others can reach.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _hush() -> None:
    """Keep from the log what Ray advises about settings that are as they are here on purpose."""
    for name in (
        "ray._private.authentication.authentication_token_setup",
        "ray.data._internal.progress",
        # What it says of an exception that it raises.
        "ray.data.exceptions",
        "ray.data._internal.execution.streaming_executor_state",
    ):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Of a dataset with little to do, such as a last chapter.
    warnings.filterwarnings("ignore", "The (minimum|maximum) number of concurrent (actors|tasks)", UserWarning)


@contextmanager
def _without_lines_of_the_backend() -> Iterator[None]:
    """A block in which Ray's C++ side does not write to stderr that it was told to be quiet.

    What others write to stderr inside the block comes at its end.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            kept.seek(0)
            for line in kept:
                if not _BACKEND_LINE.match(line):
                    os.write(2, line)


def _told_by_raylet(data: dict[str, Any], **_: Any) -> None:
    """In place of Ray's own printing of what a raylet does about tasks and actors: they come as exceptions, too."""
    log.debug("Ray: %s", "\n".join(map(str, data.get("lines", ()))))


def _environment() -> dict[str, str]:
    """What this process and an embedded Ray's workers have in their environment during a session."""
    path = os.environ.get("PYTHONPATH", "")
    quiet = {} if sys.stderr.isatty() else {"RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    return {
        "PYTHONPATH": f"{_ROOT}{os.pathsep}{path}" if path else str(_ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Of its own actors, which it starts again.
        "RAY_IGNORE_UNHANDLED_ERRORS": "1",
        # CUDA_VISIBLE_DEVICES stays where a task asks for no GPU.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # GNU OpenMP's threads spin while they wait for each other.
        # Where another process wants the core, as fetching does here by design, each barrier then waits for the
        # scheduler: measured 5 against 112 ms an image.
        "OMP_WAIT_POLICY": "passive",
        **quiet,
    }


def _alive_nodes() -> tuple[Node, ...]:
    """The nodes of the connected Ray that are alive now, the largest first."""
    resources = (node["Resources"] for node in ray.nodes() if node["Alive"])
    nodes = (
        Node(
            has.get("CPU", 0.0), has.get("GPU", 0.0), int(has.get("memory", 0)), int(has.get("object_store_memory", 0))
        )
        for has in resources
    )
    return tuple(sorted(nodes, reverse=True))


@contextmanager
def data_context(has: Session, *, task_s: float = 0.0) -> Iterator[DataContext]:
    """Ray Data's settings for datasets built inside the block, which may use what the session has.

    `task_s`: how long one task may take before it gives its first rows; for that and NO_PROGRESS_TIMEOUT_S nothing may
    move before the run is taken to have stalled.
    Those outside are left as they were.
    """
    context = DataContext.get_current().copy()
    context.enable_progress_bars = sys.stderr.isatty()
    context.print_on_execution_start = False
    context.target_max_block_size = BLOCK_BYTES
    context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S + task_s
    context.execution_options.preserve_order = False
    # Ray Data takes from the cluster what its autoscaler asked for, and of what is left on each node only whole CPUs.
    # Its default autoscaler asks by task, so that the fractions that tasks leave on every node lie idle: 0.35 of 2 CPUs
    # were seen to. This one asks by node. The limits keep it from growing the cluster: a scan divides what there is.
    os.environ.setdefault("RAY_DATA_CLUSTER_AUTOSCALER", "V2")
    context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=has.cpus, gpu=has.gpus)
    # A bad object is a row, so an exception that reaches Ray is a fault of ours: stop, and lose no rows to it.
    context.max_errored_blocks = 0
    context.raise_original_map_exception = True
    chatty = logging.getLogger("ray.data")
    level = chatty.level
    with DataContext.current(context):
        chatty.setLevel(logging.WARNING)
        try:
            yield context
        finally:
            chatty.setLevel(level)
