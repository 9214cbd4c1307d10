"""Pages about runs, one HTML file each."""
