from cli.running import broken, command, own_backend, small  # noqa: F401
