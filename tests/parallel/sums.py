"""Sums of arrays of several sizes and dtypes by the ranks of MPI, checked on each."""

import sys

import numpy as np

from xbp import parallel
from xbp.parallel.groups import sum_parts
from xbp.parallel.mpi import MAPS, MEMORY
from xbp.parallel.shared import PIECE, shared_sum


def main() -> None:
    group = parallel.group("mpi")
    of_ranks = group.size * (group.size - 1) // 2
    for dtype in ("float32", "float64", "int64", "complex64"):
        for count in (0, 1, 7, 1000, PIECE // 2 + 1):
            counted = np.arange(count) % 5
            array = (counted + group.rank).astype(dtype)
            expected = (group.size * counted + of_ranks).astype(dtype)
            third = count // 3
            parts = [
                (slice(0, third), array[:third].copy()),
                (slice(third, 2 * third), None),
                (slice(2 * third, count), array[2 * third :].copy()),
            ]
            group.sum_(array)
            np.testing.assert_array_equal(array, expected)
            whole = np.empty(count, dtype)
            sum_parts(group, whole, parts)
            expected[third : 2 * third] = 0
            np.testing.assert_array_equal(whole, expected)
    group.barrier()
    if MAPS.exists():
        mapped = [line for line in MAPS.read_text().splitlines() if MEMORY in line]
        assert all(line.endswith("(deleted)") for line in mapped), mapped
    if group.rank == 0:
        used = shared_sum.cache_info().currsize == 1
        sys.stdout.write(f"{group.size} ranks: shared memory {used}\n")


if __name__ == "__main__":
    main()
