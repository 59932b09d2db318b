"""Nothing in it is for Python: `cython_api.pxd` is what there is to cimport."""
