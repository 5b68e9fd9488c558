collect_ignore_glob = ["*.py"]  # only files that are named by their path
