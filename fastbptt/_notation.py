"""Numbers as people read them, out of logarithms: their range has no end."""

import math


def format_log10(log10, digits=2):
    """10**log10 in few digits, however large or small it is.

    >>> format_log10(-400.0), format_log10(-3.92), format_log10(3010.3), format_log10(-0.06), format_log10(-math.inf)
    ('1e-400', '1.2e-04', '2e+3010', '0.87', '0')
    """
    if not math.isfinite(log10):
        return "0" if log10 == -math.inf else str(float(log10))
    if -3 <= log10 < 4:
        return f"{10**log10:.{digits}g}" if log10 < digits else f"{10**log10:.0f}"
    exponent = math.floor(log10)
    mantissa = round(10 ** (log10 - exponent), digits - 1)
    if mantissa >= 10:
        mantissa, exponent = mantissa / 10, exponent + 1
    return f"{mantissa:g}e{exponent:+03d}"
