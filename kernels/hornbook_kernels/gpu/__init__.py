"""The Triton kernels and what launches them. Imported only where Triton is there and chosen."""
