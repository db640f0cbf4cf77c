"""The infrastructure of a run: its model, machine, processes, work folder, progress and notes."""
