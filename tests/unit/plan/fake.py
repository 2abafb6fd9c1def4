"""Memory maps made by hand, and the shape of a small model."""

from rlhf_cli.plan.batch_counts import BatchCounts
from rlhf_cli.plan.fit import Fit
from rlhf_cli.plan.machine import Machine
from rlhf_cli.plan.memory_map import Item, MemoryMap, Moment, Topology

GIB = 2**30
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}


def made_map(device_gib=2, host_gib=0.5, on_gpu=True, **more):
    """A map of one moment, the update: weights of the policy on the device, its states on the host."""
    device = (Item("policy", "weights", int(device_gib * GIB)),)
    host = (Item("policy", "optimizer states", int(host_gib * GIB)),)
    topology = Topology(more.pop("num_ranks", 1), more.pop("ranks_per_node", 1), on_gpu)
    given = {"context": 0, "checkpoint": 0, "num_checkpoints": 1, "exports": 0}
    return MemoryMap((Moment("update", "policy", device, host),), topology, **(given | more))


def planned_with(machine=None, reserve=0.0, **given):
    """The plan of such a map on a machine."""
    return Fit(made_map(**given), machine or Machine(None, None), BatchCounts((), {}), reserve)
