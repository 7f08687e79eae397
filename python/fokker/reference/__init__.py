"""The meaning of every op, in plain PyTorch: one module a family, the same names as the public functions.

These functions are written to be read and to judge the kernels, not to be fast. Nothing here imports any other part of
fokker.
"""
