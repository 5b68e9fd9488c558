collect_ignore_glob = ["*.py"]  # only what is asked for by its path
