"""``make bench``: connectx beside the ways it has to measure up to, in one run.

What is compared and how well it has to do is in targets.py, the ways of opening
connections in ways.py and c/, and how a noisy machine is made to give steady
ratios in lanes.py.
"""
