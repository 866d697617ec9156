"""The command line: a module for each command, or a package for a large one.

- ``main``: finds the command and returns its exit status.
- ``command``: what a command's module defines, and how a command ends.
- ``arguments``: the arguments that commands share, and the types of their values.
- ``schemas``: what commands print as JSON, and its schemas.
- ``page``: what commands print on; ``output``: numbers and errors as text; ``progress``: bars.
"""
