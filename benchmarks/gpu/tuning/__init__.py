"""The choice of tiles on a GPU, measured.

    python -m benchmarks.gpu tune [NAME …] [--minutes 8] [--output benchmarks/results]
    python -m benchmarks.gpu tune --emulate --tiles 2     on any Linux with a C++ compiler: no times
    python -m benchmarks.gpu tune --report TABLE.json     what a table says, without measuring

Measures how kernels are best divided: tiles of convolutions and of products, networks whole in one
kernel, and whatever else the benchmarks' training steps ask `xbp.accelerators.cuda.tuned` for
(`asked.ASKED`: cuBLAS or a kernel, plans of recurrent layers, threads and parts of norms and
softmax, …). It begins where most is to be gained: by the share of a call in its steps, and by how
many choices were tried without a gain.

Compiles the tiles of each product ahead, in processes; checks each against the reference in
float64; times those that are right, one of each product at a time, beside PyTorch where it is
installed. NAME is a part of the names of products. Times are kept in ``gpu_DEVICE_tuned.json``,
from which the next call goes on unless the kernels have changed; ``gpu_DEVICE_tuned.md`` is the
same for readers. In the end it says how much longer than the best the tiles take that the rules of
`xbp.accelerators.cuda` choose, and the constants of `wide.time` that fit these times. Whether
convolutions take a quarter of the products is a choice of two.
"""
