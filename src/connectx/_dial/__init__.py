"""The policy of a Dialer: which source, how many connections, who waits."""
