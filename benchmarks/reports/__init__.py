"""The report of a benchmark: figures, tables, plots, and where they come from."""
