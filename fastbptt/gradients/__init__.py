"""How gradients fare on their way back through time.

Norms without under- or overflow, Lyapunov exponents, and penalties that keep gradients alive.
"""
