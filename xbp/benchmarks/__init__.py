"""Side-by-side measurements of xbp and its peers: ``xbp bench``.

``workloads`` lists what is measured, and on which sides. ``worker`` runs a side in a process of its
own, by a ``side_*`` file for its library; ``process`` starts it; ``turns`` times the sides one
after the other, and ``harness`` has a method for each kind of workload. ``tables`` formats the
results. ``import xbp`` imports none of it.
"""
