"""A cluster without workers, Ray's own autoscaler over it, and a session that asks for more; printed as JSON.

Run as a script: Ray keeps the token and the mode of a process for as long as it lives.
The autoscaler's nodes are Ray's stand-ins for a cloud's: raylets on this machine.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

HEAD = "f" * 51 + "00000"
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
)
STORE = 10**8


def main(folder: Path) -> None:
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_raylet_start_wait_time_s": "120",
    }
    (folder / "token").write_text(os.urandom(16).hex())

    import psutil
    import ray
    from ray.cluster_utils import Cluster

    from cluster import autoscaling
    from cluster.division import divide_for_scan
    from cluster.errors import ClusterError
    from cluster.session import session

    port = 20_000 + os.getpid() % 10_000
    (folder / "cluster.json").write_text(json.dumps(_config(f"{ray.util.get_node_ip_address()}:{port}")))
    cluster = Cluster(shutdown_at_exit=False)
    own = {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
    os.environ |= own
    said: dict[str, object] = {}
    try:
        cluster.add_node(
            num_cpus=0,
            autoscaling_config=str(folder / "cluster.json"),
            gcs_server_port=port,
            temp_dir=str(folder / "ray"),
            object_store_memory=STORE,
            include_dashboard=False,
            dashboard_agent_listen_port=port + 1,
        )
        for name in own:
            del os.environ[name]
        with session(cluster.address) as has:
            said["unasked"] = [has.cpus, has.gpus]
            try:
                autoscaling.grow(autoscaling.Size(1, 0), patience_s=0.0)
            except ClusterError as error:
                said["impatient"] = str(error)
        os.environ |= {autoscaling.CPUS: "3", autoscaling.GPUS: "1"}
        with session(cluster.address) as has:
            said["grown"] = [has.cpus, has.gpus]
            said["actors"] = divide_for_scan(has.nodes).actors
            said["short"] = autoscaling.grow(autoscaling.Size(99, 1), patience_s=0.0)
    finally:
        started = psutil.Process().children(recursive=True)
        ray.shutdown()
        cluster.shutdown()
        for process in psutil.wait_procs(started, timeout=5)[1]:
            process.kill()
    print(json.dumps(said))


def _config(gcs: str) -> dict[str, object]:
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    sizes = {"ray.head.default": ({"CPU": 0}, 0), "cpu": ({"CPU": 2}, 1), "gpu": ({"CPU": 1, "GPU": 1}, 1)}
    return {
        "cluster_name": "from-zero",
        "max_workers": 3,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "external",
            "module": module,
            "launch_multiple": True,
            "head_node_id": HEAD,
            "gcs_address": gcs,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            name: {
                "resources": {**resources, "object_store_memory": STORE},
                "node_config": {},
                "min_workers": 0,
                "max_workers": most,
            }
            for name, (resources, most) in sizes.items()
        },
        "docker": {},
        "auth": {},
        "file_mounts": {},
        **{name: [] for name in COMMANDS},
    }


if __name__ == "__main__":
    # Sockets lie in the folder, and a socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp", ignore_cleanup_errors=True) as name:
        main(Path(name))
    sys.exit(0)
