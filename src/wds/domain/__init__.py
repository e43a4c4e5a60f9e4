"""Events, deliveries and operator actions, and the rules that apply to them.

Imports only the standard library and msgspec; every other package may import it. It does no I/O and
reads no clock: a function that needs the time takes it as an argument.
"""
