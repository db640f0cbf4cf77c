"""``python -m basis_sharing``."""

from basis_sharing.cli.main import main

main()
