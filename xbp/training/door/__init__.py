"""What a training is asked to do, checked before its first step."""
