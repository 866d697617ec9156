"""All experiments in one run, drawn on one page (``connectx lab report``)."""
