"""The command line: a thin client of the node's API.

Turns arguments into requests, and results into words, progress bars and exit codes. Without a
running node it runs one in this process for the one command. It must not know the network library
or the store, and loads nothing heavy before a command needs it: `meshnode --version` is click only.
"""
