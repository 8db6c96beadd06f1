/* Taylor coefficients in t of what a block does at phi + t v, and of the gradients in it: coefficient n is the n-th
 * derivative over n!. A call gives those of one order, 1 or 2, from those below. Large arrays come as a list by order,
 * what has one number a channel as rows by order. Everything is contiguous. */

#include <string.h>

#include "activation.h"
#include "sums.h"

enum { ORDERS = 3 };

#define BY_KIND(kind, call)                       \
    if (kind == RELU) { call(RELU) }              \
    else if (kind == SOFTPLUS) { call(SOFTPLUS) } \
    else { call(TANH) }

/* Coefficient `order` of a product. */
INLINE Real product_of(const int order, const Real *a, const Real *b)
{
    Real sum = 0;
    UNROLL
    for (int n = 0; n <= order; n++) sum += a[n] * b[order - n];
    return sum;
}

/* An activation's coefficients, from those of its input x, of which it keeps the value `kept` and the slope there. */
INLINE void activate_of_kind(const int order, const int kind, Real *const *x, const Real *kept, const Real *slope,
                             Real *out, long count)
{
    const Real *x_1 = x[1], *x_n = x[order];
#pragma GCC ivdep
    for (long i = 0; i < count; i++) {
        const Real first = kind == RELU ? kept[i] > 0 : slope[i];
        Real along = x_n[i];
        if (kind != RELU && order == 2) along += second(kind, kept[i], first) * x_1[i] * x_1[i] / 2;
        out[i] = first * along;
    }
}

void activate_taylor(Real *const *x, const Real *kept, const Real *slope, Real *out, long count, long kind, long order)
{
#define CALL(k)                                                           \
    if (order == 1) activate_of_kind(1, k, x, kept, slope, out, count);   \
    else activate_of_kind(2, k, x, kept, slope, out, count);
    BY_KIND(kind, CALL)
#undef CALL
}

/* The gradient in x, in place of that in the output; order 0 too. */
INLINE void activate_backward_of_kind(const int order, const int kind, Real *const *g, Real *const *x,
                                      const Real *kept, const Real *slope, long count)
{
    Real *g_n = g[order];
    const Real *g_0 = g[0], *g_1 = order > 1 ? g[1] : 0, *x_1 = order > 0 ? x[1] : 0, *x_2 = order > 1 ? x[2] : 0;
#pragma GCC ivdep
    for (long i = 0; i < count; i++) {
        const Real first = kind == RELU ? kept[i] > 0 : slope[i];
        Real found = g_n[i] * first;
        if (kind != RELU && order > 0) {
            const Real turn = second(kind, kept[i], first), by = turn * x_1[i];
            if (order == 1) found += g_0[i] * by;
            else
                found += (g_1[i] - g_0[i] * by) * by +
                         g_0[i] * (turn * x_2[i] + third(kind, kept[i], first) * x_1[i] * x_1[i] / 2);
        }
        g_n[i] = found;
    }
}

void activate_backward(Real *const *g, Real *const *x, const Real *kept, const Real *slope, long count, long kind,
                       long order)
{
#define CALL(k)                                                                  \
    if (order == 0) activate_backward_of_kind(0, k, g, x, kept, slope, count);       \
    else if (order == 1) activate_backward_of_kind(1, k, g, x, kept, slope, count);  \
    else activate_backward_of_kind(2, k, g, x, kept, slope, count);
    BY_KIND(kind, CALL)
#undef CALL
}

/* root = variance^(-1/2) and factor = scale * root, for a channel whose numbers are `channels` apart. */
INLINE void scale_root(const int order, const Real *variance, const Real *const *scale, Real *root, Real *factor,
                       long channels, long c)
{
    const Real r = root[c], cube = r * r * r, *v = variance + c;
    Real *coefficient = root + order * channels + c;
    *coefficient = v[order * channels] * cube / -2;
    if (order == 2) *coefficient += v[channels] * v[channels] * cube * r * r * 3 / 8;
    if (order == 1) factor[c] = scale[0][c] * r;
    factor[order * channels + c] = scale[0][c] * *coefficient + scale[1][c] * coefficient[-channels];
}

/* a[order] centred and scaled in place, and out = factor * a + shift; a[0] is normalized already. shift: this order's.
 * root, factor and variance hold ORDERS rows, root[0] is 1; scratch as in normalization.c. */
INLINE void normalize_of_order(const int order, Real *const *a, const Real *rstd, const Real *const *scale,
                               const Real *shift, Real *variance, Real *root, Real *factor, Real *out, void *scratch,
                               long rows, long channels)
{
    double *sums = scratch, *with = sums + channels;
    Real *mean = (Real *)(with + channels), *partial = mean + channels, *v = variance + order * channels;
    const Real *a_0 = a[0], *a_1 = a[1];
    Real *a_n = a[order];
    column_sums(a_n, 0, a_0, sums, with, partial, rows, channels); /* a_0 adds up to 0: no mean need be taken out */
    for (long c = 0; c < channels; c++) mean[c] = sums[c] / rows, v[c] = 2 * rstd[c] * with[c] / rows;
    if (order == 2) {
        column_sums(a_1, 0, a_1, sums, with, partial, rows, channels);
        for (long c = 0; c < channels; c++) v[c] += with[c] / rows;
    }
    for (long c = 0; c < channels; c++) scale_root(order, variance, scale, root, factor, channels, c);
    const Real *f_0 = factor, *f_1 = f_0 + channels, *f_2 = f_1 + channels;
    for (long row = 0; row < rows; row++, a_0 += channels, a_1 += channels, a_n += channels, out += channels)
#pragma GCC ivdep
        for (long c = 0; c < channels; c++) {
            const Real value = (a_n[c] - mean[c]) * rstd[c];
            out[c] = shift[c] + (order == 1 ? f_1[c] * a_0[c] + f_0[c] * value
                                            : f_2[c] * a_0[c] + f_1[c] * a_1[c] + f_0[c] * value);
            a_n[c] = value;
        }
}

void normalize_taylor(Real *const *a, const Real *rstd, const Real *const *scale, const Real *shift, Real *variance,
                      Real *root, Real *factor, Real *out, void *scratch, long rows, long channels, long order)
{
    if (order == 1)
        normalize_of_order(1, a, rstd, scale, shift, variance, root, factor, out, scratch, rows, channels);
    else normalize_of_order(2, a, rstd, scale, shift, variance, root, factor, out, scratch, rows, channels);
}

/* What the gradients of a channel are made of, from root, factor and along, the sums of g * a, by order: the gradient
 * in a is factor * g - turn * a less its mean, where turn = factor * root^2 * along. */
INLINE void turns(const int order, const Real *root, const Real *factor, const Real *along, Real *turn)
{
    Real a[ORDERS], b[ORDERS];
    for (int n = 0; n <= order; n++) a[n] = product_of(n, factor, root), b[n] = product_of(n, root, along);
    for (int n = 0; n <= order; n++) turn[n] = product_of(n, a, b);
}

/* The gradients in what was normalized, scale and shift. along: the sums of g * a, ORDERS rows. */
INLINE void normalize_backward_of_order(const int order, const Real *const *g, const Real *const *a, const Real *rstd,
                                        const Real *root, const Real *factor, Real *along, Real *g_x,
                                        Real *const *g_scale, Real *const *g_shift, void *scratch, long rows,
                                        long channels)
{
    double *sums = scratch, *with = sums + channels;
    Real *partial = (Real *)(with + channels), *along_n = along + order * channels;
    if (order == 1) memcpy(along, g_scale[0], channels * sizeof(Real));
    memset(along_n, 0, channels * sizeof(Real));
    for (int n = 0; n <= order; n++) {
        column_sums(g[n], 0, a[order - n], sums, with, partial, rows, channels);
        for (long c = 0; c < channels; c++) along_n[c] += with[c];
    }
    Real by_g[ORDERS][channels], by_a[ORDERS][channels], constant[channels];
    for (long c = 0; c < channels; c++) {
        Real r[ORDERS], f[ORDERS], s[ORDERS], with_a[ORDERS], turn[ORDERS];
        g_shift[order][c] = sums[c];
        for (int n = 0; n <= order; n++) {
            r[n] = root[n * channels + c], f[n] = factor[n * channels + c], with_a[n] = along[n * channels + c];
            s[n] = g_shift[n][c];
        }
        turns(order, r, f, with_a, turn);
        g_scale[order][c] = product_of(order, with_a, r);
        constant[c] = rstd[c] * product_of(order, f, s) / rows;
        for (int n = 0; n <= order; n++) by_g[n][c] = rstd[c] * f[n], by_a[n][c] = rstd[c] * turn[n] / rows;
    }
    const Real *g_0 = g[0], *g_1 = g[1], *g_2 = g[order], *a_0 = a[0], *a_1 = a[1], *a_2 = a[order];
    for (long row = 0; row < rows; row++)
#pragma GCC ivdep
        for (long c = 0; c < channels; c++) {
            const long at = row * channels + c;
            Real value = by_g[order][c] * g_0[at] - by_a[order][c] * a_0[at] - constant[c];
            value += by_g[order - 1][c] * g_1[at] - by_a[order - 1][c] * a_1[at];
            if (order == 2) value += by_g[0][c] * g_2[at] - by_a[0][c] * a_2[at];
            g_x[at] = value;
        }
}

void normalize_taylor_backward(const Real *const *g, const Real *const *a, const Real *rstd, const Real *root,
                               const Real *factor, Real *along, Real *g_x, Real *const *g_scale, Real *const *g_shift,
                               void *scratch, long rows, long channels, long order)
{
    if (order == 1)
        normalize_backward_of_order(1, g, a, rstd, root, factor, along, g_x, g_scale, g_shift, scratch, rows, channels);
    else
        normalize_backward_of_order(2, g, a, rstd, root, factor, along, g_x, g_scale, g_shift, scratch, rows, channels);
}

/* Of image_block.c's normalize_weights: out (size, f) holds the normalizing weights and the shift. w: phi's and v's;
 * product: covariance @ w of both. */
void normalize_weights_taylor(const Real *const *w, Real *const *product, const Real *covariance,
                              const Real *const *scale, const Real *shift, Real *variance, Real *root, Real *factor,
                              Real *out, long size, long f, long order)
{
    const long n = size - 1;
    Real *change = product[1], *v = variance + order * f;
    if (order == 1) {
        memset(change, 0, n * f * sizeof(Real));
        for (long j = 0; j < n; j++)
            for (long k = 0; k < n; k++)
                for (long c = 0; c < f; c++) change[j * f + c] += covariance[j * n + k] * w[1][k * f + c];
    }
    for (long c = 0; c < f; c++) {
        double sum = 0;
        for (long k = c; k < n * f; k += f) sum += w[1][k] * (order == 1 ? 2 * product[0][k] : change[k]);
        v[c] = sum;
        if (order == 1) scale_root(1, variance, scale, root, factor, f, c);
        else scale_root(2, variance, scale, root, factor, f, c);
    }
    for (long k = 0; k < n; k++)
        for (long c = 0; c < f; c++)
            out[k * f + c] = w[0][k * f + c] * factor[order * f + c] + w[1][k * f + c] * factor[(order - 1) * f + c];
    memcpy(out + n * f, shift, f * sizeof(Real));
}

INLINE void normalize_weights_backward_of_order(const int order, const Real *const *g, const Real *const *w,
                                                const Real *const *product, const Real *root, const Real *factor,
                                                Real *g_w, Real *g_scale, Real *g_shift, long size, long f)
{
    const long n = size - 1;
    for (long c = 0; c < f; c++) {
        Real along[ORDERS] = {0}, turn[ORDERS], r[ORDERS], a[ORDERS];
        for (int m = 0; m <= order; m++) {
            r[m] = root[m * f + c], a[m] = factor[m * f + c];
            for (long k = 0; k < n; k++)
                along[m] += g[m][k * f + c] * w[0][k * f + c] + (m > 0 ? g[m - 1][k * f + c] * w[1][k * f + c] : 0);
        }
        turns(order, r, a, along, turn);
        g_scale[c] = product_of(order, along, r);
        for (long k = 0; k < n; k++) {
            Real value = -turn[order] * product[0][k * f + c] - turn[order - 1] * product[1][k * f + c];
            for (int m = 0; m <= order; m++) value += g[m][k * f + c] * a[order - m];
            g_w[k * f + c] = value;
        }
    }
    memcpy(g_shift, g[order] + n * f, f * sizeof(Real));
}

void normalize_weights_taylor_backward(const Real *const *g, const Real *const *w, const Real *const *product,
                                       const Real *root, const Real *factor, Real *g_w, Real *g_scale, Real *g_shift,
                                       long size, long f, long order)
{
    if (order == 1)
        normalize_weights_backward_of_order(1, g, w, product, root, factor, g_w, g_scale, g_shift, size, f);
    else normalize_weights_backward_of_order(2, g, w, product, root, factor, g_w, g_scale, g_shift, size, f);
}
