/* The linear layer, the softmax and the cross-entropy above it, with all gradients: everything is contiguous. */

#include <string.h>
#include <tgmath.h>

#include "real.h"

/* Of weight * sum over rows of the cross-entropy of softmax(x @ w + bias) against y, for x (rows, size) and w (size, f):
 * the gradients in x, w and bias. `scratch` holds f numbers. */
void cross_entropy_gradients(const Real *x, const Real *w, const Real *bias, const long *y, Real *g_x, Real *g_w,
                             Real *g_bias, Real *scratch, double weight, long rows, long size, long f)
{
    Real *restrict p = scratch;
    memset(g_w, 0, size * f * sizeof(Real));
    memset(g_bias, 0, f * sizeof(Real));
    for (long row = 0; row < rows; row++, x += size, g_x += size) {
        memcpy(p, bias, f * sizeof(Real));
        for (long k = 0; k < size; k++)
            for (long c = 0; c < f; c++) p[c] += x[k] * w[k * f + c];
        Real largest = p[0], sum = 0;
        for (long c = 1; c < f; c++) largest = p[c] > largest ? p[c] : largest;
        for (long c = 0; c < f; c++) sum += p[c] = exp(p[c] - largest);
        for (long c = 0; c < f; c++) p[c] = (Real)weight * (p[c] / sum - (c == y[row]));
        for (long c = 0; c < f; c++) g_bias[c] += p[c];
        for (long k = 0; k < size; k++) {
            Real along = 0;
            for (long c = 0; c < f; c++) along += p[c] * w[k * f + c], g_w[k * f + c] += x[k] * p[c];
            g_x[k] = along;
        }
    }
}
