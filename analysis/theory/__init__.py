"""Section 5 of the paper as functions: derivatives, Taylor series, expectations, inner products,
curvature."""
