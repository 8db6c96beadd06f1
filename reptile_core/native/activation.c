/* Activations and their derivatives: everything is contiguous, and counts are multiples of a vector. */

#include <tgmath.h>

#include "activation.h"
#include "tiles.h"

INLINE Vector choose(Mask where, Vector yes, Vector no)
{
    return (Vector)((where & (Mask)yes) | (~where & (Mask)no));
}

static const double inverse_factorials[] = {
    1.0, 1.0, 1 / 2.0, 1 / 6.0, 1 / 24.0, 1 / 120.0, 1 / 720.0, 1 / 5040.0, 1 / 40320.0, 1 / 362880.0, 1 / 3628800.0,
    1 / 39916800.0, 1 / 479001600.0, 1 / 6227020800.0};

/* e^x for x <= 0 to round-off, as 2^n e^rest with |rest| <= ln(2) / 2. */
INLINE Vector exponential(Vector x)
{
    enum { WIDE = sizeof(Real) > 4, TERMS = WIDE ? 13 : 7, DIGITS = WIDE ? 52 : 23, BIAS = WIDE ? 1023 : 127 };
    const Real high = WIDE ? 0x1.62e42feep-1 : 0x1.62e3p-1; /* ln(2) = high + low, where n * high is exact */
    const Real low = WIDE ? 0x1.a39ef35793c76p-33 : 0x1.2fefa2p-17;
    const Real integers = 1.5 * (1LL << DIGITS); /* numbers of this size have no digits behind the point */
    const Vector lowest = (Vector){0} - (Real)(WIDE ? 700 : 87);
    x = choose(x < lowest, lowest, x); /* what is no number stays none */
    const Vector shifted = x * (Real)1.4426950408889634 + integers, n = shifted - integers;
    const Vector rest = x - n * high - n * low;
    Vector sum = (Vector){0};
    UNROLL
    for (int term = TERMS; term >= 0; term--) sum = sum * rest + (Real)inverse_factorials[term];
    return sum * (Vector)(((Mask)shifted + BIAS) << DIGITS); /* the last digits of `shifted` are n */
}

/* ln(1 + x) for 0 <= x <= 1 as 2 artanh(x / (2 + x)), likewise. */
INLINE Vector logarithm_of_one_plus(Vector x)
{
    enum { TERMS = sizeof(Real) > 4 ? 16 : 7 };
    const Vector s = x / (2 + x), square = s * s;
    Vector sum = (Vector){0};
    UNROLL
    for (int term = TERMS; term >= 0; term--) sum = sum * square + (Real)(1.0 / (2 * term + 1));
    return 2 * s * sum;
}

/* As torch has it: linear where the rest is within 2e-9. */
static void softplus(const Real *restrict x, Real *restrict out, Real *restrict slope, long count)
{
    const Vector zero = {0}, one = zero + 1;
    for (long i = 0; i < count; i += LANES) {
        const Vector at = *(const Vector *)(x + i), small = exponential(choose(at > 0, -at, at));
        const Vector whole = 1 / (1 + small), value = choose(at > 0, at, zero) + logarithm_of_one_plus(small);
        *(Vector *)(out + i) = choose(at > 20, at, value);
        *(Vector *)(slope + i) = choose(at > 20, one, choose(at > 0, whole, small * whole));
    }
}

static void hyperbolic_tangent(const Real *x, Real *out, Real *slope, long count)
{
    for (long i = 0; i < count; i++) out[i] = tanh(x[i]), slope[i] = 1 - out[i] * out[i];
}

/* The value and the first derivative at x; a ReLU is taken in passing elsewhere. */
void activate(const Real *x, Real *out, Real *slope, long count, long kind)
{
    if (kind == SOFTPLUS) softplus(x, out, slope, count);
    else hyperbolic_tangent(x, out, slope, count);
}
