"""One file per command of `coda`; each function's keyword parameters are its flags, its docstring the help.

They stay thin: what they call lives in the other packages, and is imported inside the function, so that help answers
at once. Each returns the line that the command ends with.
"""
