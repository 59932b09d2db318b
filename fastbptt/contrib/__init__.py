"""Adapters for packages that train recurrent nets. Nothing here is imported by `import fastbptt`."""
