"""The methods of this package in the form that other libraries call.

Each module needs the library that it is for: `grad_cam`, `quantus`, `inseq`.
"""
