"""What every room stands on: errors, settings, atomic file output, seeding, progress, processes."""
