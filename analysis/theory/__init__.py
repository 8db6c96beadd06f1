"""Section 5 of the paper as functions.

They give derivatives, Taylor series, expectations, inner products and curvature.
"""
