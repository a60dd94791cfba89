"""The foundation of all rooms: errors, settings, atomic file output, seeding, progress, processes."""
