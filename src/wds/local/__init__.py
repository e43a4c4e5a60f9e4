"""The whole system on one machine, with MongoDB and Redis from PyPI wheels.

Imports `cli` and what lies below; its parts run as child processes, started as a user starts them.
No process may outlive the command that started it, however that command ends.
"""
