"""Side-by-side measurements of xbp and its peers: ``xbp bench``.

``workloads`` says what is measured and on which sides; ``worker`` runs one side in a process of its
own, which a ``side_*`` file teaches to speak to its library; ``harness`` lets the sides take turns;
``report`` makes tables and a plot of what came out. None of it is loaded by ``import xbp``.
"""
