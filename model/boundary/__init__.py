"""Where the program meets its surroundings: errors for users, bounds of config files, untrusted text and JSON, a folder
that no other user can write to, files that are written whole or not at all (``whole_file``), child processes that end
with their parent (``parent_process``), and coroutines that wait for others at the same time (``at_once``). Read
``errors`` first.
"""
