"""Groups of processes that train one model together, each on a share of every batch.

n ranks compute what one process computes with the same batch, to rounding, and are equal among
themselves, bit for bit. From the ground up: `groups` (the interface, and the group of one),
`mpi`, `nccl`, `gradients` (the sum over ranks of gradients and losses).
"""

from xbp.parallel.gradients import reduce_gradients, weighted
from xbp.parallel.groups import Alone, Group
from xbp.parallel.making import group

__all__ = ["Alone", "Group", "group", "reduce_gradients", "weighted"]
