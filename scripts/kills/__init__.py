"""The kill suite: every command that writes is killed at random moments, and run again.

cases.py    the table of commands, and those that write nothing
place.py    the folder in which a command runs, with its inputs
trial.py    one run: started, killed, its processes looked for
contents.py what a folder holds: whether each file is whole, and the same as another
"""
