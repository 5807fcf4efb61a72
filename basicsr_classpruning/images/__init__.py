"""Pictures in files: which files they are, reading, writing. Knows only the ground modules of the package."""
