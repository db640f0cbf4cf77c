"""What every run has: its model, machine, processes, work folder, progress and notes."""
