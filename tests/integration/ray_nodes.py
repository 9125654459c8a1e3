"""A Ray cluster of several nodes on this machine, as a process: python -m tests.integration.ray_nodes

The head has one CPU, so most workers of a run are on the other nodes. Prints the cluster's address, then for each line
it reads does what it says and prints the answer: ``add`` starts a node and prints the pid of its raylet. When its input
ends, all nodes are stopped.
"""

import sys

from ray.cluster_utils import Cluster

HEAD_CPUS, NODE_CPUS = 1, 6
STORE_BYTES = 150_000_000
# on the address of this machine: Ray takes a loopback address that it is to join for that one
SMALL = {"include_dashboard": False, "object_store_memory": STORE_BYTES}


def main() -> None:
    """Serve until the input ends."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": HEAD_CPUS, **SMALL})
    say(cluster.address)
    try:
        for line in sys.stdin:
            assert line.strip() == "add", line
            node = cluster.add_node(num_cpus=NODE_CPUS, **SMALL)
            [raylet] = node.all_processes["raylet"]
            say(raylet.process.pid)
    finally:
        cluster.shutdown()


def say(answer: object) -> None:
    """One line for whoever started this."""
    sys.stdout.write(f"{answer}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
