"""Files that exports write into their folders, for programs that know nothing of this package."""
