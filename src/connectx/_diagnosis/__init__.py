"""Why a connection failed, and what would help."""
