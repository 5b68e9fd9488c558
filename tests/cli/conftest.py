from cli.running import broken, command, own_backend, pictures_without_drawing, small  # noqa: F401
