"""Leaves TIME_WAITs behind."""

import socket


def leave_time_wait(listener: socket.socket, destination: tuple[str, int]) -> None:
    """Connect, and close first."""
    with socket.create_connection(destination) as sock:
        accepted, _ = listener.accept()
        sock.shutdown(socket.SHUT_WR)
        assert accepted.recv(1) == b""
        accepted.close()
        assert sock.recv(1) == b""
