"""The command line: arguments, settings and signals, and the commands that are clients.

Imports what a command runs, and only in that command's module. A command that only talks HTTP, and
`--help` above all, must not import the server, a database driver or marshmallow.
"""
