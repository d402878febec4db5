"""The parts of `run`: what is measured, who, by whom, and how it is told."""
