"""Real node processes whose lines are bad on purpose: `make chaos`.

`fault_proxy` is the lines: TCP in user space, with delay, limits, cuts and silence. `mesh` is the
nodes behind them, `scenarios` what is done to them and what must come of it, `__main__` the table.
Nodes are used through the command line only; nothing here knows how they work inside.
"""
