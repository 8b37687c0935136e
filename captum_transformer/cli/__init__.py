"""The command line: ``captum-transformer explain`` and ``captum-transformer inspect``."""
