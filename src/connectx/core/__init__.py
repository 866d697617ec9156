"""The decisions: what to try, what its failure means, and when to stop. No I/O."""
