"""A stranger to fastbptt, who calls it from C."""
