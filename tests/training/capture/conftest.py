from training.capture.trainers import place  # noqa: F401
