"""Groups of processes that train one model together, each on a share of every batch.

n ranks compute what one process computes with the same batch, to rounding, and are equal among
themselves, bit for bit. From the ground up: `groups` (what a group can do, and the group of one),
`mpi`, `nccl`, `gradients` (the sum over ranks of what a step has found).
"""

from xbp.parallel.gradients import reduce_gradients, weighted
from xbp.parallel.groups import Alone, Group
from xbp.parallel.making import group

__all__ = ["Alone", "Group", "group", "reduce_gradients", "weighted"]
