"""Studies on finished runs: contamination (paper, section 5)."""
