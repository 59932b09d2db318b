"""Gradients on their way back through time, seen and kept up: numbers without end to their range, exponents, and penalties."""
