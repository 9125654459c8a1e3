"""Where the ranks of a stage meet: a store of torch in the process of rank 0.

The server that torch starts by itself listens on every address of the machine. This one listens on the address that
the ranks use, which is loopback where there is one node.
"""

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

Address = tuple[str, int]


def serve_store() -> "TCPStore":
    """A store that others on this node, or on all nodes of the Ray cluster where there are several, can connect to."""
    import ray
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    is_alone = sum(node["Alive"] for node in ray.nodes()) == 1
    listener = socket.create_server(("127.0.0.1" if is_alone else ray.util.get_node_ip_address(), 0))
    host, port = listener.getsockname()
    return TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def address_of(store: "TCPStore") -> Address:
    """Host and port of a store."""
    return store.host, store.port


def connect_store(address: Address) -> "TCPStore":
    """The store at an address, for the other ranks. Raises RuntimeError when none answers."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(*address, is_master=False)
