"""The runtimes that exported models run in, and a process that runs one without PyTorch."""
