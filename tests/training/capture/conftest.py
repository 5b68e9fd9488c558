from training.capture.trainers import device, place  # noqa: F401
