"""Makes the methods of this package available in other libraries.

Each module needs the library that it is for: `grad_cam`, `quantus`, `inseq`.
"""
