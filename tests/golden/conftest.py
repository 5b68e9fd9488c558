collect_ignore = ["write.py"]  # the record of how files were made, in the words of that version
