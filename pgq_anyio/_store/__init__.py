"""The tables and every statement on them: one module per table, one function per statement.

A function takes a connection and the ``Store`` (the statements bound to one schema) and gives values. Nothing here
waits for anything but the answer, retries, or knows who calls.
"""
