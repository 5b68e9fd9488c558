collect_ignore = ["write.py"]  # the record of how files were made, in the API of that version
