"""One file per command of `coda`; its parameters are the flags, its docstring is the help.

The work is done in the other packages, which are imported inside the functions so that help answers at once. A
command returns the line that it ends with.
"""
