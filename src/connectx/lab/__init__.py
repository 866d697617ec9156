"""Experiments on this machine's kernel, each in private network namespaces of its own.

They measure and return values; the ``connectx`` command formats them.
"""
