"""The report of a benchmark: figures, tables, plots and provenance."""
