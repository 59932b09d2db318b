"""The program: the command ``fastbptt``. The library, which is everything else, imports nothing of it."""
