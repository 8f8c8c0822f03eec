"""Object storage on this machine, and a cluster of two machines that are processes here."""

import logging
import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def bucket():
    """URL of a bucket of a local S3 server, whose address and keys are in the environment."""
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("scans")
    yield "s3://scans"
    server.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture
def machines(bucket):
    """A Ray cluster: a head without CPUs for workers, and two machines with one CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    size = {"object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **size})
    cluster.workers = [cluster.add_node(num_cpus=1, **size) for _ in range(2)]
    yield cluster
    cluster.shutdown()


@pytest.fixture
def start():
    """Start the command line in a process of its own."""
    started = []

    def run(*command):
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "isopose", *map(str, command)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
