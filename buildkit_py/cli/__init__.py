"""The command ``buildkit-py``: one file for each group of commands, imported when it is called."""
